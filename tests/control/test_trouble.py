"""Starts that cannot work end soon and in words; what can be waited for is waited for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neatsock.rlimits import FILES_LEAST

from ..waiting import wait_until
from .client import Instance
from .conftest import alive


@pytest.mark.parametrize(
    "limit, complaint",
    [
        ("ulimit -n 64", f"(ulimit -Hn), an instance needs at least {FILES_LEAST}"),
        ("ulimit -f 100", "102400 bytes (ulimit -f)"),
        ("ulimit -v 4000000", "needs ulimit -v unlimited"),
    ],
)
def test_limits_of_the_shell(fresh: Instance, limit: str, complaint: str) -> None:
    command = [sys.executable, "-m", "neatsock", "up", "--name", "t"]
    done = subprocess.run(
        ["bash", "-c", f'{limit}; exec "$@"', "bash", *command],
        env=fresh.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert complaint in done.stderr
    assert not fresh.path.exists()


def test_a_neatd_that_never_gets_through_its_start(fresh: Instance, tmp_path: Path) -> None:
    """It talks to the keeper before it fails, every time: the instance ends all the same."""
    broken = tmp_path / "python"
    code = (
        "import sys; from neatsock.replicas import neatd\n"
        "def broken(*_): raise RuntimeError('as the test wants it')\n"
        "neatd.Scaler.__init__ = broken\n"
        "sys.exit(neatd.main(sys.argv[1:]))\n"
    )
    (tmp_path / "neatd.py").write_text(code)
    broken.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} {tmp_path}/neatd.py "$@"\n')
    broken.chmod(0o755)
    up = (
        f"import sys; from neatsock import cli; sys.executable = {str(broken)!r}\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", up, "up", "--name", "t"],
        env=fresh.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "neatsock: the instance did not start: cannot start: RuntimeError: as the test wants it\n"
    )
    assert fresh.log().count("Traceback") == 5


def test_the_keeper_ignores_a_hangup(fresh: Instance) -> None:
    fresh.up()
    before = fresh.quick_status()
    os.kill(before["keeper"]["pid"], signal.SIGHUP)
    os.kill(before["neatd"]["pid"], signal.SIGKILL)  # handled after the signal
    wait_until(
        lambda: fresh.quick_status().get("neatd", before["neatd"]) != before["neatd"],
        "another neatd, of the same keeper",
    )
    assert fresh.quick_status()["keeper"] == before["keeper"]
    assert [r["pid"] for r in fresh.quick_status()["replicas"]] == [
        r["pid"] for r in before["replicas"]
    ]


NO_ROOM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
static int none(const char *what)
{
	errno = EAGAIN;
	return !access(what, F_OK);
}
pid_t fork(void) { return none(DIR "/fork") ? -1 : ((pid_t (*)(void))dlsym(RTLD_NEXT, "fork"))(); }
int socketpair(int d, int t, int p, int *pair)
{
	int (*real)(int, int, int, int *);
	*(void **)&real = dlsym(RTLD_NEXT, "socketpair");
	return none(DIR "/socketpair") ? -1 : real(d, t, p, pair);
}
"""


@pytest.mark.parametrize("what", ["fork", "socketpair"])
def test_no_room_for_a_successor(fresh: Instance, native: Path, tmp_path: Path, what: str) -> None:
    """The keeper tries again until there is some; nobody else ends."""
    mine = tmp_path / "native"
    shutil.copytree(native, mine)
    (mine / "real").mkdir()
    (mine / "neat-keeper").rename(mine / "real/neat-keeper")
    source, library = tmp_path / "none.c", tmp_path / "none.so"
    source.write_text(NO_ROOM)
    build = ["gcc", "-shared", "-fPIC", f'-DDIR="{tmp_path}"', str(source), "-o", str(library)]
    subprocess.run(build, check=True)
    (mine / "neat-keeper").write_text(
        f'#!/bin/sh\nLD_PRELOAD={library} exec {mine}/real/neat-keeper "$@"\n'
    )
    (mine / "neat-keeper").chmod(0o755)
    fresh.env["NEATSOCK_NATIVE"] = str(mine)
    fresh.up("--replicas", "2")
    before = fresh.quick_status()
    (tmp_path / what).touch()
    for pid in (before["neatd"]["pid"], before["replicas"][1]["pid"], before["standby"]["pid"]):
        if pid:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fresh.log().count("cannot start neatd") >= 2, "the keeper tries again")
    assert alive(before["keeper"]["pid"]) and alive(before["replicas"][0]["pid"])
    (tmp_path / what).unlink()

    def whole() -> bool:
        found = fresh.quick_status()
        states = [r["state"] for r in found.get("replicas", [])]
        return states == ["ready"] * 2 and bool(found["standby"]["pid"])

    wait_until(whole, "all run again")
    assert fresh.quick_status()["keeper"] == before["keeper"]
    assert fresh.quick_status()["replicas"][0]["pid"] == before["replicas"][0]["pid"]


def test_a_planned_replacement_is_called_so(fresh: Instance) -> None:
    fresh.up()
    assert fresh.cli("upgrade", "--name", "t").returncode == 0
    (one,) = fresh.status()["replicas"]
    assert (one["last_death"], one["restarts"]) == ("planned", 1)
    assert "restarted once, last as planned, ready" in fresh.cli("status", "--name", "t").stdout
    os.kill(one["pid"], signal.SIGKILL)

    def replaced() -> bool:
        found = fresh.quick_status()["replicas"][0]
        return (found["last_death"], found["state"]) == ("outside", "ready")

    wait_until(replaced, "another death has another name")
