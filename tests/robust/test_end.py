"""The instance ends while programs use it: nobody hangs, each hears of it once, all go on with the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .rig import Rig, wait_until

# Blocks in the calls that argv names, each in a thread (one alone: in the only thread there is), and
# says what each of them returned. "after" says what a program can do once the instance has ended.
PROGRAM = r"""
import errno, os, select, socket, sys, threading

say_lock = threading.Lock()
def say(*words):
    with say_lock:
        print(*words, flush=True)

def result(f, *args):
    try:
        return f(*args)
    except OSError as err:
        return errno.errorcode[err.errno]

server = socket.create_server(("127.0.0.1", 0), backlog=64)
keep = []
def connection():
    client = socket.create_connection(server.getsockname())
    keep.append((client, server.accept()[0]))
    return client

def full():
    "An address where connect() blocks."
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    keep.append(listener)
    for _ in range(40):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(listener.getsockname())
        keep.append(s)
    return listener.getsockname()

def names(bits):
    return "+".join(n for n in ("IN", "HUP", "ERR") if bits & getattr(select, "POLL" + n))

def polled(kind, fd, *more):
    if kind == "poll":
        p = select.poll()
    else:
        p = select.epoll()
    p.register(fd, select.POLLIN)
    for other in more:
        p.register(other, select.POLLIN)
    keep.append(p)
    return names(p.poll()[0][1])

pipe = os.pipe()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
calls = {
    "recv": lambda s=connection(): s.recv(1),
    "send": lambda s=connection(): s.sendall(bytes(64 << 20)),
    "accept": lambda: server.accept(),
    "connect": lambda at=full(): socket.create_connection(at),
    "poll": lambda s=connection(): polled("poll", s),
    "poll+pipe": lambda s=connection(): polled("poll", s, pipe[0]),
    "select": lambda s=connection(): len(select.select([s], [], [])[0]),
    "epoll": lambda s=connection(): polled("epoll", s),
    "epoll+pipe": lambda s=connection(): polled("epoll", s, pipe[0]),
    "datagram": lambda: datagrams.recv(9).decode(),
}
unbound, bound = socket.socket(), socket.socket()
bound.bind(("127.0.0.1", 0))
wanted = sys.argv[1:]

def talk():
    a = socket.create_server(("127.0.0.1", 0))
    c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
    c.sendall(b"through")
    return s.recv(10).decode()

def after():
    say("new", result(talk))
    say("connect-ours", result(socket.create_connection, server.getsockname()))
    say("bind", result(unbound.bind, ("127.0.0.1", 0)))
    say("listen", result(bound.listen))
    say("relisten", result(server.listen))
    p = select.poll(); p.register(server)
    e = select.epoll(); e.register(server)
    say("listener", p.poll(0), e.poll(0))
    say("fork", os.waitpid(os.fork() or os._exit(7), 0)[1] >> 8)
    say("close", result(lambda: [s.close() for s in (server, bound, unbound, *keep[0])]))

def kernel_datagram():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"onwards", datagrams.getsockname())

say("ready")
if len(wanted) == 1:
    say(wanted[0], result(calls[wanted[0]]))
    sys.exit()
threads = {n: threading.Thread(target=lambda n=n: say(n, result(calls[n])), daemon=True) for n in wanted}
for t in threads.values():
    t.start()
for n, t in threads.items():
    if n != "datagram":
        t.join()
kernel_datagram()
if "datagram" in threads:
    threads["datagram"].join()
after()
"""

RETURNS = {
    "recv": "ECONNRESET",
    "send": "ECONNRESET",
    "accept": "ENETDOWN",
    "connect": "ECONNRESET",
    "poll": "IN+HUP+ERR",
    "poll+pipe": "IN+HUP+ERR",
    "select": "1",
    "epoll": "IN+HUP+ERR",
    "epoll+pipe": "IN+HUP+ERR",
}
AFTER = {
    "new": "through",
    "connect-ours": "ECONNREFUSED",
    "bind": "None",
    "listen": "ENETDOWN",
    "relisten": "ENETDOWN",
    "listener": "[] []",
    "fork": "7",
    "datagram": "onwards",
}


def asleep(pid: int) -> bool:
    """All threads of the process sleep."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all((t / "stat").read_text().rpartition(")")[2].split()[0] == "S" for t in tasks)


class Program:
    def __init__(self, rig: Rig, *calls: str) -> None:
        self.calls = calls
        self.process = rig.world.start(
            sys.executable, "-c", PROGRAM, *calls, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        threads = len(calls) + 1 if len(calls) > 1 else 1
        tasks = f"/proc/{self.process.pid}/task"
        wait_until(
            lambda: len(os.listdir(tasks)) == threads and asleep(self.process.pid), "it blocks"
        )

    def answers(self) -> tuple[dict[str, str], list[str]]:
        """What each call returned; lines on stderr."""
        try:
            out, err = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"{self.calls} hangs after: {out}{err}") from None
        return dict(line.split(" ", 1) for line in out.splitlines()), err.splitlines()


def down(rig: Rig) -> None:
    done = rig.cli("down")
    assert done.returncode == 0, done.stderr


def killed(rig: Rig) -> None:
    os.kill(rig.pids()["keeper"], signal.SIGKILL)


@pytest.mark.parametrize("end", [down, killed])
@pytest.mark.parametrize("replicas", [1, 2])
def test_blocked_programs(scratch: Path, replicas: int, end: Callable[[Rig], None]) -> None:
    """Alone and with other threads; afterwards everything is the kernel's."""
    rig = Rig(scratch, replicas)
    programs = [Program(rig, *RETURNS, "datagram"), *(Program(rig, call) for call in RETURNS)]
    pids = rig.pids()
    try:
        end(rig)
        for program in programs:
            answers, said = program.answers()
            want = {call: RETURNS[call] for call in program.calls if call in RETURNS}
            if len(program.calls) > 1:
                want |= AFTER
                assert answers.pop("close").startswith("[None")
            assert answers == want
            assert len(said) == 1 and said[0].startswith("neatsock: "), said
            assert "has ended" in said[0]
        wait_until(
            lambda: not any(os.path.exists(f"/proc/{p}") for p in pids.values()), "all are gone"
        )
    finally:
        for program in programs:
            program.process.kill()
        rig.down()
