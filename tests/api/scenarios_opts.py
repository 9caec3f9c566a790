"""Options, ioctl() and what is asked for with odd values: the answers, and that they hold."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import tempfile
import threading
from typing import Any

from .tools import asleep, listener, outcome, pair, revents, say, scenario, settled, sink, until

LIBC = ctypes.CDLL(None, use_errno=True)
SOL, TCP, IP = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP


def call(name: str, *args: Any) -> str:
    result = getattr(LIBC, name)(*args)
    return str(result) if result >= 0 else errno.errorcode[ctypes.get_errno()]


# ---- SO_RCVLOWAT ----


def fill(s: socket.socket, n: int) -> threading.Thread:
    """Sends n bytes, or as many as somebody takes."""

    def send() -> None:
        try:
            s.sendall(bytes(n))
        except OSError:
            pass

    job = threading.Thread(target=send)
    job.start()
    return job


def low_mark(low: int, rcvbuf: int) -> None:
    with listener() as a:
        if rcvbuf:
            a.setsockopt(SOL, socket.SO_RCVBUF, rcvbuf)
        c = socket.create_connection(a.getsockname())
        d, _ = a.accept()
    d.setsockopt(SOL, socket.SO_RCVLOWAT, low)
    print(low, rcvbuf, d.getsockopt(SOL, socket.SO_RCVLOWAT))
    job = fill(c, 4_000_000)
    with select.epoll() as ep:
        ep.register(d, select.EPOLLIN)
        print("epoll", len(ep.poll(20)), "poll", revents(d, 20_000, select.POLLIN))
    print("peek", len(d.recv(low, socket.MSG_PEEK)) > 0)
    d.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
    print("got", len(d.recv(2000)))
    d.close()
    job.join()
    c.close()


@scenario
def low_mark_beyond_the_window() -> None:
    """Linux enlarges the buffer for it; where it may not, the mark is what the buffer holds."""
    for low in (2000, 65_535, 100_000, 1_000_000):
        low_mark(low, 0)
    for low in (2000, 30_000, 1_000_000):
        for rcvbuf in (4000, 40_000):
            low_mark(low, rcvbuf)


@scenario
def low_mark_counts() -> None:
    """Below the mark nothing is readable."""
    c, d = pair()
    d.setsockopt(SOL, socket.SO_RCVLOWAT, 5)
    c.send(b"abc")
    until(lambda: struct.unpack("i", fcntl.ioctl(d, 0x541B, bytes(4)))[0] == 3)
    print(revents(d))
    c.send(b"de")
    print(revents(d, 10_000, select.POLLIN), d.recv(10))


# ---- nothing to read, nothing to write ----


def nothing(s: socket.socket) -> None:
    """In libc: Python's own recv(0) does not ask."""
    buf, none = ctypes.create_string_buffer(8), (ctypes.c_size_t * 2)(0, 0)
    fd = s.fileno()
    print([call("read", fd, buf, 0), call("readv", fd, none, 1), call("readv", fd, none, 0)])
    print([call("recv", fd, buf, 0, flags) for flags in (0, socket.MSG_PEEK, socket.MSG_WAITALL)])
    print(outcome(s.recvfrom, 0), outcome(s.recvmsg, 0))
    print([call("writev", fd, none, n) for n in (0, 1)])


@scenario
def nothing_to_read() -> None:
    """read(2) of nothing is 0 whatever the socket, recv(2) of nothing asks for data."""
    nothing(socket.socket())
    nothing(listener())
    c, d = pair()
    for s in (c, d):
        s.setblocking(False)
    nothing(c)
    d.send(b"abc")
    until(lambda: revents(c, 0, select.POLLIN) == "IN")
    nothing(c)
    say("all there", c.recv, 9)
    d.shutdown(socket.SHUT_WR)
    until(lambda: revents(c, 0, select.POLLRDHUP) == "RDHUP")
    nothing(c)
    d.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    d.close()
    until(lambda: "HUP" in revents(c).split("|"))
    nothing(c)


@scenario
def nothing_to_read_of_a_reset() -> None:
    c, d = pair()
    d.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    d.close()
    until(lambda: "HUP" in revents(c).split("|"))
    say("read", os.read, c.fileno(), 0)
    say("writev", os.writev, c.fileno(), [])
    say("recvfrom", c.recvfrom, 0)
    say("recvfrom", c.recvfrom, 0)


@scenario
def reset_behind_the_end() -> None:
    """Receiving stays at the end of the file; the error is for who sends, or asks."""
    for ask in (True, False):
        c, d = pair()
        d.send(b"abc")
        d.shutdown(socket.SHUT_WR)
        until(lambda c=c: revents(c, 0, select.POLLRDHUP) == "RDHUP")
        d.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
        d.close()
        until(lambda c=c: "HUP" in revents(c).split("|"))
        print(c.recv(9), outcome(c.recv, 9), outcome(c.recvfrom, 9), revents(c))
        if ask:
            say("error", c.getsockopt, SOL, socket.SO_ERROR)
        say("send", c.send, b"x", socket.MSG_NOSIGNAL)
        print(outcome(c.recv, 9), c.getsockopt(SOL, socket.SO_ERROR), revents(c))


@scenario
def nothing_to_read_waits() -> None:
    c, d = pair()
    job = threading.Thread(target=lambda: say("recvfrom", c.recvfrom, 0))
    job.start()
    asleep(job)
    d.send(b"abc")
    job.join()
    say("all there", c.recv, 9)


@scenario
def nothing_of_datagrams() -> None:
    a, b = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
    a.bind(("127.0.0.1", 0))
    b.connect(a.getsockname())
    for s in (a, b):
        s.setblocking(False)
        say("read", os.read, s.fileno(), 0)
        say("readv", os.readv, s.fileno(), [])
        say("writev", os.writev, s.fileno(), [])
    say("recvfrom", a.recvfrom, 0)
    b.send(b"abc")
    settled(a, "IN|OUT|RDNORM|WRNORM")
    say("read", os.read, a.fileno(), 0)
    say("all there", a.recv, 9)
    say("no other", a.recv, 9)


# ---- ioctl ----


@scenario
def interface_ioctls() -> None:
    """netdevice(7): a stream socket will do, whatever its state."""
    requests = {
        "SIOCGIFADDR": 0x8915,
        "SIOCGIFNETMASK": 0x891B,
        "SIOCGIFBRDADDR": 0x8919,
        "SIOCGIFFLAGS": 0x8913,
        "SIOCGIFMTU": 0x8921,
        "SIOCGIFHWADDR": 0x8927,
        "SIOCGIFINDEX": 0x8933,
        "SIOCGIFNAME": 0x8910,
        "SIOCGSTAMP": 0x8906,
        "SIOCUNIXFILE": 0x89E0,
    }
    c, _ = pair()
    for s in (socket.socket(), listener(), c, socket.socket(type=socket.SOCK_DGRAM)):
        for name, request in requests.items():
            for interface in (b"lo", b"none"):
                argument = interface.ljust(16, b"\0") + struct.pack("i", 1) + bytes(20)
                say(f"{name} {interface.decode()}", fcntl.ioctl, s, request, argument)
        buf = ctypes.create_string_buffer(4096)
        conf = struct.pack("iP", 4096, ctypes.addressof(buf))
        n = struct.unpack("iP", fcntl.ioctl(s, 0x8912, conf))[0]
        names = {buf.raw[i : i + 16].rstrip(b"\0") for i in range(0, n, 40)}
        print("SIOCGIFCONF", n % 40, b"lo" in names)
        say("mark", fcntl.ioctl, s, 0x8905, bytes(4))


# ---- values ----


def put(s: socket.socket, level: int, name: int, value: bytes) -> str:
    return call("setsockopt", s.fileno(), level, name, value, len(value))


def value_of(s: socket.socket, level: int, name: int, n: int = 4) -> str:
    return outcome(s.getsockopt, level, name, n)


@scenario
def option_values() -> None:
    """What is rounded, masked, put back to its default or refused."""
    c, _ = pair()
    values: list[tuple[int, int, tuple[int, ...]]] = [
        (IP, socket.IP_TOS, (1, 3, 16, 255, 256, 1000, -1, 8, 0)),
        (IP, socket.IP_TTL, (9, 0, 256, -2, 255, -1)),
        (SOL, socket.SO_BROADCAST, (1, 5, 0)),
        (SOL, socket.SO_DONTROUTE, (1, 5, 0)),
        (SOL, socket.SO_PRIORITY, (6, 7, 1000, -1, 0)),
        (SOL, 14, (1, 0)),  # SO_BSDCOMPAT
        (TCP, socket.TCP_LINGER2, (7, 0, 119, 120, 121, -1, -100)),
        (TCP, socket.TCP_DEFER_ACCEPT, (1, 2, 3, 4, 7, 8, 100, 128, 300, 3600, 0, -1)),
    ]
    for s in (socket.socket(), listener(), c):
        for level, name, tried in values:
            for value in tried:
                done = put(s, level, name, struct.pack("i", value))
                print(level, name, value, done, value_of(s, level, name))
                if name == socket.IP_TOS:
                    print("priority", value_of(s, SOL, socket.SO_PRIORITY))


@scenario
def option_lengths() -> None:
    """ip(7): a byte will do, both ways; and the length is looked at when the option is known."""
    s = socket.socket()
    for level, name in (
        (IP, socket.IP_TOS), (IP, socket.IP_TTL), (IP, 9999), (TCP, socket.TCP_NODELAY),
        (SOL, socket.SO_KEEPALIVE), (SOL, socket.SO_LINGER), (17, 1), (41, 26), (9999, 1),
    ):  # fmt: skip
        for n in (0, 1, 2, 3, 4, 5, 8):
            done = put(s, level, name, bytes(n)), put(s, level, name, b"\x09" * n)
            print(level, name, n, done, value_of(s, level, name, n))


@scenario
def options_that_are_off() -> None:
    """What is not to be had says so, and may be set to what it is."""
    s = socket.socket()
    numbers = {
        SOL: (1, 11, 29, 35, 36, 40, 42, 44, 60),
        IP: (6, 7, 8, 10, 11, 12, 13, 15, 19, 20, 21, 24),
        TCP: (16, 17, 23, 25, 27, 30, 36),
    }
    for level, names in numbers.items():
        for name in names:
            got = value_of(s, level, name)
            print(level, name, got, value_of(s, level, name, 1))
            was = s.getsockopt(level, name, 4)
            print(put(s, level, name, was), value_of(s, level, name) == got)


@scenario
def linger_that_is_off() -> None:
    s = socket.socket()
    for on, seconds in ((1, 5), (0, 7), (1, 0), (0, 9)):
        s.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", on, seconds))
        say("linger", s.getsockopt, SOL, socket.SO_LINGER, 8)


@scenario
def timeouts_by_their_new_names() -> None:
    s = socket.socket()
    for old, new in ((20, 66), (21, 67)):
        s.setsockopt(SOL, new, struct.pack("ll", 3, 500_000))
        say("both", lambda old=old, new=new: [s.getsockopt(SOL, n, 16) for n in (old, new)])


@scenario
def peer_name() -> None:
    c, d = pair()
    b = socket.socket(type=socket.SOCK_DGRAM)
    b.bind(("127.0.0.1", 0))
    u = socket.socket(type=socket.SOCK_DGRAM)
    say("no peer", u.getsockopt, SOL, 28, 16)
    u.connect(b.getsockname())
    for s, peer in ((c, d), (d, c), (u, b)):
        raw = s.getsockopt(SOL, 28, 16)
        print(struct.unpack("!xxH", raw[:4])[0] == peer.getsockname()[1], raw[4:8])
        print([len(s.getsockopt(SOL, 28, n)) for n in (2, 8)], outcome(s.getsockopt, SOL, 28, 17))
    say("no peer", socket.socket().getsockopt, SOL, 28, 16)


@scenario
def file_status_flags() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(type=kind)
        for flags in (os.O_NONBLOCK, 0, os.O_NONBLOCK | os.O_RDWR, os.O_DIRECT):
            say("set", fcntl.fcntl, s, fcntl.F_SETFL, flags)
            say("get", fcntl.fcntl, s, fcntl.F_GETFL)


# ---- connect() to AF_UNSPEC ----


def disconnect(s: socket.socket) -> str:
    return call("connect", s.fileno(), ctypes.create_string_buffer(16), 16)


def again(s: socket.socket) -> None:
    """As a listener, then as a client."""
    say("listen", s.listen)
    c = socket.create_connection(s.getsockname())
    d, _ = s.accept()
    c.send(b"hi")
    say("hears", d.recv, 2)
    print(disconnect(s))
    with listener() as other:
        say("connect", s.connect, other.getsockname())
        e, name = other.accept()
    print("name", name == s.getsockname())
    print(disconnect(s), outcome(s.getpeername), outcome(e.recv, 1))


@scenario
def listener_disconnected() -> None:
    """It stops listening, and can be used again; a port that it asked for stays its own."""
    with listener() as a:
        port = a.getsockname()[1]
    for asked in (0, port):
        s = socket.socket()
        s.setsockopt(SOL, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", asked))
        s.listen()
        name = s.getsockname()
        c = socket.create_connection(name)
        print(settled(s, "IN|RDNORM"), disconnect(s), revents(s), s.getsockname() == name)
        until(lambda c=c: "HUP" in revents(c).split("|"))
        say("queued", c.recv, 1)
        s.setblocking(False)
        say("accept", s.accept)
        s.setblocking(True)
        say("listens", s.getsockopt, SOL, socket.SO_ACCEPTCONN)
        say("refused", socket.socket().connect_ex, name)
        say("shutdown", s.shutdown, socket.SHUT_RDWR)
        print(revents(s), disconnect(s), revents(s))
        if asked:
            say("bind", s.bind, ("127.0.0.1", 0))
        again(s)


# ---- sendfile ----


def copy(out: socket.socket, fd: int, offset: int | None, count: int) -> str:
    at = ctypes.byref(ctypes.c_long(offset)) if offset is not None else None
    return call("sendfile", out.fileno(), fd, at, ctypes.c_size_t(count))


@scenario
def sendfile_inputs() -> None:
    c, d = pair()
    read_end, write_end = os.pipe()
    epoll, datagrams = select.epoll(), socket.socket(type=socket.SOCK_DGRAM)
    with tempfile.NamedTemporaryFile() as f:
        f.write(b"0123456789")
        f.flush()
        inputs = {
            "file": f.fileno(),
            "memory": os.memfd_create("x"),
            "event": LIBC.eventfd(1, os.O_NONBLOCK),
            "epoll": epoll.fileno(),
            "pipe": read_end,
            "other end": write_end,
            "directory": os.open("/", os.O_RDONLY),
            "path": os.open(f.name, os.O_PATH),
            "for writing": os.open(f.name, os.O_WRONLY),
            "zero": os.open("/dev/zero", os.O_RDONLY),
            "ours": d.fileno(),
            "datagrams": datagrams.fileno(),
            "bad": 9999,
        }
        for label, fd in inputs.items():
            got = {(at, n): copy(c, fd, at, n) for at in (None, 0, 3, -1) for n in (0, 5)}
            print(label, got)
        os.lseek(f.fileno(), 0, os.SEEK_SET)
        for label, fd in inputs.items():
            got = {(at, n): copy(socket.socket(), fd, at, n) for at in (None, 0) for n in (0, 5)}
            print(label, "unconnected", got if label != "memory" else "")
        print("wrong offset", call("sendfile", c.fileno(), f.fileno(), ctypes.c_void_p(1), 5))
    c.setblocking(False)
    until(lambda: copy(c, inputs["zero"], 0, 1 << 20) == "EAGAIN")
    for label in ("event", "pipe", "directory"):
        print("full", label, copy(c, inputs[label], 0, 5))
    c.close()
    print(sink(d)[:20])
