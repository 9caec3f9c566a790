"""Readiness: poll, select, epoll."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import signal
import socket
import struct
import threading
import time

from .tools import asleep, bits, die_in, listener, pair, revents, say, scenario, settled, until


@scenario
def poll_mixed() -> None:
    c, d = pair()
    r, w = os.pipe()
    p = select.poll()
    p.register(d, select.POLLIN)
    p.register(r, select.POLLIN)
    print(p.poll(0))
    threading.Timer(0.02, os.write, [w, b"x"]).start()
    print([fd == r for fd, _ in p.poll(5000)])
    os.read(r, 1)
    threading.Timer(0.02, c.send, [b"y"]).start()
    print([fd == d.fileno() for fd, _ in p.poll(5000)])
    os.write(w, b"z")
    until(lambda: len(p.poll(0)) == 2)
    print(len(p.poll(0)))
    d.recv(1)
    os.read(r, 1)
    start = time.monotonic()
    print(p.poll(30), time.monotonic() - start >= 0.029)


@scenario
def select_call() -> None:
    c, d = pair()
    r, w = os.pipe()
    print([len(x) for x in select.select([d, r], [c, w], [d], 0)])
    c.send(b"x")
    until(lambda: select.select([d], [], [], 0)[0])
    print([len(x) for x in select.select([d, r], [c], [c], 0)])
    c.close()
    d.recv(1)
    settled(d, "IN|OUT|RDHUP|RDNORM|WRNORM")
    print([len(x) for x in select.select([d], [d], [d], 5)])


@scenario
def epoll_level() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN | select.EPOLLRDHUP)
    print(ep.poll(0))
    c.send(b"abc")
    print([bits(e) for _, e in ep.poll(5)], [bits(e) for _, e in ep.poll(0)])
    d.recv(1)
    print([bits(e) for _, e in ep.poll(0)])
    d.recv(10)
    print(ep.poll(0))
    say("register twice", ep.register, d, select.EPOLLIN)
    ep.modify(d, select.EPOLLIN | select.EPOLLOUT)
    print([bits(e) for _, e in ep.poll(0)])
    ep.modify(d, 0)
    print(ep.poll(0))
    c.close()
    until(lambda: revents(d) != "OUT|WRNORM")
    ep.modify(d, select.EPOLLIN | select.EPOLLRDHUP)
    print([bits(e) for _, e in ep.poll(1)])
    say("unregister", ep.unregister, d)
    say("unregister", ep.unregister, d)
    say("modify", ep.modify, d, 1)
    print(ep.poll(0))


@scenario
def epoll_edge() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN | select.EPOLLET)
    c.send(b"abc")
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.01))
    c.send(b"def")
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.01))
    d.recv(2)
    print(ep.poll(0.01))
    ep.modify(d, select.EPOLLIN | select.EPOLLET)
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.01))
    d.recv(100)
    c.close()
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.01))


@scenario
def epoll_oneshot() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN | select.EPOLLONESHOT)
    c.send(b"abc")
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.01))
    c.send(b"def")
    print(ep.poll(0.01))
    ep.modify(d, select.EPOLLIN | select.EPOLLONESHOT)
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.01))


@scenario
def epoll_mixed() -> None:
    c, d = pair()
    r, w = os.pipe()
    ep = select.epoll()
    ep.register(r, select.EPOLLIN)
    ep.register(d, select.EPOLLIN)
    threading.Timer(0.02, c.send, [b"x"]).start()
    print([fd == d.fileno() for fd, _ in ep.poll(5)])
    d.recv(1)
    threading.Timer(0.02, os.write, [w, b"x"]).start()
    print([fd == r for fd, _ in ep.poll(5)])
    c.send(b"y")
    seen: set[int] = set()
    until(lambda: seen.update(fd for fd, _ in ep.poll(0)) or len(seen) == 2)
    print(len(seen))


@scenario
def epoll_closed_and_dup() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    c.send(b"x")
    print(len(ep.poll(5)))
    d.close()
    print(ep.poll(0.01))
    e, g = pair()
    ep.register(g, select.EPOLLIN)
    h = g.dup()
    ep.register(h, select.EPOLLIN)
    e.send(b"x")
    until(lambda: len(ep.poll(0)) == 2)
    print(len(ep.poll(0)))


@scenario
def epoll_before_connect() -> None:
    a = listener()
    ep = select.epoll()
    s = socket.socket()
    s.setblocking(False)
    ep.register(s, select.EPOLLIN | select.EPOLLOUT)
    print([bits(e) for _, e in ep.poll(1)])
    s.connect_ex(a.getsockname())
    until(lambda: [bits(e) for _, e in ep.poll(0.1)] == ["OUT"])
    print([bits(e) for _, e in ep.poll(1)])
    ep.register(a, select.EPOLLIN)
    print(any(fd == a.fileno() for fd, _ in ep.poll(1)))


def heard(s: socket.socket, ep: select.epoll) -> bool:
    """Whether a set that has seen all there was hears of a connection for this listener."""
    until(lambda: not ep.poll(0))
    with socket.create_connection(s.getsockname()):
        return bool(ep.poll(5))


@scenario
def epoll_listens_again() -> None:
    a = listener()
    ep = select.epoll()
    ep.register(a, select.EPOLLIN | select.EPOLLET)
    print(heard(a, ep))
    a.shutdown(socket.SHUT_RD)
    a.listen(5)
    print(heard(a, ep))


@scenario
def epoll_connection_listens() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(c, select.EPOLLIN | select.EPOLLET)
    d.send(b"x")
    print(len(ep.poll(5)))
    ctypes.CDLL(None).connect(c.fileno(), bytes(16), 16)  # AF_UNSPEC
    c.bind(("127.0.0.1", 0))
    c.listen(5)
    print(heard(c, ep))


@scenario
def epoll_two_threads() -> None:
    pairs = [pair() for _ in range(2)]
    results: list[bool] = []

    def wait(server: socket.socket) -> None:
        ep = select.epoll()
        ep.register(server, select.EPOLLIN)
        got = ep.poll(5)
        results.append([fd for fd, _ in got] == [server.fileno()] and server.recv(1) == b"t")

    jobs = [threading.Thread(target=wait, args=[d]) for _, d in pairs]
    for j in jobs:
        j.start()
    for j in jobs:
        asleep(j)
    for c, _ in reversed(pairs):
        c.send(b"t")
    for j in jobs:
        j.join(10)
    print(results)


ROUNDED = {
    "x86_64": [281]
}  # epoll_pwait: whole milliseconds; elsewhere libc's epoll_wait() is it, too


@scenario
def epoll_parts_of_a_millisecond() -> None:
    """A set of kernel descriptors only, whose time-out the kernel gets as it is."""
    r, w = os.pipe()
    ep, mixed = select.epoll(), select.epoll()
    ep.register(r, select.EPOLLIN)
    mixed.register(r, select.EPOLLIN)
    c, d = pair()
    mixed.register(d, select.EPOLLIN)
    wait = ctypes.CDLL(None).epoll_pwait2
    events = ctypes.create_string_buffer(12 * 4)
    pid = os.fork()
    if pid == 0:
        die_in(ROUNDED.get(platform.machine(), []))
        for one in (ep, mixed):
            for ns in (1, 300_000, 1_500_000):
                timeout = struct.pack("qq", 0, ns)
                print(wait(one.fileno(), events, 4, timeout, None), flush=True)
        os.write(w, b"x")
        print([wait(one.fileno(), events, 4, timeout, None) for one in (ep, mixed)], flush=True)
        os._exit(0)
    print(os.waitpid(pid, 0)[1], c.send(b"x"))


class Unmasked:
    """ppoll() and the like for input, with a mask that lets SIGUSR1 in, which is pending."""

    def __init__(self, fds: list[int]) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fds = fds
        self.ep = select.epoll()
        for fd in fds:
            self.ep.register(fd, select.EPOLLIN)
        self.nothing = ctypes.create_string_buffer(128)

    def ppoll(self, t: bytes | None) -> int:
        fds = b"".join(struct.pack("ihh", fd, select.POLLIN, 0) for fd in self.fds)
        at = ctypes.create_string_buffer(fds)
        return int(self.libc.ppoll(at, len(self.fds), t, self.nothing))

    def pselect(self, t: bytes | None) -> int:
        reads = (ctypes.c_ulong * 16)()
        for fd in self.fds:
            reads[fd // 64] |= 1 << fd % 64
        return int(self.libc.pselect(max(self.fds) + 1, reads, None, None, t, self.nothing))

    def epoll_pwait(self, t: bytes | None) -> int:
        timeout = 0 if t == bytes(16) else 1
        events = ctypes.create_string_buffer(16 * 4)
        return int(self.libc.epoll_pwait(self.ep.fileno(), events, 4, timeout, self.nothing))

    def epoll_pwait2(self, t: bytes | None) -> int:
        events = ctypes.create_string_buffer(16 * 4)
        return int(self.libc.epoll_pwait2(self.ep.fileno(), events, 4, t, self.nothing))

    def each(self, ns: int) -> None:
        for call in (self.ppoll, self.pselect, self.epoll_pwait, self.epoll_pwait2):
            signal.raise_signal(signal.SIGUSR1)
            ctypes.set_errno(0)
            rc = call(struct.pack("qq", 0, ns))
            why = errno.errorcode.get(ctypes.get_errno(), "") if rc < 0 else ""
            left = signal.sigtimedwait([signal.SIGUSR1], 0) is not None
            print(call.__name__, ns, rc, why, "still pending" if left else "delivered")


@scenario
def mask_that_lets_a_pending_signal_in() -> None:
    """Whatever the time-out; not to epoll with none, nor where something is ready."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    c, d = pair()
    r, w = os.pipe()
    sets = ([d.fileno()], [r], [d.fileno(), r])
    for fds in sets:
        for ns in (0, 1, 1_000_000):
            Unmasked(fds).each(ns)
    c.send(b"x")
    until(lambda: revents(d, 0, select.POLLIN) != "0")
    os.write(w, b"x")
    for fds in sets:
        for ns in (0, 1_000_000):
            Unmasked(fds).each(ns)
