"""neatsock up, down, status, run and python -m neatsock, as a person uses them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neatsock import abi, cli
from neatsock.instance import InstanceError, _terminate

from ..waiting import wait_until
from .client import LIB, ROOT, Client, Instance, Refused
from .conftest import alive

SHOW = "import os; print(os.environ['LD_PRELOAD'], os.environ['NEATSOCK_SOCKET'], os.getpid())"


def processes(instance: Instance) -> list[int]:
    status = instance.quick_status()
    return [status[k]["pid"] for k in ("keeper", "neatd")] + [r["pid"] for r in status["replicas"]]


def test_up_status_down(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    status = fresh.status()
    assert status["neatd"]["pid"] and status["nic"] == {"pid": None}
    assert [
        set(r)
        >= {
            "index",
            "pid",
            "state",
            "connections",
            "accepted",
            "segments_in",
            "segments_out",
            "cpu_s",
        }
        for r in status["replicas"]
    ] == [True, True]
    assert [r["state"] for r in status["replicas"]] == ["ready", "ready"]
    pids = processes(fresh)
    text = fresh.cli("status", "--name", "t")
    assert text.returncode == 0 and "ready" in text.stdout
    done = fresh.cli("down", "--name", "t")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any(alive(pid) for pid in pids)
    assert sorted(p.name for p in fresh.directory.iterdir()) == ["t.log"]


def test_down_and_status_without_an_instance(fresh: Instance) -> None:
    for command in ("down", "status"):
        done = fresh.cli(command)
        assert done.returncode == 1 and done.stdout == ""
        assert "not up" in done.stderr and "neatsock up --name default\n" in done.stderr
    done = fresh.cli("status", "--name", "other")
    assert (
        done.stderr == "neatsock: instance 'other' is not up; start it: neatsock up --name other\n"
    )


def test_up_twice_is_fine_unless_the_number_differs(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    keeper = fresh.quick_status()["keeper"]
    fresh.up()
    fresh.up("--replicas", "2")
    done = fresh.cli("up", "--name", "t", "--replicas", "1")
    assert (
        done.returncode == 1 and "is already up with --replicas 2, not --replicas 1;" in done.stderr
    )
    assert fresh.quick_status()["keeper"] == keeper


def test_many_at_once_start_one_instance(fresh: Instance) -> None:
    command = [sys.executable, "-m", "neatsock", "up", "--name", "t"]
    starters = [subprocess.Popen(command, env=fresh.env) for _ in range(6)]
    assert [s.wait(60) for s in starters] == [0] * 6
    assert fresh.quick_status()["replicas"]


def test_default_number_of_replicas(fresh: Instance) -> None:
    fresh.up()
    cores = len(os.sched_getaffinity(0))
    expected = 1 if cores <= 2 else min(cores // 2, 16)
    assert len(fresh.quick_status()["replicas"]) == expected


def test_an_idle_instance_uses_no_cpu(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    client = Client(fresh.path)
    client.listen(1)
    pids = processes(fresh)

    def run_ns() -> list[int]:
        return [int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids]

    def settled() -> bool:
        before = run_ns()
        time.sleep(0.3)
        return run_ns() == before

    wait_until(settled, "nobody runs for 0.3 s")


# ---- run ----


def test_run_becomes_the_program(fresh: Instance, native: Path) -> None:
    env = fresh.env | {"LD_PRELOAD": str(native / "libneatsock.so")}
    process = subprocess.Popen(
        [sys.executable, "-m", "neatsock", "run", "--name", "t", "--", sys.executable, "-c", SHOW],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=60)
    preload, path, pid = out.split()
    assert err == ""
    assert preload == str(native / "libneatsock.so")
    assert path == str(fresh.path)
    assert int(pid) == process.pid


def test_run_prepends_to_ld_preload_and_passes_the_exit_status(
    fresh: Instance, native: Path
) -> None:
    other = native.parent / "other.so"
    shutil.copy(native / "libneatsock.so", other)
    env = fresh.env | {"LD_PRELOAD": str(other)}
    code = "import os, sys; print(os.environ['LD_PRELOAD']); sys.exit(42)"
    done = subprocess.run(
        [sys.executable, "-m", "neatsock", "run", "--name", "t", sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 42
    assert done.stdout.strip() == f"{native}/libneatsock.so:{other}"


def test_run_leaves_the_arguments_alone(fresh: Instance) -> None:
    done = fresh.cli("run", "--name", "t", "echo", "--name", "x", "--", "-h")
    assert (done.returncode, done.stdout) == (0, "--name x -- -h\n")


def test_run_inside_run_shares_the_instance(fresh: Instance) -> None:
    inner = [sys.executable, "-m", "neatsock", "run", "--name", "t", sys.executable, "-c", SHOW]
    done = fresh.cli("run", "--name", "t", *inner)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0].count("libneatsock") == 1


def test_automatic_instance_ends_after_its_last_program(fresh: Instance) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tests.control.client import *\n"
        "c = Client(Path(os.environ['NEATSOCK_SOCKET'])); print(c.listen(1).port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-m", "neatsock", "run", "--name", "t", sys.executable, "-c", code]
    process = subprocess.Popen(
        command, env=fresh.env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline()
    status = fresh.quick_status()
    assert status["auto"] is True
    pids = processes(fresh)
    process.communicate(timeout=60)
    wait_until(lambda: not any(alive(pid) for pid in pids), "the instance has ended")
    assert sorted(p.name for p in fresh.directory.iterdir()) == ["t.log"]


ATTACH = (
    "import os; from pathlib import Path; from tests.control.client import *\n"
    "Client(Path(os.environ['NEATSOCK_SOCKET']))\n"
)


def outlives_another(fresh: Instance) -> None:
    """A program attaches to this instance and leaves; one that began later waits its time and ends.

    If nothing else kept this one, it would have ended first.
    """
    for name in (fresh.name, "later"):
        command = [sys.executable, "-m", "neatsock", "run", "--name", name, sys.executable]
        subprocess.run([*command, "-c", ATTACH], env=fresh.env, cwd=ROOT, check=True, timeout=60)
    later = Instance(fresh.directory, "later")
    wait_until(lambda: later.quick_status() == {}, "the other instance has ended")


def test_automatic_instance_waits_for_a_program_that_did_not_attach_yet(fresh: Instance) -> None:
    command = [sys.executable, "-m", "neatsock", "run", "--name", "t", "cat"]
    process = subprocess.Popen(command, env=fresh.env, stdin=subprocess.PIPE)
    wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "cat\n", "run became cat")
    keeper = fresh.quick_status()["keeper"]["pid"]
    outlives_another(fresh)
    assert alive(keeper)
    process.communicate(timeout=60)
    wait_until(lambda: not alive(keeper), "the instance has ended")


def test_a_new_neatd_waits_for_that_program_too(fresh: Instance) -> None:
    command = [sys.executable, "-m", "neatsock", "run", "--name", "t", "cat"]
    process = subprocess.Popen(command, env=fresh.env, stdin=subprocess.PIPE)
    wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "cat\n", "run became cat")
    status = fresh.quick_status()
    os.kill(status["neatd"]["pid"], signal.SIGKILL)
    wait_until(
        lambda: (s := fresh.quick_status()) and s["neatd"]["pid"] != status["neatd"]["pid"],
        "another neatd",
    )
    outlives_another(fresh)
    assert alive(status["keeper"]["pid"])
    process.communicate(timeout=60)
    wait_until(lambda: not alive(status["keeper"]["pid"]), "the instance has ended")


def test_run_uses_the_instance_that_is_up_and_leaves_it(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    keeper = fresh.quick_status()["keeper"]["pid"]
    assert fresh.cli("run", "--name", "t", "true").returncode == 0
    done = fresh.cli("run", "--name", "t", "--replicas", "1", "true")
    assert (
        done.returncode == 1 and "is already up with --replicas 2, not --replicas 1;" in done.stderr
    )
    assert fresh.quick_status()["keeper"]["pid"] == keeper


@pytest.mark.parametrize(
    "args, code, complaint",
    [
        ([], 2, "no program given"),
        (["--"], 2, "no program given"),
        (["--no-such-option", "true"], 2, "unknown option --no-such-option|unrecognized"),
        (["no-such-program-xyz"], 127, "no-such-program-xyz: command not found"),
        (["/etc/passwd"], 126, "/etc/passwd is not executable"),
        (["/tmp"], 126, "/tmp is a directory"),
        (["/tmp/no/such/program"], 127, "/tmp/no/such/program: command not found"),
        (["--replicas", "0", "true"], 2, "not 1 to 16"),
        (["--replicas", "x", "true"], 2, "--replicas: 'x' is no whole number"),
        (["--spin-us", "-5", "true"], 2, "--spin-us: -5 is not 0 to"),
        (["--name", "a/b", "true"], 1, "cannot be the name"),
    ],
)
def test_run_refuses_clearly(fresh: Instance, args: list[str], code: int, complaint: str) -> None:
    import re

    done = fresh.cli("run", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.search(complaint, done.stderr), done.stderr
    assert not list(fresh.directory.glob("*.sock"))


def test_run_refuses_static_and_setuid_programs(fresh: Instance, tmp_path: Path) -> None:
    source = tmp_path / "s.c"
    source.write_text("int main(void) { return 0; }\n")
    static, setuid = tmp_path / "static", tmp_path / "setuid"
    subprocess.run(["gcc", "-static", str(source), "-o", str(static)], check=True)
    subprocess.run(["gcc", str(source), "-o", str(setuid)], check=True)
    done = fresh.cli("run", "--name", "t", str(static))
    assert done.returncode == 126 and "statically linked" in done.stderr
    assert fresh.cli("run", "--name", "t", str(setuid)).returncode == 0
    setuid.chmod(0o4755)
    done = fresh.cli("run", "--name", "t", str(setuid))
    assert done.returncode == 126 and "setuid" in done.stderr
    script = tmp_path / "script"
    script.write_text(f"#!{static}\n")
    script.chmod(0o755)
    done = fresh.cli("run", "--name", "t", str(script))
    assert done.returncode == 126 and "statically linked" in done.stderr


def test_run_refuses_file_capabilities_unless_root(
    fresh: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, script = tmp_path / "cat", tmp_path / "script"
    shutil.copy("/bin/cat", program)
    script.write_text(f"#!{program}\n")
    script.chmod(0o755)
    one = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
    try:
        os.setxattr(program, "security.capability", one)
    except OSError as err:
        pytest.skip(f"no file capabilities here: {err}")
    if os.getuid() == 0:
        done = fresh.cli("run", "--name", "t", "--", str(program), "/proc/self/maps")
        assert done.returncode == 0 and "libneatsock.so" in done.stdout
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    for path in (program, script):
        with pytest.raises(cli.Refusal, match=f"{program} has file capabilities") as refused:
            cli.check_program(str(path))
        assert refused.value.code == 126
    os.removexattr(program, "security.capability")
    assert cli.check_program(str(script)) == str(script)


@pytest.mark.parametrize("directory", ["a directory", "a:directory"])
def test_run_refuses_a_library_that_cannot_be_preloaded(
    native: Path, tmp_path: Path, directory: str
) -> None:
    place = tmp_path / directory
    place.symlink_to(native)
    lost = Instance(tmp_path / "run", NEATSOCK_NATIVE=str(place))
    done = lost.cli("run", "--name", "t", "--", "true")
    assert (done.returncode, done.stdout) == (126, "")
    assert f"{place}/libneatsock.so" in done.stderr and "spaces and colons" in done.stderr
    assert not list(lost.directory.glob("*.sock"))


def test_a_source_tree_that_is_not_built(tmp_path: Path) -> None:
    """`pip install .` would build another neatsock than the one that is imported here."""
    done = Instance(tmp_path / "run", NEATSOCK_NATIVE=str(tmp_path)).cli("up", "--name", "t")
    assert done.returncode == 1 and "is not built; run make native\n" in done.stderr


def test_without_standard_output(fresh: Instance) -> None:
    for command in ("up", "status", "down"):
        done = fresh.cli(command, "--name", "t", preexec_fn=lambda: os.close(1))
        assert done.returncode == 0, done.stderr


def test_a_directory_of_somebody_else_is_refused(fresh: Instance, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    done = Instance(foreign).cli("up")
    assert done.returncode == 1 and "does not belong to user" in done.stderr


def test_the_control_socket_of_a_long_path(tmp_path: Path, native: Path) -> None:
    deep = tmp_path / ("d" * 100)
    done = Instance(deep, NEATSOCK_NATIVE=str(native)).cli("up")
    assert done.returncode == 1 and "too long for a socket" in done.stderr


# ---- python -m neatsock ----


def test_python_m_runs_scripts_and_modules(fresh: Instance, tmp_path: Path) -> None:
    script = tmp_path / "hello.py"
    script.write_text("import os, sys; print(sys.argv[1:], 'NEATSOCK_SOCKET' in os.environ)\n")
    fresh.env["NEATSOCK_NAME"] = "t"
    done = fresh.cli(str(script), "a", "-b")
    assert (done.stdout, done.stderr) == ("['a', '-b'] True\n", "")
    done = fresh.cli("-m", "json.tool", "--help")
    assert "json.tool" in done.stdout
    done = fresh.cli("-c", "print(1 + 1)")
    assert done.stdout == "2\n"


def test_a_file_named_like_a_command_wins(fresh: Instance, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("print('a script')\n")
    fresh.env["NEATSOCK_NAME"] = "t"
    fresh.up()  # who is started for a program goes with it
    assert fresh.cli("status", cwd=tmp_path).stdout == "a script\n"
    assert json.loads(fresh.cli("status", "--json", cwd=ROOT).stdout)["name"] == "t"


def test_a_directory_named_like_a_command(fresh: Instance, tmp_path: Path) -> None:
    """It wins only if Python can run it."""
    place = tmp_path / "status"
    place.mkdir()
    fresh.env["NEATSOCK_NAME"] = "t"
    fresh.up()
    assert json.loads(fresh.cli("status", "--json", cwd=tmp_path).stdout)["name"] == "t"
    (place / "__main__.py").write_text("print('a script')\n")
    assert fresh.cli("status", cwd=tmp_path).stdout == "a script\n"


SHOW_FLAGS = (
    "import sys; print(sys.flags, sys.warnoptions, sys._xoptions, sys.stdout.write_through)"
)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-O"],
        ["-OO", "-B", "-q", "-d"],
        ["-u"],
        ["-E", "-s"],
        ["-bb", "-Wignore"],
        ["-I", "-X", "dev", "-X", "pycache_prefix=/tmp/x"],
        *([["-P"]] if sys.version_info >= (3, 11) else []),
    ],
)
def test_python_m_keeps_the_options_of_the_interpreter(
    shared: Instance, options: list[str]
) -> None:
    """By main(): under -I and -P, python -m neatsock needs it installed."""
    through = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from neatsock.__main__ import main; sys.exit(main(['-c', {SHOW_FLAGS!r}]))"
    )
    env = {key: value for key, value in shared.env.items() if not key.startswith("PYTHON")}
    seen = [
        subprocess.run(
            [sys.executable, *options, "-c", code],
            env=env | {"NEATSOCK_NAME": "t"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for code in (SHOW_FLAGS, through)
    ]
    assert seen[0] == seen[1] != ""


def test_an_instance_of_another_version(fresh: Instance) -> None:
    """Every command says at once what is wrong and what to do, and `down` does it."""
    other = "import sys\nfrom neatsock import cli, instance\ninstance.ABI_VERSION = 99\n"

    def cli(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", f"{other}sys.exit(cli.main(sys.argv[1:]))", *command],
            env=fresh.env,
            capture_output=True,
            text=True,
            timeout=15,  # less than instance.START_S
            check=False,
        )

    fresh.up()
    pids = processes(fresh)
    for command in (["up"], ["status"], ["run", "--", "true"]):
        done = cli(command[0], "--name", "t", *command[1:])
        assert done.returncode == 1
        assert "another version" in done.stderr and "neatsock down --name t" in done.stderr
    assert cli("down", "--name", "t").returncode == 0
    assert not any(alive(pid) for pid in pids)


def test_pcap_without_an_uplink(instance: Instance, tmp_path: Path) -> None:
    done = instance.cli("pcap", "--name", "t", "-w", str(tmp_path / "file"))
    assert done.returncode == 1
    assert "no uplink" in done.stderr and "stays inside its replica" in done.stderr
    assert not (tmp_path / "file").exists()
    (tmp_path / "kept").write_text("mine")
    done = instance.cli("pcap", "--name", "t", "-w", str(tmp_path / "kept"))
    assert done.returncode == 1 and (tmp_path / "kept").read_text() == "mine"
    done = instance.cli("pcap", "--name", "t", "-w", "/dev/null")
    assert done.returncode == 1 and "no regular file" in done.stderr
    for wrong in ("-1", "x", "nan"):
        done = instance.cli("pcap", "--name", "t", "--seconds", wrong)
        assert done.returncode == 2 and "argument --seconds: " in done.stderr, wrong


def test_options_of_a_running_instance_are_compared(fresh: Instance) -> None:
    """Wrong is worse than absent: what is up is named, and the way out."""
    fresh.up("--spin-us", "7", "--hang", "0.25")
    fresh.up("--spin-us", "7", "--hang", "0.25", "--replicas-max", "4")
    assert fresh.cli("run", "--name", "t", "--spin-us", "7", "true").returncode == 0
    for given, have in (
        (("--rerandomize", "60"), "--rerandomize 0"),
        (("--hang", "0.5"), "--hang 0.25"),
        (("--spin-us", "8"), "--spin-us 7"),
        (("--auto",), "no --auto"),
    ):
        done = fresh.cli("up", "--name", "t", *given)
        said = f"already up with {have}, not {' '.join(given)}; end it first (neatsock down"
        assert done.returncode == 1 and said in done.stderr, done.stderr
    done = fresh.cli("run", "--name", "t", "--components", "multi", "true")
    assert done.returncode == 1 and "--components single, not --components multi" in done.stderr
    assert fresh.status()["limits"]["app_sockets"] is None


def test_a_program_on_the_path_that_is_not_executable(fresh: Instance, tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("not a program")
    fresh.env["PATH"] += f":{tmp_path}"
    done = fresh.cli("run", "--name", "t", "thing")
    assert done.returncode == 126 and f"{tmp_path}/thing is not executable" in done.stderr


def test_a_reader_that_went_away(fresh: Instance) -> None:
    fresh.up()
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "neatsock", "status", "--name", "t"],
            env=fresh.env,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_upgrade_to_a_name_of_any_bytes(
    instance: Instance, native: Path, tmp_path: Path
) -> None:
    name = os.fsencode(tmp_path) + b"/r\xff"
    shutil.copy(native / "neat-replica", name)
    for path in (os.fsdecode(name), ""):
        done = instance.cli("upgrade", "--name", "t", *(["--replica-bin", path] if path else []))
        assert (done.returncode, done.stderr) == (
            0,
            "neatsock: instance 't': 2 replicas replaced\n",
        )
    answers = []
    for path in ("\ud800", "a\0b"):
        client = Client(instance.path, attach=False)
        command = json.dumps({"cmd": "upgrade", "replica_bin": path}).encode()
        client.send(abi.pack_text(LIB.NEAT_MSG_CLI, command))
        with pytest.raises(Refused) as refusal:
            client.receive()
        answers.append(str(refusal.value))
        client.close()
    assert answers == ["replica_bin is no path"] * 2
    assert instance.cli("upgrade", "--name", "t").returncode == 0


def test_down_while_neatd_is_stopped(fresh: Instance) -> None:
    fresh.up()
    pids, keeper = processes(fresh), fresh.quick_status()["keeper"]["pid"]
    os.kill(fresh.quick_status()["neatd"]["pid"], signal.SIGSTOP)
    done = fresh.cli("down", "--name", "t")
    assert done.returncode == 0
    assert f"ended by SIGTERM to its keeper (process {keeper})" in done.stderr
    assert not any(alive(pid) for pid in pids)
    assert sorted(p.name for p in fresh.directory.iterdir()) == ["t.log"]


def test_down_ends_no_other_process(tmp_path: Path) -> None:
    """The file names a process that is no keeper, and somebody holds its lock."""
    process = subprocess.Popen(["sleep", "60"])
    path = tmp_path / "t.pid"
    path.write_text(f"{process.pid}\n")
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(InstanceError, match=f"process {process.pid} is not its keeper"):
                _terminate(path)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
