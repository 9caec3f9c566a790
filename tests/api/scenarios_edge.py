"""Edges of what the library sees: duplicated epoll sets, wrong pointers, inherited sockets."""

from __future__ import annotations

import fcntl
import os
import select
import sys

from .tools import bits, pair, scenario, until

# ---- numbers of an epoll set ----


def seen(ep: select.epoll, seconds: float = 5) -> list[tuple[int, str]]:
    return [(data, bits(events)) for data, events in ep.poll(seconds)]


def duplicates(fd: int) -> list[int]:
    spare = os.open("/dev/null", os.O_RDONLY)
    return [
        os.dup(fd),
        os.dup2(fd, spare),
        fcntl.fcntl(fd, fcntl.F_DUPFD, 100),
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100),
    ]


@scenario
def epoll_dup_shares() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    others = [select.epoll.fromfd(fd) for fd in duplicates(ep.fileno())]
    c.send(b"x")
    for other in [ep, *others]:
        print([(data == d.fileno(), what) for data, what in seen(other)])
    d.recv(1)
    print([other.poll(0.01) for other in [ep, *others]])
    others[0].unregister(d)
    c.send(b"x")
    print([other.poll(0.05) for other in [ep, *others]])
    others[1].register(d, select.EPOLLIN)
    print([len(seen(other)) for other in [ep, *others]])


@scenario
def epoll_dup_outlives() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    others = [select.epoll.fromfd(fd) for fd in duplicates(ep.fileno())]
    ep.close()
    for i, other in enumerate(others):
        c.send(b"x")
        print([(data == d.fileno(), what) for data, what in seen(other)])
        d.recv(1)
        if i % 2:
            other.close()
        else:  # something else sits on the number now
            os.dup2(os.open("/dev/null", os.O_RDONLY), other.fileno())


@scenario
def epoll_dup_replaces() -> None:
    """A set that lost its last number to dup2() of another set is gone."""
    c, d = pair()
    first, second = select.epoll(), select.epoll()
    first.register(d, select.EPOLLIN)
    os.dup2(second.fileno(), first.fileno())
    c.send(b"x")
    print(first.poll(0.05), second.poll(0.05))
    first.register(d, select.EPOLLIN)
    print(len(seen(first)), len(seen(second)))


@scenario
def epoll_number_again() -> None:
    """close_range() ends a set; what has its number next is another one."""
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    number = ep.fileno()
    os.closerange(number, number + 1)
    c.send(b"x")
    again = select.epoll()
    print(again.fileno() == number, again.poll(0.05))
    again.register(d, select.EPOLLIN)
    print(len(seen(again)))


@scenario
def epoll_inherited() -> None:
    """Only events of the program's own registrations reach a child or a new image."""
    c, d = pair()
    r, w = os.pipe()
    ep = select.epoll()
    ep.register(r, select.EPOLLIN)
    ep.register(d, select.EPOLLIN)
    c.send(b"x")
    print(until(lambda: len(ep.poll(0)) == 1))
    d.recv(1)
    os.write(w, b"x")
    code = (
        "import select,sys; e = select.epoll.fromfd(int(sys.argv[1]));"
        "print([d == int(sys.argv[2]) for d, _ in e.poll(5)], flush=True)"
    )
    for fork_only in (True, False):
        fd = os.dup(ep.fileno())
        os.set_inheritable(fd, True)
        pid = os.fork()
        if pid == 0 and fork_only:
            print([data == r for data, _ in select.epoll.fromfd(fd).poll(5)], flush=True)
            os._exit(0)
        elif pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", code, str(fd), str(r)])
        print(os.waitpid(pid, 0)[1])
