"""Servers whose workers fork, exec, daemonize and are killed, and their replicas are, too."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from ..long import TIMES
from ..waiting import wait_until
from ..worlds import KERNEL, World
from .killing import killing
from .rig import Bystander, Rig
from .test_closing import last_word

PROGRAM = str(Path(__file__).parent / "prefork.py")
SECONDS = 3 * TIMES
RATE = 4.0


def served(world: World, seed: int, seconds: int) -> tuple[str, list[str]]:
    """(port, what the server's processes said on stderr) after some seconds of calls."""
    server = world.start(
        sys.executable, PROGRAM, "serve", str(seed), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        port = server.stdout.readline().strip()
        caller = (sys.executable, PROGRAM, "call", port, str(seed), str(seconds))
        assert last_word(world, *caller)[0] == "calls"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    return port, server.stderr.read().splitlines()


def served_by_ours(rig: Rig) -> None:
    """Each client sees the end; nobody keeps a socket, or loses one that it has inherited."""
    seed = random.SystemRandom().randrange(1 << 16)
    print(f"seed {seed}")
    port, said = served(rig.world, seed, SECONDS)
    assert not [line for line in said if "neatsock" in line]
    wait_until(lambda: len(rig.status().get("apps", "?!")) == 1, "only the bystander is left")
    server = rig.world.start(sys.executable, "-c", AGAIN, port, stderr=subprocess.PIPE)
    assert server.communicate(timeout=20)[1] == ""


def test_workers_that_fork_and_exec_and_are_killed(rig: Rig, bystander: Bystander) -> None:
    served(KERNEL, 1, 1)
    served_by_ours(rig)
    bystander.lively()


def test_workers_and_replicas_are_killed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2)
    try:
        bystander = Bystander(rig.world)
        with killing(rig.path, ("replica", "standby"), RATE) as killer:
            served_by_ours(rig)
        assert len(killer.done) > 1
        bystander.lively()
        bystander.close()
        assert bystander.broken == []
    finally:
        rig.down()


AGAIN = """
import socket, sys
socket.create_server(("127.0.0.1", int(sys.argv[1]))).close()
"""
