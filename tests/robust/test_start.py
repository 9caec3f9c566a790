"""Programs that cannot be served: each gets one clear line, none hangs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from neatsock.abi import VERSION
from neatsock.instance import native

from ..worlds import ROOT, World
from .rig import Bystander, Rig, wait_until

# A conversation with itself: works in both worlds.
TALK = """
import socket
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen()
c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
c.sendall(b"through"); print(s.recv(10).decode())
"""


def compile_c(source: str, out: Path, *flags: str) -> Path:
    path = out.with_suffix(".c")
    path.write_text(source)
    subprocess.run(["gcc", "-o", str(out), str(path), *flags], check=True)
    return out


def preloaded(socket: Path, library: Path | None = None) -> World:
    library = library or native("libneatsock.so")
    return World("neat", env={"LD_PRELOAD": str(library), "NEATSOCK_SOCKET": str(socket)})


def one_line(stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("neatsock: "), stderr
    return lines[0]


def test_no_daemon(scratch: Path) -> None:
    """The socket's file is missing: the program goes on with the kernel."""
    done = preloaded(scratch / "none.sock").run(sys.executable, "-c", TALK)
    assert done.stdout == "through\n"
    line = one_line(done.stderr)
    assert f"no daemon answers at {scratch}/none.sock (No such file" in line
    assert "stay with the kernel" in line and "neatsock up" in line


def test_daemon_that_is_dead(scratch: Path) -> None:
    """Killed with its whole instance: the socket's file is there, nobody listens."""
    rig = Rig(scratch)
    pids = rig.pids()
    os.kill(pids["keeper"], 9)
    with_file = rig.path.exists()
    try:
        done = rig.world.run(sys.executable, "-c", TALK)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert with_file and done.stdout == "through\n"
    assert "(Connection refused)" in one_line(done.stderr)


def test_no_instance_named() -> None:
    done = World("neat", env={"LD_PRELOAD": str(native("libneatsock.so"))}).run(
        sys.executable, "-c", TALK
    )
    assert done.stdout == "through\n"
    assert "NEATSOCK_SOCKET is not set" in one_line(done.stderr)


def test_nothing_is_said_without_sockets(scratch: Path) -> None:
    done = preloaded(scratch / "none.sock").run("true")
    assert (done.stdout, done.stderr) == ("", "")


def test_command_line(rig1: Rig, scratch: Path) -> None:
    for command in (["run", "--no-such-option", "--", "true"], ["up", "--no-such-option"]):
        done = rig1.cli(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].endswith("--no-such-option"), done.stderr
    done = rig1.cli("run", "--", "no-such-program-here")
    assert done.returncode == 127
    assert "no-such-program-here: command not found" in one_line(done.stderr)
    text = scratch / "text"
    text.write_text("not a program")
    done = rig1.cli("run", "--", str(text))
    assert done.returncode == 126 and "is not executable" in one_line(done.stderr)


def test_a_listener_of_both_families_is_named(rig1: Rig, scratch: Path) -> None:
    """It stays with the kernel (differences.md 1), and nobody has to find that out alone."""
    code = (
        "import socket\n"
        "for only in (0, 1):\n"
        "    s = socket.socket(socket.AF_INET6)\n"
        "    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)\n"
        "    s.bind(('::', 0)); s.listen(); print(s.getsockname()[1])\n"
    )
    done = rig1.cli("run", "--", sys.executable, "-c", code)
    if "Address family not supported" in done.stderr:
        pytest.skip("this machine has no IPv6")
    assert done.returncode == 0, done.stderr
    port = done.stdout.split()[0]
    assert f"port {port} of [::] is the kernel's" in one_line(done.stderr)


def test_static_binary(rig1: Rig, scratch: Path) -> None:
    static = compile_c("int main(void) { return 0; }\n", scratch / "still", "-static")
    done = rig1.cli("run", "--", str(static))
    assert (done.returncode, done.stdout) == (126, "")
    assert f"{static} is statically linked" in one_line(done.stderr)


GIVES_SOCKET = """
import ctypes, os, socket, subprocess, sys
s = socket.socket(); s.bind(("127.0.0.1", 0))
path, name = sys.argv[1], os.path.basename(sys.argv[1])
os.environ["PATH"] = os.path.dirname(path) + ":" + os.environ["PATH"]
for inherits in (False, True):
    s.set_inheritable(inherits)
    for program in (path, name, sys.executable):
        if os.fork() == 0:
            argv = [program.encode(), b"-c", b"pass", None]
            ctypes.CDLL(None).execvp(argv[0], (ctypes.c_char_p * 4)(*argv))
        print(inherits, os.path.basename(program), os.wait()[1] >> 8, flush=True)
    subprocess.run([path], close_fds=False)
"""


def test_static_child_that_inherits(rig1: Rig, scratch: Path) -> None:
    """Its sockets cannot work there: one line for each such program; silence where it has none."""
    static = compile_c("int main(void) { return 0; }\n", scratch / "still", "-static")
    done = rig1.world.run(sys.executable, "-c", GIVES_SOCKET, str(static))
    want = [
        f"{i} {n} 0" for i in (False, True) for n in ("still", "still", Path(sys.executable).name)
    ]
    assert done.stdout.splitlines() == want
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    for line in lines:
        assert line.startswith(f"neatsock: {static} is statically linked"), line
        assert "sockets that it inherits do not work" in line


def test_setuid_target(rig1: Rig, scratch: Path) -> None:
    target = scratch / "set"
    shutil.copy("/bin/true", target)
    for mode in (0o4755, 0o2755):
        target.chmod(mode)
        done = rig1.cli("run", "--", str(target))
        assert done.returncode == 126
        assert "setuid or setgid" in one_line(done.stderr)


AS_NOBODY = """
import os, socket
os.setgid(65534); os.setuid(65534)
s = socket.socket()
try:
    s.bind(("127.0.0.1", 81)); print("bound")
except PermissionError as err:
    print("EACCES")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_privileged_port_as_another_user(rig1: Rig) -> None:
    """Another user may not reach the instance (0700): said once, then the kernel decides."""
    floor = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    done = rig1.world.run(sys.executable, "-c", AS_NOBODY)
    assert done.stdout == ("EACCES\n" if floor > 81 else "bound\n")
    assert "(Permission denied)" in one_line(done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_privileged_port_of_who_dropped_privileges(rig1: Rig) -> None:
    """Attached as root, then another user: neatd asks the kernel who sends, and refuses."""
    code = "import socket\nfirst = socket.socket()\n" + AS_NOBODY
    done = rig1.world.run(sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == ("EACCES\n", "")


# ---- two versions ----


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for part in ("shim", "replicas/abi"):
        shutil.copytree(ROOT / part, root / part)
    return root


def other_library(sources: Path, out: Path, old: str, new: str) -> Path:
    """libneatsock.so of another version: `old` in the ABI header became `new`."""
    header = sources / "replicas/abi/neat_abi.h"
    before = (ROOT / "replicas/abi/neat_abi.h").read_text()
    assert old in before
    header.write_text(before.replace(old, new))
    files = sorted((sources / "shim").glob("*.c")) + sorted((sources / "shim/client").glob("*.c"))
    command = ["gcc", "-std=gnu11", "-O0", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += [f"-I{sources}/{p}" for p in ("replicas/abi", "shim", "shim/client")]
    command += [f"-Wl,--version-script={sources}/shim/libneatsock.map", "-Wl,-Bsymbolic"]
    command += ["-Wl,-z,initfirst", *map(str, files), "-ldl", "-lpthread", "-o", str(out)]
    subprocess.run(command, check=True)
    return out


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        (f"NEAT_ABI_VERSION = {VERSION},", "NEAT_ABI_VERSION = 77,", "speaks version 77"),
        ("work_ns, poll_ns;", "work_ns, poll_ns, more;", "another memory layout"),
    ],
    ids=["version", "layout"],
)
def test_library_of_another_version(
    rig1: Rig, sources: Path, scratch: Path, old: str, new: str, complaint: str
) -> None:
    witness = Bystander(rig1.world)
    other = other_library(sources, scratch / "lib.so", old, new)
    done = preloaded(rig1.path, other).run(sys.executable, "-c", TALK)
    assert done.stdout == "through\n"
    lines = done.stderr.splitlines()
    assert complaint in lines[0] and "neatsock down" in lines[0], done.stderr
    assert len(lines) <= 2 and all("neatsock: " in line for line in lines)
    witness.lively()
    witness.close()


EXEC = """
import os, socket, subprocess, sys
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); s.set_inheritable(True)
code = "import os, socket; t = socket.socket(fileno=%d); print(t.getsockname()[1])" % s.fileno()
os.environ["LD_PRELOAD"] = os.environ["LD_PRELOAD"].replace("@", "")
os.environ.update(a.split("=", 1) for a in sys.argv[1:])
os.execv(sys.executable, [sys.executable, "-c", code])
"""


def test_exec_into_an_ended_instance(scratch: Path) -> None:
    """Sockets are inherited by exec, but the instance ended between: a message, no hang."""
    rig = Rig(scratch)
    other = Rig(scratch / "second")
    try:
        done = rig.world.run(
            sys.executable, "-c", EXEC, f"NEATSOCK_SOCKET={other.path}", check=False
        )
    finally:
        rig.down()
        other.down()
    assert "belong to an instance that has ended" in done.stderr, done.stderr
    assert done.returncode in (0, 1)


def test_daemon_that_dies_with_the_request(rig1: Rig, scratch: Path) -> None:
    """neatd accepts, reads, and is killed: its successor listens on the same socket."""
    path = scratch / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
        dying.bind(str(path))
        dying.listen()
        program = preloaded(path).start(
            sys.executable, "-c", TALK, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        connection, _ = dying.accept()
        assert connection.recv(4096)
        path.unlink()
        path.symlink_to(rig1.path)
        accepted = sum(r["accepted"] for r in rig1.status()["replicas"])
        connection.close()
        out, err = program.communicate(timeout=30)
    assert (out, err) == ("through\n", "")
    wait_until(
        lambda: sum(r["accepted"] for r in rig1.status()["replicas"]) > accepted, "it was ours"
    )
