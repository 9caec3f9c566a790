"""UDP sockets leave a replica that drains: nothing that is queued is lost, and the replica ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from .rig import Rig, wait_until
from .test_kill_udp import LOAD, all_moved, counts
from .test_scale import gone, scale

# Eight sockets, so that each replica is the home of some, with unread datagrams in all of them.
# "read" reads them and says what came; "talk" has all of them exchange datagrams, some connected.
QUEUED = """
import select, socket, sys
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
for s in socks: s.bind(("127.0.0.1", 0)); s.settimeout(10)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(100):
    for s in socks: sender.sendto(b"%d" % i, s.getsockname())
for s in socks: select.select([s], [], [], 10)
pairs = list(zip(socks[0::2], socks[1::2]))
idle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); idle.bind(("127.0.0.1", 0))
print("ready", flush=True)
# A program takes part when it waits for sockets of ours, or calls: not in the kernel's read().
while select.select([sys.stdin, idle], [], []) and (order := sys.stdin.readline()):
    if order == "read\\n":
        for s in socks:
            got = [int(s.recv(100)) for _ in range(100)]
            assert got == list(range(100)), got
        # Not earlier: what comes from others then is not for a connected socket.
        for a, b in pairs[:2]: a.connect(b.getsockname())
    else:
        for n in range(20):
            for a, b in pairs:
                a.send(b"%d" % n) if (a, b) in pairs[:2] else a.sendto(b"%d" % n, b.getsockname())
                data, where = b.recvfrom(100)
                assert (data, where) == (b"%d" % n, a.getsockname()), (data, where)
                b.sendto(b"back", where)
                assert a.recvfrom(100) == (b"back", b.getsockname())
        for a, b in pairs[:2]: assert a.getpeername() == b.getsockname()
    print("done", flush=True)
"""


def ask(program: subprocess.Popen[str], order: str) -> None:
    assert program.stdin and program.stdout
    program.stdin.write(order + "\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


def start(rig: Rig, code: str) -> subprocess.Popen[str]:
    return rig.world.start(
        sys.executable,
        "-c",
        code,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("when", ["unread", "read"])
def test_bound_sockets_do_not_hold_a_replica(scaled: Rig, when: str) -> None:
    scale(scaled, 4)
    program = start(scaled, QUEUED)
    try:
        assert program.stdout and program.stdout.readline() == "ready\n"
        if when == "read":
            ask(program, "read")
        scale(scaled, 1)
        if when == "unread":
            ask(program, "read")
        ask(program, "talk")
        gone(scaled, 1)
        ask(program, "talk")
        scale(scaled, 4)
        ask(program, "talk")
    finally:
        program.kill()
        program.wait()


def test_scaling_under_datagrams(scaled: Rig) -> None:
    """Clients, connected or not, that wait for their answers: no error, no wrong byte."""
    load = start(scaled, LOAD)
    try:
        wait_until(partial(all_moved, load, [0] * 4), "the load runs")
        for _ in range(3):
            scale(scaled, 4)
            wait_until(partial(all_moved, load, counts(load)), "every client has answers")
            scale(scaled, 1)
            gone(scaled, 1)
            wait_until(partial(all_moved, load, counts(load)), "every client has answers")
    finally:
        load.kill()
        load.wait()


# A sender numbers datagrams, never more than 50 unanswered; the receiver, blocked in the way that
# argv names, tells which came. Both on sockets of their own.
STREAM = """
import os, select, socket, sys, threading
r = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); r.bind(("127.0.0.1", 0))
t = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); t.connect(r.getsockname())
how, seen, credit = sys.argv[1], [0], threading.Semaphore(50)
def receive():
    epoll = select.epoll(); epoll.register(r, select.EPOLLIN)
    pipe = os.pipe(); mixed = select.poll()
    mixed.register(r, select.POLLIN); mixed.register(pipe[0])
    while True:
        if how == "epoll": epoll.poll()
        if how == "poll+pipe": mixed.poll()
        number = int(r.recv(100))
        if number != seen[0]:
            os.write(1, b"LOST %d %d\\n" % (seen[0], number)); os._exit(1)
        seen[0] += 1
        credit.release()
threading.Thread(target=receive, daemon=True).start()
def send():
    n = 0
    while True:
        credit.acquire()
        t.send(b"%d" % n); n += 1
        if n % 500 == 0: threading.Event().wait(0.01)
threading.Thread(target=send, daemon=True).start()
while sys.stdin.readline(): print(seen[0], flush=True)
"""


def received(program: subprocess.Popen[str]) -> int:
    assert program.stdin and program.stdout
    program.stdin.write("\n")
    program.stdin.flush()
    return int(program.stdout.readline())


@pytest.mark.parametrize("how", ["recv", "epoll", "poll+pipe"])
def test_nothing_under_way_is_lost(scaled: Rig, how: str) -> None:
    command = (sys.executable, "-c", STREAM, how)
    scale(scaled, 2)
    programs = [
        scaled.world.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for count in (1, 3, 1, 2):
            scale(scaled, count)
            gone(scaled, count)
            for program in programs:
                before = received(program)
                wait_until(lambda p=program, b=before: received(p) > b + 200, "datagrams come")
    finally:
        for program in programs:
            program.kill()
            program.wait()


# Two processes that share a port (SO_REUSEPORT), with a socket each; two more by fork.
GROUP = """
import os, socket, sys
def bound(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", port))
    return s
first = bound(0); port = first.getsockname()[1]
if os.fork() == 0: first = bound(port)
os.fork()
os.write(1, b"ready %d\\n" % port)
while True:
    data, where = first.recvfrom(100)
    first.sendto(data, where)
"""
ASK = """
import socket, sys
for n in range(200):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.sendto(b"%d" % n, ("127.0.0.1", int(sys.argv[1])))
        assert s.recv(100) == b"%d" % n
print("answered")
"""


def test_a_group_moves_together_and_neatd_dies_meanwhile(scaled: Rig) -> None:
    scale(scaled, 2)
    groups = [start(scaled, GROUP) for _ in range(4)]
    try:
        ports = []
        for group in groups:
            assert group.stdout
            lines = [group.stdout.readline().split() for _ in range(4)]
            assert len({line[1] for line in lines}) == 1
            ports.append(lines[0][1])
        scale(scaled, 1)
        os.kill(scaled.pids()["neatd"], signal.SIGKILL)
        for port in ports:
            assert scaled.world.run(sys.executable, "-c", ASK, port).stdout == "answered\n"
        gone(scaled, 1)
        for port in ports:
            assert scaled.world.run(sys.executable, "-c", ASK, port).stdout == "answered\n"
    finally:
        for group in groups:
            os.killpg(group.pid, signal.SIGKILL)
            group.wait()
