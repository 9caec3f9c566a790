"""One thread closes or changes what another one is in the middle of using."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable

from .tools import FULL_LISTENER, asleep, bits, listener, outside, pair, say, scenario

IN, OUT = select.EPOLLIN, select.EPOLLOUT
LIBC = ctypes.CDLL(None, use_errno=True)
GONE_SETS: list[select.epoll] = []  # closed by their number: they must not close it again


# ---- epoll_wait() in a set that is closed ----


def waits_in(ep: select.epoll, seen: list[object]) -> threading.Thread:
    """A thread that sleeps in one epoll_wait() of the set."""

    def wait() -> None:
        try:
            seen.append([(data, bits(events)) for data, events in ep.poll(5)])
        except OSError as err:
            seen.append(err.errno)

    thread = threading.Thread(target=wait)
    thread.start()
    asleep(thread)
    return thread


def put_elsewhere(fd: int) -> None:
    os.dup2(os.open("/dev/null", os.O_RDONLY), fd)


GONE: dict[str, Callable[[int], object]] = {
    "close": os.close,
    "close_range": lambda fd: os.closerange(fd, fd + 1),
    "dup2": put_elsewhere,
}


def gone_while_waited_in(with_pipe: bool, watched: str) -> None:
    for how, go in GONE.items():
        for by_pipe in (False, True) if with_pipe else (False,):
            c, d = pair()
            r, w = os.pipe()
            ep = select.epoll()
            GONE_SETS.append(ep)
            ep.register(d, IN)
            if with_pipe:
                ep.register(r, IN)
            if watched == "polled":
                select.select([ep], [], [], 0)
            elif watched == "nested":
                outer = select.epoll()
                outer.register(ep.fileno(), IN)
            seen: list[object] = []
            thread = waits_in(ep, seen)
            go(ep.fileno())
            others = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
            # Something stirs, and there is nothing to report: the wait goes on.
            d.send(b"y")
            c.recv(1)
            asleep(thread)
            print(how, by_pipe, thread.is_alive(), seen)
            if by_pipe:
                os.write(w, b"x")
            else:
                c.send(b"x")
            thread.join(10)
            # The numbers differ between the worlds.
            print(str(seen).replace(str(d.fileno()), "d").replace(str(r), "r"))
            for fd in (*others, r, w):
                os.close(fd)


@scenario
def epoll_closed_while_waited_in() -> None:
    gone_while_waited_in(False, "")


@scenario
def epoll_closed_while_waited_in_beside_a_pipe() -> None:
    gone_while_waited_in(True, "")


@scenario
def epoll_closed_while_waited_in_polled() -> None:
    gone_while_waited_in(True, "polled")


@scenario
def epoll_closed_while_waited_in_nested() -> None:
    gone_while_waited_in(True, "nested")


@scenario
def epoll_closed_and_no_event_comes() -> None:
    """The wait ends at its time; who waits next has no set, and the entries are gone with it."""
    c, d = pair()
    for _ in range(3):
        ep = select.epoll()
        GONE_SETS.append(ep)
        ep.register(d, IN)
        number, seen = ep.fileno(), list[object]()

        def wait() -> None:
            seen.append(ep.poll(0.2))  # noqa: B023

        thread = threading.Thread(target=wait)
        thread.start()
        asleep(thread)
        os.close(number)
        thread.join(10)
        print(seen)
        say("next", ep.poll, 0)
        again = select.epoll()
        print(again.fileno() == number, again.poll(0))
        c.send(b"x")
        print(again.poll(0))
        again.register(d, IN)
        print(len(again.poll(5)), d.recv(1))


@scenario
def epoll_closed_by_turns() -> None:
    """Threads add, wait and leave while the set comes and goes under its number."""
    c, d = pair()
    c.send(b"x")
    ep = select.epoll()
    number = ep.fileno()
    stop = False
    event = (ctypes.c_uint32 * 3)(IN, 7, 0)

    def use() -> None:
        out = (ctypes.c_uint32 * 3)()
        while not stop:
            LIBC.epoll_ctl(number, 1, d.fileno(), event)
            LIBC.epoll_wait(number, out, 1, 1)
            LIBC.epoll_ctl(number, 3, d.fileno(), event)
            LIBC.epoll_wait(number, out, 1, 0)
            LIBC.epoll_ctl(number, 2, d.fileno(), event)

    jobs = [threading.Thread(target=use) for _ in range(3)]
    for j in jobs:
        j.start()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        LIBC.close(number)
        while (fd := LIBC.epoll_create1(0)) != number:
            LIBC.close(fd)
    stop = True
    for j in jobs:
        j.join()
    with select.epoll() as last:
        last.register(d, IN)
        print(len(last.poll(5)))


# ---- epoll_ctl() of one descriptor by two threads ----


@scenario
def epoll_ctl_by_two() -> None:
    a = listener()
    ep = select.epoll()
    event = (ctypes.c_uint32 * 3)(IN, 7, 0)
    epfd, fd = ep.fileno(), a.fileno()
    end = time.monotonic() + 2

    def change() -> None:
        while time.monotonic() < end:
            for _ in range(50):
                LIBC.epoll_ctl(epfd, 1, fd, event)
                LIBC.epoll_ctl(epfd, 2, fd, event)

    jobs = [threading.Thread(target=change) for _ in range(2)]
    for j in jobs:
        j.start()
    for j in jobs:
        j.join()
    say("out", ep.unregister, fd)
    ep.register(fd, IN)
    socket.create_connection(a.getsockname())
    print(len(ep.poll(5)))
    a.accept()
    ep.unregister(fd)
    socket.create_connection(a.getsockname())
    print(len(ep.poll(0.1)))


@scenario
def epoll_ctl_against_close() -> None:
    """A descriptor is added while another thread closes it; its number is soon another socket."""
    ep = select.epoll()
    event = (ctypes.c_uint32 * 3)(IN, 7, 0)
    epfd = ep.fileno()
    s = socket.socket()
    fd = s.detach()
    end = time.monotonic() + 2

    def add() -> None:
        while time.monotonic() < end:
            for _ in range(50):
                LIBC.epoll_ctl(epfd, 1, fd, event)

    thread = threading.Thread(target=add)
    thread.start()
    while time.monotonic() < end:
        for _ in range(50):
            LIBC.close(fd)
            LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    thread.join()
    os.close(fd)
    c, d = pair()
    ep.register(d, IN)
    c.send(b"x")
    print([data == d.fileno() for data, _ in ep.poll(5)])


# ---- connect() of a socket that is closed ----


@scenario
def connect_outlived_by_strangers() -> None:
    """connect() to a slow host; meanwhile the socket is closed, and many others come and go."""
    host = outside(FULL_LISTENER, stdin=subprocess.PIPE)
    assert host.stdin and host.stdout
    port = int(host.stdout.readline())
    late = socket.socket()
    fd, results = late.detach(), list[int]()
    thread = threading.Thread(target=lambda: results.append(connect_by_number(fd, port)))
    thread.start()
    asleep(thread)
    os.close(fd)
    for _ in range(65_400):
        LIBC.close(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
    a = listener()
    pairs = [(socket.create_connection(a.getsockname()), a.accept()[0]) for _ in range(200)]
    print("still connecting", thread.is_alive())
    host.stdin.close()
    thread.join(20)
    print("connect", results)
    for c, d in pairs:
        assert c.getpeername() == d.getsockname() and d.getpeername() == c.getsockname()
        c.sendall(b"x")
        assert d.recv(9) == b"x"
    host.kill()
    host.wait()


def connect_by_number(fd: int, port: int) -> int:
    address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), bytes([127, 0, 0, 1]))
    return int(LIBC.connect(fd, address, len(address)))
