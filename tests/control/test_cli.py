"""neatsock up, down, status, run and python -m neatsock, as a person uses them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .client import ROOT, Client, Instance, wait_for
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
        assert "not up" in done.stderr and "neatsock up" in done.stderr


def test_up_twice_is_fine_unless_the_number_differs(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    keeper = fresh.quick_status()["keeper"]
    fresh.up()
    fresh.up("--replicas", "2")
    done = fresh.cli("up", "--name", "t", "--replicas", "1")
    assert done.returncode == 1 and "already up with 2 replicas" in done.stderr
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

    wait_for(settled, "nobody runs for 0.3 s")


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
    wait_for(lambda: not any(alive(pid) for pid in pids), "the instance has ended")
    assert sorted(p.name for p in fresh.directory.iterdir()) == ["t.log"]


def test_automatic_instance_waits_for_a_program_that_did_not_attach_yet(fresh: Instance) -> None:
    command = [sys.executable, "-m", "neatsock", "run", "--name", "t", "cat"]
    process = subprocess.Popen(command, env=fresh.env, stdin=subprocess.PIPE)
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "cat\n", "run became cat")
    keeper = fresh.quick_status()["keeper"]["pid"]
    time.sleep(1.5)  # longer than the linger time: the point is that nothing happens
    assert alive(keeper)
    process.communicate(timeout=60)
    wait_for(lambda: not alive(keeper), "the instance has ended")


def test_a_new_neatd_waits_for_that_program_too(fresh: Instance) -> None:
    command = [sys.executable, "-m", "neatsock", "run", "--name", "t", "cat"]
    process = subprocess.Popen(command, env=fresh.env, stdin=subprocess.PIPE)
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "cat\n", "run became cat")
    status = fresh.quick_status()
    os.kill(status["neatd"]["pid"], signal.SIGKILL)
    wait_for(
        lambda: (s := fresh.quick_status()) and s["neatd"]["pid"] != status["neatd"]["pid"],
        "another neatd",
    )
    code = (
        "import os; from pathlib import Path; from tests.control.client import *\n"
        "Client(Path(os.environ['NEATSOCK_SOCKET']))\n"
    )
    command = [sys.executable, "-m", "neatsock", "run", "--name", "t", sys.executable, "-c", code]
    subprocess.run(command, env=fresh.env, cwd=ROOT, check=True, timeout=60)
    time.sleep(1.5)  # longer than the linger time: the point is that nothing happens
    assert alive(status["keeper"]["pid"])
    process.communicate(timeout=60)
    wait_for(lambda: not alive(status["keeper"]["pid"]), "the instance has ended")


def test_run_uses_the_instance_that_is_up_and_leaves_it(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    keeper = fresh.quick_status()["keeper"]["pid"]
    assert fresh.cli("run", "--name", "t", "true").returncode == 0
    done = fresh.cli("run", "--name", "t", "--replicas", "1", "true")
    assert done.returncode == 1 and "is up with 2 replicas" in done.stderr
    assert fresh.quick_status()["keeper"]["pid"] == keeper


@pytest.mark.parametrize(
    "args, code, complaint",
    [
        ([], 2, "no program given"),
        (["--"], 2, "no program given"),
        (["--no-such-option", "true"], 2, "unknown option --no-such-option|unrecognized"),
        (["no-such-program-xyz"], 127, "no-such-program-xyz: command not found"),
        (["/etc/passwd"], 126, "not executable"),
        (["--replicas", "0", "true"], 2, "not 1 to 16"),
        (["--replicas", "x", "true"], 2, "invalid"),
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
    assert fresh.cli("status", cwd=tmp_path).stdout == "a script\n"
    assert json.loads(fresh.cli("status", "--json", cwd=ROOT).stdout)["name"] == "t"


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
    done = instance.cli("pcap", "--name", "t", "-w", "/dev/null")
    assert done.returncode == 1 and "no regular file" in done.stderr
