"""Stream sockets: states and errno, bytes, ends, time, options."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import hashlib
import os
import pty
import select
import signal
import socket
import struct
import tempfile
import termios
import threading
from collections.abc import Callable

from .tools import listener, outcome, pair, pattern, revents, say, scenario, settled, sink, until

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


@scenario
def bind_to_port_0_again_and_again() -> None:
    """None is chosen whose last connection is still in TIME_WAIT or FIN_WAIT_2."""
    a = listener()
    ports = set()
    for _ in range(400):
        c = socket.socket()
        c.bind(("127.0.0.1", 0))
        c.connect(a.getsockname())
        ports.add(c.getsockname()[1])
        d, _ = a.accept()
        c.close()
        d.close()
    print(len(ports))


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
def sendfile_no_file() -> None:
    """What is no file is refused at once, with and without something to read."""
    c, d = pair()
    r, w = os.pipe()
    os.set_blocking(r, False)
    terminal, tty = pty.openpty()
    one, two = socket.socketpair()
    two.setblocking(False)
    signal.alarm(10)
    inputs = {
        "pipe": r,
        "tty": tty,
        "pair": two.fileno(),
        "ours": c.fileno(),
        "directory": os.open("/", os.O_RDONLY),
        "bad": 9999,
        "writable": os.open("/dev/null", os.O_WRONLY),
        "zero": os.open("/dev/zero", os.O_RDONLY),
    }
    for fill in (True, False):
        if fill:
            os.write(w, b"x")
            os.write(terminal, b"x\n")
            one.send(b"x")
        for label, fd in inputs.items():
            for at in (None, 0):
                say(f"{label} {at}", os.sendfile, d.fileno(), fd, at, 5)
        for fd in (r, two.fileno()):
            say("left", os.read, fd, 1)
        if fill:
            os.read(tty, 2)


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
def options_inherited_last() -> None:
    """MSG_MORE is for one call, and for the others nothing changes: close() resets."""
    a = socket.socket()
    a.bind(("127.0.0.1", 0))
    a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    a.listen(5)
    c = socket.create_connection(a.getsockname())
    d, _ = a.accept()
    d.send(b"m", socket.MSG_MORE)
    d.send(b"o")
    say("bytes", c.recv, 2, socket.MSG_WAITALL)
    d.close()
    say("end", c.recv, 1)


def cork(s: socket.socket, on: int) -> None:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


def before_what_is_held(send: Callable[[socket.socket], object]) -> None:
    """What `send` sends comes long before what CORK held earlier on another connection."""
    a, b = pair()
    c, d = pair()
    cork(a, 1)
    a.send(b"held")
    revents(b, 20, select.POLLIN)  # its limit of 200 ms ends so much earlier
    send(c)
    p = select.poll()
    p.register(b, select.POLLIN)
    p.register(d, select.POLLIN)
    print("is there", d.fileno() in dict(p.poll()))
    say("held", b.recv, 10)


@scenario
def cork_and_nodelay() -> None:
    """Setting TCP_NODELAY sends what CORK holds, each time."""

    def send(c: socket.socket) -> None:
        cork(c, 1)
        c.send(b"pushed")
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    before_what_is_held(send)


@scenario
def uncork_and_cork() -> None:
    """A flush: CORK is set again before anybody looked."""

    def send(c: socket.socket) -> None:
        cork(c, 1)
        c.send(b"flushed")
        cork(c, 0)
        cork(c, 1)

    for _ in range(5):
        before_what_is_held(send)


@scenario
def more_behind_less() -> None:
    """MSG_MORE of the second call does not hold back the first one's bytes."""

    def send(c: socket.socket) -> None:
        c.send(b"whole ")
        c.send(b"and a part", socket.MSG_MORE)

    for _ in range(5):
        before_what_is_held(send)


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
