# ruff: noqa: E501 - programs in strings
"""A greedy program meets its limit, with an errno; another one on the same instance goes on."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from neatsock.instance import InstanceError, ask, connection

from .rig import Bystander, Rig, wait_until


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    limits = ["--app-sockets", "40", "--app-ports", "8", "--apps-max", "5", "--app-buffers", "1"]
    made = Rig(tmp_path_factory.mktemp("limits"), 1, "--stopped", "0", *limits)
    yield made
    made.down()


@pytest.fixture
def other(small: Rig) -> Iterator[Bystander]:
    made = Bystander(small.world)
    yield made
    made.lively()
    made.close()
    assert made.broken == []


def said(rig: Rig, program: str) -> str:
    done = rig.world.run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return done.stdout


CONNECTIONS = """
import errno, socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(100)
held = []
while True:
    c = socket.socket()
    try:
        c.settimeout(1); c.connect(listener.getsockname())
    except OSError as err:
        print(errno.errorcode[err.errno] if err.errno else "timeout"); break
    held.append((c, listener.accept()[0]))
print(len(held))
for c, s in held:
    c.sendall(b"x"); assert s.recv(1) == b"x"
c.close(); held.pop()[0].close()
"""


def test_connections(small: Rig, other: Bystander) -> None:
    """40 slots: a listener, both ends of 19 connections, and a connect() whose SYN is not taken."""
    assert said(small, CONNECTIONS).split() == ["timeout", "19"]


ONLY_CONNECTS = """
import errno, select, socket, sys
held = [socket.socket() for _ in range(100)]
for c in held:
    c.setblocking(False); c.connect_ex(("127.0.0.1", int(sys.argv[1])))
poller = select.poll()
beyond = held[40:]
for c in beyond:
    poller.register(c, select.POLLOUT)
seen = set()
while len(seen) < len(beyond):
    for fd, _ in poller.poll(5000):
        seen.add(fd); poller.unregister(fd)
print({errno.errorcode[c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)] for c in beyond})
"""


def test_connect(small: Rig, other: Bystander) -> None:
    """ENOBUFS, as Linux's tcp_connect() when there is no memory for it."""
    server = "import socket, time\na = socket.socket(); a.bind(('127.0.0.1', 0)); a.listen(9)\nprint(a.getsockname()[1], flush=True)\ntime.sleep(99)"
    process = small.world.start(sys.executable, "-c", server, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        port = process.stdout.readline().strip()
        done = small.world.run(sys.executable, "-c", ONLY_CONNECTS, port)
        assert done.stdout == "{'ENOBUFS'}\n", done.stderr
    finally:
        process.kill()
        process.wait()


PORTS = """
import errno, socket
held = []
for _ in range(10):
    s = socket.socket()
    try:
        s.bind(("127.0.0.1", 0)); held.append(s)
    except OSError as err:
        print(errno.errorcode[err.errno], len(held)); s.close()
try:
    socket.socket().listen(1)
except OSError as err:
    print(errno.errorcode[err.errno])
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0))   # as the kernel's, which has ports
u.sendto(b"x", u.getsockname()); assert u.recv(9) == b"x"
held.pop().close()
a = socket.socket(); a.listen(1); print("again")
"""


def test_ports(small: Rig, other: Bystander) -> None:
    assert said(small, PORTS) == "ENOBUFS 8\nENOBUFS 8\nENOBUFS\nagain\n"
    assert "holds 8 ports, the limit: --app-ports" in small.log()


def test_programs(small: Rig, other: Bystander) -> None:
    """Who finds no room is told why and stays with the kernel; when one ends, there is room."""
    sleeper = "import socket, sys\ns = socket.socket(); s.bind(('127.0.0.1', 0)); print('up', flush=True)\nsys.stdin.read()"
    running = []
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            p = small.world.start(
                sys.executable, "-c", sleeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(p.wait)
            stack.callback(p.kill)
            assert p.stdout and p.stdout.readline() == "up\n"
            running.append(p)
        late = small.world.run(sys.executable, "-c", "import socket; socket.socket().listen()")
        assert "room for 5 programs" in late.stderr and "stay with the kernel" in late.stderr
        running[0].kill()
        wait_until(lambda: len(small.status()["apps"]) == 4, "the program is gone")

        def fits() -> bool:
            program = "import socket; socket.socket().listen()"
            return small.world.run(sys.executable, "-c", program).stderr == ""

        wait_until(fits, "there is room again")


def test_control_connections(small: Rig, other: Bystander) -> None:
    """One process that opens connections and says nothing leaves room for others."""
    with contextlib.ExitStack() as stack:
        for _ in range(128):
            stack.enter_context(connection(small.path))
        with pytest.raises(InstanceError, match="has 128 connections here that it does not use"):
            ask(small.path, {"cmd": "status"})
        done = small.cli("status")
        assert done.returncode == 0, done.stderr
    wait_until(lambda: small.status(), "there is room again")


BUFFERS = """
import socket
listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
listener.bind(("127.0.0.1", 0)); listener.listen(10)
total = []
for _ in range(8):
    c = socket.create_connection(listener.getsockname()); s = listener.accept()[0]
    c.settimeout(0.2); n = 0
    try:
        while True: n += c.send(bytes(65536))
    except TimeoutError:
        pass
    total.append((c, s, n))
for c, s, n in total:
    s.settimeout(5); left = n
    while left: left -= len(s.recv(min(left, 65536)))
print(total[0][2] > 400000, {n <= 2 * 65536 for _, _, n in total[4:]})
"""


def test_buffers(small: Rig, other: Bystander) -> None:
    """Beyond the budget connections work with the buffers that everybody has."""
    assert said(small, BUFFERS) == "True {True}\n"


def test_a_server_that_never_accepts(small: Rig, other: Bystander) -> None:
    """Its queue holds what listen() asked for, its limit bounds all queues; SYNs are dropped as in Linux."""
    program = """
import errno, socket
listeners = [socket.socket() for _ in range(3)]
for l in listeners: l.bind(("127.0.0.1", 0)); l.listen(4096)
held, outcomes = [], set()
for l in listeners * 12:
    c = socket.socket(); c.settimeout(0.2); held.append(c)
    try:
        c.connect(l.getsockname()); outcomes.add("connected")
    except OSError as err:
        outcomes.add(errno.errorcode[err.errno] if err.errno else "timeout")
print(sorted(outcomes))
"""
    assert said(small, program) == "['ENOBUFS', 'connected', 'timeout']\n"


def test_silent_connections_make_room() -> None:
    """The oldest goes; who has said something stays. (No instance: clients.Server alone.)"""
    import asyncio

    from replicas import clients, limits

    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = str(Path(directory) / "s")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(path)
        listener.listen(128)
        server = clients.Server(listener, loop, lambda c, r: True, lambda c: None)
        # Of many processes, as far as the server can see.
        pids = iter(range(10**6))
        clients.Connection.peer, real = lambda self: (next(pids), 0), clients.Connection.peer  # type: ignore[method-assign]
        try:
            ends = []
            for _ in range(limits.SILENT_MOST + 3):
                end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                end.connect(path)
                ends.append(end)
                loop.call_soon(loop.stop)
                loop.run_forever()
            assert len(server.connections) == limits.SILENT_MOST
            assert [end.recv(1) for end in ends[:3]] == [b"", b"", b""]
            ends[3].setblocking(False)
            with pytest.raises(BlockingIOError):
                ends[3].recv(1)
        finally:
            clients.Connection.peer = real  # type: ignore[method-assign]
            for connection_ in list(server.connections):
                server.drop(connection_)
            loop.remove_reader(listener.fileno())
            listener.close()
            loop.close()
