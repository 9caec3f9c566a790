"""Replicas killed under load, and a daemon that is stopped: what programs notice of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from ..system.programs import Site, free_port, lighttpd, need
from .rig import Bystander, Rig, stopped, wait_until


@pytest.fixture
def site(scratch: Path) -> Site:
    root = scratch / "www"
    root.mkdir()
    made = Site(root, b"twenty bytes of text", os.urandom(1 << 20))
    (root / "small.txt").write_bytes(made.small)
    (root / "large.bin").write_bytes(made.large)
    for path in (scratch, root):
        path.chmod(0o755)
    return made


# Keeps connections under load for ever; one line for each end, with the errno that told of it.
LOAD = """
import errno, os, socket, sys, threading
def say(*words): os.write(1, (" ".join(words) + "\\n").encode())
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
def serve(s):
    try:
        while data := s.recv(65536): s.sendall(data)
        say("server EOF")
    except OSError as err:
        say("server", errno.errorcode[err.errno])
    s.close()
def accept():
    while True:
        threading.Thread(target=serve, args=[a.accept()[0]], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
going = threading.Barrier(5)
def client():
    first = True
    while True:
        try:
            s = socket.create_connection(a.getsockname(), 10)
        except OSError:
            continue    # its replica died under the handshake
        s.settimeout(None)
        try:
            while True:
                sent = os.urandom(30000); s.sendall(sent)
                got = s.recv(30000, socket.MSG_WAITALL)
                if got != sent:
                    if not sent.startswith(got): say("WRONG")
                    say("client EOF" if not s.recv(1) else "client WRONG"); break
                if first: first = False; going.wait()
        except OSError as err:
            say("client", errno.errorcode.get(err.errno, str(err)))
        s.close()
for _ in range(4): threading.Thread(target=client, daemon=True).start()
going.wait()
say("loaded")
threading.Event().wait()
"""


def more_than(lines: list[str], n: int) -> bool:
    return len(lines) > n


def test_connections_of_a_killed_replica_are_reset(stateless1: Rig) -> None:
    """Every blocked or busy call of both ends ends with ECONNRESET (or EPIPE after it)."""
    load = stateless1.world.start(sys.executable, "-c", LOAD, stdout=subprocess.PIPE)
    assert load.stdout
    lines: list[str] = []

    def read() -> None:
        assert load.stdout
        lines.extend(line.strip() for line in iter(load.stdout.readline, ""))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(3):
            wait_until(lambda: "loaded" in lines, "the load runs")
            epoch = stateless1.epochs()[0]
            before = len(lines)
            os.kill(stateless1.pids()["replica0"], signal.SIGKILL)
            stateless1.ready(0, epoch + 1)
            wait_until(partial(more_than, lines, before + 7), f"8 ends are reset: {lines}")
            witness = Bystander(stateless1.world)
            witness.lively()
            witness.close()
    finally:
        load.kill()
        reader.join()
    ends = set(lines) - {"loaded"}
    assert ends <= {
        f"{who} {how}" for who in ("client", "server") for how in ("ECONNRESET", "EPIPE")
    }


def curl(rig: Rig, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return rig.world.run(need("curl"), "-sS", "--max-time", "20", *options, url, check=False)


@pytest.mark.parametrize("replicas", [1, 2])
def test_twenty_kills_under_lighttpd(
    replicas: int, request: pytest.FixtureRequest, site: Site, scratch: Path
) -> None:
    """The server is never restarted; the new incarnation has its listener back within a second."""
    rig: Rig = request.getfixturevalue(f"rig{replicas}")
    port = free_port()
    log = (scratch / "log").open("w")
    server = rig.world.start(*lighttpd(site, port), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    took = []
    try:
        wait_until(lambda: curl(rig, f"{url}/small.txt").stdout == site.small.decode(), "lighttpd")
        for kill in range(20):
            victim = kill % replicas
            epoch = rig.epochs()[victim]
            os.kill(rig.pids()[f"replica{victim}"], signal.SIGKILL)
            begin = time.monotonic()
            wait_until(
                lambda: curl(rig, f"{url}/small.txt").stdout == site.small.decode(), "an answer"
            )
            took.append(time.monotonic() - begin)
            rig.ready(victim, epoch + 1)
        out = scratch / "large"
        for _ in range(2 * replicas):
            done = curl(rig, f"{url}/large.bin", "-o", str(out))
            assert done.returncode == 0, done.stderr
            assert out.read_bytes() == site.large
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()
        log.close()
    # The contract says a second; the median is safe from one slow start of curl.
    assert sorted(took)[len(took) // 2] < 1, took


# 16 connections, so that both replicas have some; each line of input makes one round trip on each.
BOTH = """
import errno, socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
pairs = []
for _ in range(16):
    c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
    s.settimeout(10); pairs.append((c, s))
for line in sys.stdin:
    result = ""
    for c, s in pairs:
        try:
            c.sendall(b"ping"); assert s.recv(4, socket.MSG_WAITALL) == b"ping"
            s.sendall(b"pong"); assert c.recv(4, socket.MSG_WAITALL) == b"pong"
            result += "."
        except ConnectionResetError:
            result += "R"
        except BrokenPipeError:
            result += "P"
        except TimeoutError:
            result += "T"
    print(result, flush=True)
"""


def test_the_other_replica_notices_nothing(stateless2: Rig) -> None:
    """One of two is killed 10 times: connections of the other one are never reset."""
    program = stateless2.world.start(
        sys.executable, "-c", BOTH, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def rounds() -> str:
        assert program.stdin and program.stdout
        program.stdin.write("\n")
        program.stdin.flush()
        return program.stdout.readline().strip()

    try:
        assert rounds() == "." * 16
        other = stateless2.pids()["replica1"]
        alive = ""
        for _ in range(10):
            epoch = stateless2.epochs()[0]
            os.kill(stateless2.pids()["replica0"], signal.SIGKILL)
            while_down = rounds()
            stateless2.ready(0, epoch + 1)
            result = rounds()
            assert "T" not in while_down + result
            now = result.replace("P", "R")
            assert not alive or alive == now
            alive = now
        assert 0 < alive.count(".") < 16, "each replica had some"
        assert stateless2.pids()["replica1"] == other
    finally:
        program.kill()
        program.communicate()


LISTENER_LIVES = """
import errno, os, socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
def talk():
    c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
    c.sendall(b"hello"); assert s.recv(5, socket.MSG_WAITALL) == b"hello"
    s.close(); assert c.recv(1) == b""; c.close()
talk()
print("ready", flush=True); sys.stdin.readline()
for _ in range(200): talk()
pids = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        talk()
        grandchild = os.fork()
        if grandchild == 0:
            talk(); os._exit(0)
        os._exit(os.waitpid(grandchild, 0)[1])
    pids.append(pid)
for pid in pids: assert os.waitpid(pid, 0)[1] == 0
s = socket.socket(); s.close(); e = a.dup(); e.close()
talk()
print("done", flush=True); sys.stdin.readline()
if os.fork() == 0:
    b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen(); talk(); os._exit(0)
assert os.wait()[1] == 0
b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen()
print("end", flush=True)
"""


def test_neatd_is_stopped(rig: Rig) -> None:
    """Attached programs go on with connect, accept, close, fork; the rest waits for neatd."""
    witness = Bystander(rig.world)
    program = rig.world.start(
        sys.executable, "-c", LISTENER_LIVES, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdin and program.stdout
    assert program.stdout.readline() == "ready\n"
    with stopped(rig.pids()["neatd"]):
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "done\n"
        witness.lively(200)
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.communicate(timeout=30)[0] == "end\n"
    assert program.returncode == 0
    witness.lively()
    witness.close()
    assert witness.broken == []


NAMED = """
import signal, socket, sys
signal.signal(signal.SIGALRM, lambda *_: None)
a = socket.create_server(("127.0.0.1", 0)); print("ready", flush=True)
sys.stdin.readline()
c = socket.socket(); c.setblocking(False); c.connect_ex(a.getsockname())
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
name = c.getsockname()
signal.setitimer(signal.ITIMER_REAL, 0)
c.settimeout(None); c.connect_ex(a.getsockname())
print(name[1] > 0, name == a.accept()[1], flush=True)
"""


def test_name_of_a_connection_while_its_replica_is_stopped(scratch: Path) -> None:
    """getsockname() waits for a port that only the replica chooses; its successor does."""
    rig = Rig(scratch, 1, "--stopped", "0.5")
    try:
        program = rig.world.start(
            sys.executable, "-c", NAMED, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert program.stdin and program.stdout
        assert program.stdout.readline() == "ready\n"
        os.kill(rig.pids()["replica0"], signal.SIGSTOP)
        assert program.communicate("\n", timeout=30)[0] == "True True\n"
    finally:
        rig.down()
