# ruff: noqa: E501 - programs in strings
"""neatd stopped, or killed again and again, under load: attached programs notice nothing (contract P2)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..long import TIMES
from ..system.programs import Site, free_port, need, nginx, redis, serving
from .rig import Rig, stopped, wait_until

# A process for each connection, as inetd and socketserver.ForkingMixIn do it: many more than an
# application has process entries.
FORKING = """
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
print(a.getsockname()[1], flush=True)
while True:
    s, _ = a.accept()
    if os.fork() == 0:
        a.close()
        while data := s.recv(1000): s.sendall(data)
        s.close(); os._exit(0)
    s.close()
"""
CALLER = """
import socket, sys, time
port, seconds, least = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
def call(n):
    c = socket.create_connection(("127.0.0.1", port), 20); c.settimeout(20)
    for k in range(3):
        sent = b"%d" % (n * 10 + k); c.sendall(sent); got = c.recv(100)
        assert got == sent, (sent, got)
    c.shutdown(socket.SHUT_WR); assert c.recv(1) == b""; c.close()
call(0); print("ready", flush=True); sys.stdin.readline()
end = time.monotonic() + seconds; n = 0
while time.monotonic() < end or n < least:
    n += 1; call(n)
print(n)
"""


AWAY_S = 2 * TIMES  # neatd is stopped for so long


@contextmanager
def forking(rig: Rig) -> Iterator[str]:
    server = rig.world.start(sys.executable, "-c", FORKING, stdout=subprocess.PIPE)
    assert server.stdout
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


@contextmanager
def calling(rig: Rig, *args: str) -> Iterator[subprocess.Popen[str]]:
    caller = rig.world.start(
        sys.executable, "-c", CALLER, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert caller.stdout
    try:
        assert caller.stdout.readline() == "ready\n"
        yield caller
    finally:
        caller.kill()
        caller.wait()


def test_forking_server_while_neatd_is_stopped(rig: Rig) -> None:
    """Entries of dead processes are freed by the living."""
    with forking(rig) as port, calling(rig, port, str(AWAY_S), "400") as caller:
        with stopped(rig.pids()["neatd"]):
            assert int(caller.communicate("\n", timeout=180)[0]) >= 400
        rig.world.run(sys.executable, "-c", CALLER, port, "0", "20", input="\n")
    wait_until(lambda: not rig.status()["apps"], "all applications are gone")


def test_a_new_program_waits_for_a_stopped_neatd(rig: Rig) -> None:
    with forking(rig) as port:
        with stopped(rig.pids()["neatd"]):
            caller = rig.world.start(
                sys.executable,
                "-c",
                CALLER,
                port,
                "0",
                "1",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            wait_until(lambda: asks(caller.pid), "it waits for the answer")
        assert caller.communicate("\n", timeout=30)[0] == "ready\n1\n"


def asks(pid: int) -> bool:
    """It has a connection (the first socket of such a program) and sleeps."""
    try:
        fds = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # closed between our two looks
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return any(fd.startswith("socket:") for fd in fds) and state == "S"


@pytest.mark.parametrize("what", ["nginx", "redis"])
def test_servers_while_neatd_is_stopped(rig: Rig, scratch: Path, what: str) -> None:
    site = Site(scratch / "site", b"small" * 4, b"")
    site.root.mkdir()
    (site.root / "small").write_bytes(site.small)
    port = free_port()
    if what == "nginx":
        command = nginx(2)(site, port)
        load = [
            need("wrk"),
            "-t1",
            "-c16",
            f"-d{AWAY_S + 1}s",
            f"http://127.0.0.1:{port}/small",
        ]
    else:
        command = redis(site, port)
        count = str(AWAY_S * 20000)
        load = [
            need("redis-benchmark"),
            "-p",
            str(port),
            "-c",
            "20",
            "-n",
            count,
            "-t",
            "get",
            "-q",
        ]
    with serving(rig.world, command, port, scratch / "server.log"):
        client = rig.world.start(*load, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        name = Path(load[0]).name
        wait_until(lambda: any(a["name"] == name for a in rig.status()["apps"]), "it is attached")
        with stopped(rig.pids()["neatd"]):
            out = client.communicate(timeout=AWAY_S + 120)[0]
    assert client.returncode == 0, out
    assert "requests in" in out or "requests per second" in out, out
    assert "errors" not in out and "Non-2xx" not in out and "rror:" not in out, out


def test_neatd_killed_twenty_times(rig: Rig) -> None:
    with forking(rig) as port, calling(rig, port, "5", "200") as caller:
        assert caller.stdin and caller.stdout
        caller.stdin.write("\n")
        caller.stdin.flush()
        for _ in range(20):
            os.kill(rig.pids()["neatd"], signal.SIGKILL)
            rig.world.run(sys.executable, "-c", CALLER, port, "0", "2", input="\n")
        assert int(caller.stdout.readline()) >= 200
    wait_until(lambda: (s := rig.status()) and not s["apps"], "all applications are gone")
