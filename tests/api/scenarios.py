"""Scenarios of the socket API. Each prints what it saw; kernel and neatsock must print the same.

Run by test_api.py: `python scenarios.py NAME`. Nothing here knows of neatsock. No ports, no times,
no descriptor numbers are printed: they may differ.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

POLL = {
    "IN": select.POLLIN,
    "PRI": select.POLLPRI,
    "OUT": select.POLLOUT,
    "ERR": select.POLLERR,
    "HUP": select.POLLHUP,
    "NVAL": select.POLLNVAL,
    "RDHUP": select.POLLRDHUP,
    "RDNORM": select.POLLRDNORM,
    "WRNORM": select.POLLWRNORM,
}
ALL_BITS = sum(POLL.values()) & ~select.POLLNVAL
SCENARIOS: dict[str, Callable[[], None]] = {}


def scenario(f: Callable[[], None]) -> Callable[[], None]:
    SCENARIOS[f.__name__] = f
    return f


def bits(mask: int) -> str:
    return "|".join(name for name, bit in POLL.items() if mask & bit) or "0"


def outcome(f: Callable[..., Any], *args: Any) -> str:
    """Value or errno, as text."""
    try:
        value = f(*args)
    except TimeoutError as err:
        return errno.errorcode[err.errno] if err.errno else "timeout"
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    if isinstance(value, bytes) and len(value) > 40:
        return f"{len(value)} bytes {hashlib.sha1(value).hexdigest()[:8]}"
    return repr(value)


def say(label: str, f: Callable[..., Any], *args: Any) -> None:
    print(label, outcome(f, *args))


def revents(s: socket.socket, ms: int = 0, want: int = ALL_BITS) -> str:
    p = select.poll()
    p.register(s, want)
    got = p.poll(ms)
    return bits(got[0][1]) if got else "0"


def until(condition: Callable[[], Any], seconds: float = 5.0) -> bool:
    """A condition with a deadline; False when it did not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def settled(s: socket.socket, want: str) -> str:
    """Readiness once it is `want`, or what it stayed at."""
    until(lambda: revents(s) == want, 2.0)
    return revents(s)


def listener(addr: str = "127.0.0.1", backlog: int = 16) -> socket.socket:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((addr, 0))
    s.listen(backlog)
    return s


def pair() -> tuple[socket.socket, socket.socket]:
    """(client, server side) of a local connection."""
    with contextlib.closing(listener()) as a:
        client = socket.create_connection(a.getsockname(), timeout=5)
        client.settimeout(None)
        server, _ = a.accept()
    return client, server


def sink(s: socket.socket) -> bytes:
    out = bytearray()
    while piece := s.recv(65536):
        out += piece
    return bytes(out)


def pattern(n: int) -> bytes:
    return bytes((i * 7 + i // 251) & 255 for i in range(n))


# ---- states and errno ----


@scenario
def unconnected() -> None:
    s = socket.socket()
    say("recv", s.recv, 1)
    say("recv peek", s.recv, 1, socket.MSG_PEEK)
    say("send", s.send, b"x")
    say("getpeername", s.getpeername)
    say("getsockname", s.getsockname)
    say("shutdown", s.shutdown, socket.SHUT_RDWR)
    say("accept", s.accept)
    print("poll", revents(s))
    say("SO_ERROR", s.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    say("close", s.close)
    say("closed recv", s.recv, 1)


@scenario
def wrong_arguments() -> None:
    say("protocol", socket.socket, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP)
    s = socket.socket()
    say("bind not ours", s.bind, ("192.0.2.1", 0))
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    say("bind twice", s.bind, ("127.0.0.1", 0))
    t = socket.socket()
    say("bind in use", t.bind, s.getsockname())
    s.listen(1)
    say("listen twice", s.listen, 5)
    say("connect on listener", s.connect, ("127.0.0.1", 9))
    say("recv on listener", s.recv, 1)
    say("send on listener", s.send, b"x")
    say("getpeername on listener", s.getpeername)
    say("bind in use by listener", t.bind, s.getsockname())
    c, d = pair()
    say("listen on connection", c.listen, 1)
    say("accept on connection", c.accept)
    say("connect again", c.connect, ("127.0.0.1", 9))
    say("shutdown how", c.shutdown, 7)
    say("urgent", c.recv, 1, socket.MSG_OOB)
    d.close()


@scenario
def refused() -> None:
    with contextlib.closing(listener()) as a:
        address = a.getsockname()
    s = socket.socket()
    say("connect", s.connect, address)
    say("SO_ERROR", s.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    with contextlib.closing(listener()) as a:
        say("connect again", s.connect, a.getsockname())
        say("send", s.send, b"x")


@scenario
def connect_nonblocking() -> None:
    a = listener()
    s = socket.socket()
    s.setblocking(False)
    say("connect_ex", s.connect_ex, a.getsockname())
    print("writable", settled(s, "OUT|WRNORM"))
    say("SO_ERROR", s.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    say("second", s.connect_ex, a.getsockname())
    say("third", s.connect_ex, a.getsockname())
    print("same port", a.accept()[1] == s.getsockname())


@scenario
def connect_refused_nonblocking() -> None:
    with contextlib.closing(listener()) as a:
        address = a.getsockname()
    s = socket.socket()
    s.setblocking(False)
    print("connect_ex", s.connect_ex(address) in (errno.EINPROGRESS, errno.ECONNREFUSED))
    until(lambda: revents(s) != "0")
    say(
        "SO_ERROR or consumed", lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, 111)
    )


@scenario
def accept_nonblocking() -> None:
    a = listener()
    a.setblocking(False)
    say("accept", a.accept)
    print("poll", revents(a))
    c = socket.create_connection(a.getsockname())
    print("poll", settled(a, "IN|RDNORM"))
    d, address = a.accept()
    print("peer", address == c.getsockname(), d.getsockname() == a.getsockname())
    print("blocking is not inherited", d.getblocking(), os.get_inheritable(d.fileno()))
    say("accept", a.accept)
    print("poll", revents(a))


@scenario
def accept_order() -> None:
    a = listener()
    clients = [socket.create_connection(a.getsockname()) for _ in range(8)]
    accepted = sorted(a.accept()[1] for _ in clients)
    print("all", accepted == sorted(c.getsockname() for c in clients))


@scenario
def wildcard() -> None:
    a = listener("0.0.0.0")
    print("name", a.getsockname()[0])
    port = a.getsockname()[1]
    for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0"):
        c = socket.create_connection((address, port))
        d, _ = a.accept()
        print(address, d.getsockname()[0], c.getpeername()[0], c.getsockname()[0])


@scenario
def reuse_after_close() -> None:
    a = listener()
    address = a.getsockname()
    c = socket.create_connection(address)
    d, _ = a.accept()
    d.close()
    c.close()
    a.close()
    b = socket.socket()
    b.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    say("bind", b.bind, address)
    say("listen", b.listen, 1)
    e = socket.create_connection(address)
    say("works", lambda: (b.accept()[0].send(b"x"), e.recv(1)))


@scenario
def bind_before_connect() -> None:
    a = listener()
    c = socket.socket()
    c.bind(("127.0.0.1", 0))
    mine = c.getsockname()
    c.connect(a.getsockname())
    print("kept", c.getsockname() == mine, a.accept()[1] == mine)


# ---- bytes ----


@scenario
def bytes_both_ways() -> None:
    c, d = pair()
    say("send", c.send, b"hello")
    say("recv", d.recv, 100)
    say("sendall", d.sendall, b"world" * 10)
    say("recv 7", c.recv, 7)
    say("recv rest", c.recv, 100)
    say("empty send", c.send, b"")
    d.setblocking(False)
    say("nothing", d.recv, 10)
    say("zero", d.recv, 0)


@scenario
def flags() -> None:
    c, d = pair()
    c.sendall(b"0123456789")
    print("poll", settled(d, "IN|OUT|RDNORM|WRNORM"))
    say("peek", d.recv, 4, socket.MSG_PEEK)
    say("peek again", d.recv, 20, socket.MSG_PEEK)
    say("trunc", d.recv, 3, socket.MSG_TRUNC)
    say("rest", d.recv, 100)
    say("dontwait", d.recv, 1, socket.MSG_DONTWAIT)
    threading.Timer(0.05, c.sendall, [b"b" * 5]).start()
    c.sendall(b"a" * 5)
    say("waitall", d.recv, 10, socket.MSG_WAITALL)
    c.sendall(b"xyz")
    c.shutdown(socket.SHUT_WR)
    say("waitall short", d.recv, 10, socket.MSG_WAITALL)
    say("waitall eof", d.recv, 10, socket.MSG_WAITALL)
    say("more", d.send, b"m", socket.MSG_MORE)
    say("then", d.send, b"n")
    say("got", c.recv, 2, socket.MSG_WAITALL)


@scenario
def vectors() -> None:
    c, d = pair()
    say("writev", os.writev, c.fileno(), [b"abc", b"", b"defg"])
    parts = [bytearray(2), bytearray(0), bytearray(3), bytearray(10)]
    say("readv", os.readv, d.fileno(), parts)
    print(parts)
    say("sendmsg", c.sendmsg, [b"one", b"two"])
    say("recvmsg", lambda: d.recvmsg(100)[0:3])
    c.send(b"xyz")
    say("recvfrom", lambda: d.recvfrom(100)[0])
    say("sendto on connected", c.sendto, b"q", ("127.0.0.1", 1))
    say("recv_into", d.recv_into, bytearray(5))


@scenario
def read_and_write() -> None:
    c, d = pair()
    say("os.write", os.write, c.fileno(), b"by number")
    say("os.read", os.read, d.fileno(), 100)
    say("pread", os.pread, d.fileno(), 10, 0)
    say("lseek", os.lseek, d.fileno(), 0, 0)
    say("file", lambda: d.makefile("wb").write(b"from a file"))


@scenario
def large_transfer() -> None:
    c, d = pair()
    data = pattern(5_000_000)
    sender = threading.Thread(target=lambda: (c.sendall(data), c.shutdown(socket.SHUT_WR)))
    sender.start()
    print(hashlib.sha1(sink(d)).hexdigest() == hashlib.sha1(data).hexdigest())
    sender.join()


@scenario
def large_both_ways() -> None:
    c, d = pair()
    data = pattern(2_000_000)
    got: dict[str, bytes] = {}
    jobs = [
        threading.Thread(target=lambda: (c.sendall(data), c.shutdown(socket.SHUT_WR))),
        threading.Thread(target=lambda: (d.sendall(data), d.shutdown(socket.SHUT_WR))),
        threading.Thread(target=lambda: got.update(c=sink(c))),
        threading.Thread(target=lambda: got.update(d=sink(d))),
    ]
    for j in jobs:
        j.start()
    for j in jobs:
        j.join()
    print(got["c"] == data, got["d"] == data)


@scenario
def full_buffer() -> None:
    c, d = pair()
    c.setblocking(False)
    sent = 0
    while True:
        try:
            sent += c.send(b"z" * 65536)
        except BlockingIOError:
            if settled(c, "OUT|WRNORM") != "OUT|WRNORM":
                break
    print("poll", revents(c))
    print("filled", sent >= 65536)
    got = 0
    while got < sent:
        got += len(d.recv(65536))
    print("writable", settled(c, "OUT|WRNORM"))
    say("send", c.send, b"again")
    say("recv", d.recv, 100)


@scenario
def sendfile() -> None:
    data = pattern(3_000_000)
    with tempfile.TemporaryFile() as f:
        f.write(data)
        f.flush()
        c, d = pair()
        result: list[str] = []

        def send() -> None:
            at = 0
            while at < len(data):
                n = os.sendfile(c.fileno(), f.fileno(), at, len(data) - at)
                if n == 0:
                    break
                at += n
            result.append(str(at == len(data)))
            c.close()

        job = threading.Thread(target=send)
        job.start()
        print(sink(d) == data)
        job.join()
        print(result)
        e, g = pair()
        f.seek(10)
        say("position", os.sendfile, e.fileno(), f.fileno(), None, 20)
        say("moved", f.tell)
        say("got", g.recv, 100)
        say("past the end", os.sendfile, e.fileno(), f.fileno(), 5_000_000, 20)
        say("socket as input", os.sendfile, e.fileno(), g.fileno(), None, 1)


@scenario
def queue_sizes() -> None:
    c, d = pair()
    c.sendall(b"12345678")
    until(lambda: revents(d) != "OUT|WRNORM")
    value = array.array("i", [0])
    fcntl.ioctl(d, termios.FIONREAD, value)
    print("FIONREAD", value[0])
    until(lambda: fcntl.ioctl(c, termios.TIOCOUTQ, value) == 0 and value[0] == 0)
    print("TIOCOUTQ", value[0])
    a = listener()
    say("FIONREAD on listener", fcntl.ioctl, a, termios.FIONREAD, value)


# ---- ends ----


@scenario
def end_of_file() -> None:
    c, d = pair()
    c.sendall(b"last")
    c.close()
    print("poll", settled(d, "IN|OUT|RDHUP|RDNORM|WRNORM"))
    say("recv", d.recv, 100)
    say("eof", d.recv, 100)
    say("eof again", d.recv, 100)
    say("send", d.send, b"to nobody")
    print("poll after reset", settled(d, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"))


@scenario
def shutdown_halves() -> None:
    c, d = pair()
    say("WR", c.shutdown, socket.SHUT_WR)
    say("send", c.send, b"x")
    print("peer poll", settled(d, "IN|OUT|RDHUP|RDNORM|WRNORM"))
    print("own poll", revents(c))
    say("peer eof", d.recv, 10)
    say("peer sends", d.send, b"still")
    say("recv", c.recv, 10)
    say("peer WR", d.shutdown, socket.SHUT_WR)
    print("poll", settled(c, "IN|OUT|HUP|RDHUP|RDNORM|WRNORM"))
    say("eof", c.recv, 10)
    say("again", c.shutdown, socket.SHUT_WR)


@scenario
def shutdown_read() -> None:
    c, d = pair()
    d.send(b"before")
    until(lambda: "IN" in revents(c).split("|"))
    say("RD", c.shutdown, socket.SHUT_RD)
    print("poll", revents(c))
    say("recv", c.recv, 10)
    say("recv", c.recv, 10)
    say("send", c.send, b"x")
    say("peer", d.recv, 10)


@scenario
def shutdown_wakes_reader() -> None:
    c, _d = pair()
    result: list[str] = []
    job = threading.Thread(target=lambda: result.append(outcome(c.recv, 10)))
    job.start()
    say("shutdown", c.shutdown, socket.SHUT_RDWR)
    job.join(5)
    print(result)


@scenario
def shutdown_while_connecting() -> None:
    a = listener(backlog=0)
    queued = []
    while True:
        c = socket.socket()
        c.setblocking(False)
        c.connect_ex(a.getsockname())
        if not until(lambda s=c: revents(s, 0, select.POLLOUT) != "0", 0.3):  # type: ignore[misc]
            break  # the queue is full, nobody answers
        queued.append(c)
    say("shutdown", c.shutdown, socket.SHUT_RDWR)
    print(until(lambda: {"OUT", "ERR", "HUP"} <= set(revents(c).split("|"))))
    say("error", c.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    d = socket.socket()
    result: list[str] = []
    job = threading.Thread(target=lambda: result.append(outcome(d.connect, a.getsockname())))
    job.daemon = True
    job.start()
    print(until(lambda: outcome(d.shutdown, socket.SHUT_RDWR) == "None"))
    job.join(5)
    print(result)


@scenario
def reset() -> None:
    c, d = pair()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()
    print("poll", settled(d, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"))
    say("recv", d.recv, 10)
    say("recv", d.recv, 10)
    say("send", d.send, b"x")
    say("getpeername", d.getpeername)


@scenario
def reset_by_unread_data() -> None:
    c, d = pair()
    d.sendall(b"never read")
    until(lambda: "IN" in revents(c).split("|"))
    c.close()
    print("poll", settled(d, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"))
    say("SO_ERROR", d.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    say("SO_ERROR", d.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    print("poll", revents(d))
    say("recv", d.recv, 10)


@scenario
def listener_close() -> None:
    a = listener()
    c = socket.create_connection(a.getsockname())
    a.close()
    print("poll", settled(c, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"))
    say("recv", c.recv, 1)


@scenario
def sigpipe() -> None:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        c, _ = pair()
        c.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            c.send(b"x", socket.MSG_NOSIGNAL)
        c.send(b"x")
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print("signal", os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPIPE)


# ---- time ----


@scenario
def timeouts() -> None:
    c, d = pair()
    d.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20000))
    say("RCVTIMEO", d.recv, 10)
    print(d.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == struct.pack("ll", 0, 20000))
    c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 20000))
    with contextlib.suppress(BlockingIOError):
        while True:
            c.send(b"z" * 100000)
    print("SNDTIMEO")
    a = listener()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20000))
    say("accept", a.accept)
    d.settimeout(0.01)
    e, g = pair()
    g.settimeout(0.02)
    say("settimeout", g.recv, 1)
    e.close()


@scenario
def interrupted() -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    _c, d = pair()
    a = listener()
    signal.signal(signal.SIGALRM, stop)
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("recv", lambda: d.recv(1)),
        ("accept", lambda: a.accept()),
        ("poll", lambda: revents(d, 5000, select.POLLIN)),
        ("select", lambda: select.select([d], [], [], 5)),
        ("epoll", lambda: ep.poll(5)),
    ]
    for name, call in calls:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            print(name, call())
        except Stop:
            print(name, "interrupted")


# ---- options ----


@scenario
def options() -> None:
    s = socket.socket()
    tcp, sol = socket.IPPROTO_TCP, socket.SOL_SOCKET
    names = [
        (sol, "SO_TYPE"), (sol, "SO_DOMAIN"), (sol, "SO_PROTOCOL"), (sol, "SO_ACCEPTCONN"),
        (sol, "SO_ERROR"), (sol, "SO_REUSEADDR"), (sol, "SO_REUSEPORT"), (sol, "SO_KEEPALIVE"),
        (sol, "SO_OOBINLINE"), (sol, "SO_BROADCAST"), (sol, "SO_RCVLOWAT"), (sol, "SO_SNDLOWAT"),
        (sol, "SO_PRIORITY"), (tcp, "TCP_NODELAY"), (tcp, "TCP_CORK"), (tcp, "TCP_KEEPIDLE"),
        (tcp, "TCP_KEEPINTVL"), (tcp, "TCP_KEEPCNT"), (tcp, "TCP_SYNCNT"), (tcp, "TCP_LINGER2"),
        (tcp, "TCP_DEFER_ACCEPT"), (tcp, "TCP_USER_TIMEOUT"), (tcp, "TCP_QUICKACK"),
        (tcp, "TCP_MAXSEG"), (socket.IPPROTO_IP, "IP_TOS"), (socket.IPPROTO_IP, "IP_TTL"),
    ]  # fmt: skip
    for level, name in names:
        say(name, s.getsockopt, level, getattr(socket, name))
    for level, name, value in [
        (sol, "SO_REUSEADDR", 5), (sol, "SO_KEEPALIVE", 1), (tcp, "TCP_NODELAY", 3),
        (tcp, "TCP_KEEPIDLE", 10), (tcp, "TCP_KEEPIDLE", 0), (tcp, "TCP_KEEPINTVL", 40000),
        (tcp, "TCP_KEEPCNT", 4), (tcp, "TCP_USER_TIMEOUT", 1234), (sol, "SO_RCVLOWAT", 7),
        (socket.IPPROTO_IP, "IP_TOS", 16), (socket.IPPROTO_IP, "IP_TTL", 0),
        (socket.IPPROTO_IP, "IP_TTL", 9), (tcp, "TCP_MAXSEG", 10), (sol, "SO_RCVBUF", 1000),
        (sol, "SO_SNDBUF", 1000), (sol, "SO_SNDBUF", 50000), (tcp, "TCP_LINGER2", 7),
    ]:  # fmt: skip
        say(f"set {name} {value}", s.setsockopt, level, getattr(socket, name), value)
        say(f"get {name}", s.getsockopt, level, getattr(socket, name))
    say("linger", s.getsockopt, sol, socket.SO_LINGER, 8)
    say("congestion", s.setsockopt, tcp, socket.TCP_CONGESTION, b"no such")
    say("congestion", s.setsockopt, tcp, socket.TCP_CONGESTION, b"reno")
    say("congestion", lambda: s.getsockopt(tcp, socket.TCP_CONGESTION, 16).rstrip(b"\0"))
    say("unknown socket", s.setsockopt, sol, 9999, 1)
    say("unknown tcp", s.setsockopt, tcp, 9999, 1)
    say("unknown get", s.getsockopt, tcp, 9999)
    say("unknown ip", s.setsockopt, socket.IPPROTO_IP, 9999, 1)
    say("short", s.setsockopt, tcp, socket.TCP_NODELAY, b"x")
    say("short get", s.getsockopt, sol, socket.SO_TYPE, 2)


@scenario
def options_inherited() -> None:
    a = listener()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    c = socket.create_connection(a.getsockname())
    d, _ = a.accept()
    say("keepalive", d.getsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    say("nodelay", d.getsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY)
    say("acceptconn", a.getsockopt, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    c.close()


@scenario
def tcp_info() -> None:
    def state(s: socket.socket) -> int:
        return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[0]

    s = socket.socket()
    print("new", state(s))
    a = listener()
    print("listen", state(a))
    c, d = pair()
    print("established", state(c), state(d))
    c.shutdown(socket.SHUT_WR)
    print("close wait", until(lambda: state(d) == 8), until(lambda: state(c) == 5))


# ---- readiness ----


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
    time.sleep(0.02)
    for c, _ in reversed(pairs):
        c.send(b"t")
    for j in jobs:
        j.join(10)
    print(results)


# ---- descriptors and processes ----


@scenario
def duplicates() -> None:
    c, d = pair()
    e = d.dup()
    d.close()
    c.send(b"x")
    say("dup reads", e.recv, 1)
    n = os.open("/dev/null", os.O_RDONLY)
    os.dup2(e.fileno(), n)
    e.close()
    c.send(b"y")
    say("dup2 reads", os.read, n, 1)
    os.dup2(os.open("/dev/null", os.O_RDONLY), n)
    say("last one replaced: eof", c.recv, 1)
    say("replaced", os.read, n, 1)
    f = fcntl.fcntl(c, fcntl.F_DUPFD_CLOEXEC, 50)
    print(f >= 50, os.get_inheritable(f))
    say("F_GETFL", lambda: fcntl.fcntl(c, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_ACCMODE))
    fcntl.fcntl(f, fcntl.F_SETFL, os.O_NONBLOCK)
    say("shared flag", lambda: fcntl.fcntl(c, fcntl.F_GETFL) & os.O_NONBLOCK != 0)


@scenario
def forked() -> None:
    a = listener()
    c = socket.create_connection(a.getsockname())
    d, _ = a.accept()
    pid = os.fork()
    if pid == 0:
        d.sendall(b"from the child")
        print("child", d.recv(4), flush=True)
        os._exit(0)
    d.close()
    say("recv", c.recv, 14, socket.MSG_WAITALL)
    c.send(b"bye!")
    os.waitpid(pid, 0)
    say("eof after the child's death", c.recv, 1)


@scenario
def forked_acceptors() -> None:
    a = listener()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            while True:
                s, _peer = a.accept()
                s.sendall(s.recv(10).upper())
                s.close()
        pids.append(pid)
    answers = []
    for i in range(30):
        c = socket.create_connection(a.getsockname())
        c.sendall(b"w%d" % i)
        answers.append(sink(c) == b"W%d" % i)
    print(all(answers), len(answers))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@scenario
def killed_peer() -> None:
    a = listener()
    pid = os.fork()
    if pid == 0:
        a.accept()[0].sendall(b"alive")
        signal.pause()
    c = socket.create_connection(a.getsockname())
    say("recv", c.recv, 5, socket.MSG_WAITALL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    say("eof", c.recv, 1)


@scenario
def killed_in_close() -> None:
    """SIGKILL takes effect within the system calls of close(), or thereabouts."""
    a = listener()
    ends = []
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            a.accept()[0].sendall(b"alive")
            signal.pause()
        c = socket.create_connection(a.getsockname())
        c.recv(5, socket.MSG_WAITALL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ends.append(c.recv(1))
    print(set(ends))


@scenario
def executed() -> None:
    c, d = pair()
    code = (
        "import socket,sys; s=socket.socket(fileno=int(sys.argv[1])); s.sendall(s.recv(9).upper())"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(d.fileno())], pass_fds=[d.fileno()])
    d.close()
    c.sendall(b"exec")
    say("answer", c.recv, 4, socket.MSG_WAITALL)
    child.wait()
    say("eof", c.recv, 1)


@scenario
def executed_as_stdin() -> None:
    c, d = pair()
    child = subprocess.Popen(["cat"], stdin=d, stdout=d)
    d.close()
    c.sendall(b"through cat")
    say("answer", c.recv, 11, socket.MSG_WAITALL)
    c.shutdown(socket.SHUT_WR)
    print("cat", child.wait())
    say("eof", c.recv, 1)


@scenario
def not_inherited() -> None:
    c, d = pair()
    child = subprocess.Popen(["sleep", "30"])
    d.close()
    say("eof at once", c.recv, 1)
    child.kill()
    child.wait()


@scenario
def threads_share() -> None:
    a = listener()
    served = []

    def serve() -> None:
        while True:
            s, _peer = a.accept()
            data = s.recv(100)
            s.sendall(data)
            s.close()
            if data == b"stop":
                return
            served.append(data)

    jobs = [threading.Thread(target=serve) for _ in range(4)]
    for j in jobs:
        j.start()
    for i in range(100):
        c = socket.create_connection(a.getsockname())
        c.sendall(b"%d" % i)
        assert sink(c) == b"%d" % i
    for _ in jobs:
        c = socket.create_connection(a.getsockname())
        c.sendall(b"stop")
        sink(c)
    for j in jobs:
        j.join()
    print(len(served))


@scenario
def close_range_keeps_working() -> None:
    c, d = pair()
    os.closerange(200, 60000)
    c.send(b"x")
    say("recv", d.recv, 1)
    number = d.fileno()
    d.detach()
    os.closerange(number, number + 1)
    say("eof", c.recv, 1)


@scenario
def many_connections() -> None:
    a = listener(backlog=512)
    ep = select.epoll()
    pairs = []
    for _ in range(300):
        c = socket.create_connection(a.getsockname())
        d, _ = a.accept()
        ep.register(d, select.EPOLLIN)
        pairs.append((c, d))
    by_fd = {d.fileno(): d for _, d in pairs}
    for i, (c, _) in enumerate(pairs):
        c.send(b"%03d" % i)
    left = set(by_fd)
    end = time.monotonic() + 5
    while left and time.monotonic() < end:
        for fd, _ in ep.poll(0.1):
            by_fd[fd].send(by_fd[fd].recv(3))
            left.discard(fd)
    print(all(c.recv(3) == b"%03d" % i for i, (c, _) in enumerate(pairs)))


if __name__ == "__main__":
    signal.alarm(40)
    SCENARIOS[sys.argv[1]]()
