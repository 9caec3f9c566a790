"""Calls in orders that are rare: what one leaves behind for the next."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import resource
import select
import socket
import struct
from typing import Any

from .scenarios_bound import bind, taken
from .tools import POLL, bits, listener, outcome, pair, revents, say, scenario, settled, until

LIBC = ctypes.CDLL(None, use_errno=True)
SOL = socket.SOL_SOCKET
HOW = {"RD": socket.SHUT_RD, "WR": socket.SHUT_WR, "RDWR": socket.SHUT_RDWR}


def call(name: str, *args: Any) -> str:
    result = getattr(LIBC, name)(*args)
    return str(result) if result >= 0 else errno.errorcode[ctypes.get_errno()]


# ---- shutdown ----


@scenario
def listener_shut_down() -> None:
    """It keeps a port that bind() named, and goes on with it; another one is gone."""
    for how in (socket.SHUT_RD, socket.SHUT_RDWR):
        s = socket.socket()
        name = bind(s)
        s.listen()
        say("shutdown", s.shutdown, how)
        print(taken(name), s.getsockname() == name, revents(s))
        say("bind", s.bind, ("127.0.0.1", 0))
        say("refused", socket.socket().connect_ex, name)
        say("listen", s.listen)
        with socket.create_connection(name, timeout=5) as c, s.accept()[0] as d:
            c.send(b"again")
            print(d.recv(10), s.getsockname() == name, taken(name))
        s.shutdown(how)
        with listener() as a:
            s.connect(a.getsockname())
            print("connect", a.accept()[1] == name)
        s.close()
        t = socket.socket()
        t.bind(("127.0.0.1", 0))
        name = t.getsockname()
        t.listen()
        t.shutdown(how)
        print(t.getsockname() == name)
        t.listen()
        print(t.getsockname() == name)


@scenario
def listener_shut_down_for_writing() -> None:
    """Nothing happens to it."""
    with listener() as a:
        say("shutdown", a.shutdown, socket.SHUT_WR)
        with socket.create_connection(a.getsockname(), timeout=5) as c, a.accept()[0] as d:
            c.send(b"x")
            print(d.recv(1), revents(a))


@scenario
def shut_down_without_a_connection() -> None:
    """It is ENOTCONN, and counts nevertheless, until connect() to AF_UNSPEC."""
    for name, how in HOW.items():
        s = socket.socket()
        s.setblocking(False)
        say(name, s.shutdown, how)
        print(revents(s), outcome(s.recv, 10), outcome(s.recv, 10, socket.MSG_PEEK))
        print(outcome(s.recvmsg, 10), outcome(s.send, b"x"))
        none = ctypes.create_string_buffer(struct.pack("H14x", socket.AF_UNSPEC))
        print(call("connect", s.fileno(), none, 16), revents(s), outcome(s.recv, 10))
        with select.epoll() as ep:
            ep.register(s, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
            ep.poll(0)
            with contextlib.suppress(OSError):
                s.shutdown(how)
            print([bits(events) for _, events in ep.poll(0)])
            call("connect", s.fileno(), none, 16)
            print([bits(events) for _, events in ep.poll(0)])


@scenario
def data_behind_both_halves() -> None:
    """Nobody will read it: a reset says so (RFC 1122 4.2.2.13)."""
    for order in (
        (socket.SHUT_RDWR,),
        (socket.SHUT_RD, socket.SHUT_WR),
        (socket.SHUT_WR, socket.SHUT_RD),
    ):
        c, d = pair()
        d.send(b"before")
        until(lambda c=c: "IN" in revents(c).split("|"))
        for how in order:
            c.shutdown(how)
        settled(d, "IN|OUT|RDHUP|RDNORM|WRNORM")
        say("send", d.send, b"x")
        print(
            settled(c, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"),
            settled(d, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"),
        )
        print([errno.errorcode.get(s.getsockopt(SOL, socket.SO_ERROR)) for s in (c, d)])
        print(
            outcome(c.recv, 100),
            outcome(d.recv, 100),
            outcome(d.send, b"x"),
            outcome(c.getpeername),
        )


@scenario
def lingering_close_with_data_unread() -> None:
    """A reset, and no FIN before it."""
    for seconds in (0, 1, 5):
        c, d = pair()
        d.send(b"never read")
        until(lambda c=c: "IN" in revents(c).split("|"))
        c.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, seconds))
        c.close()
        print(settled(d, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"), outcome(d.recv, 10))


@scenario
def data_behind_one_half() -> None:
    """Who only does not read gets it nevertheless, as before."""
    c, d = pair()
    c.shutdown(socket.SHUT_RD)
    d.send(b"x")
    d.shutdown(socket.SHUT_WR)
    print(settled(c, "IN|OUT|RDHUP|RDNORM|WRNORM"))
    c.send(b"y")
    print(d.recv(10), until(lambda: outcome(c.recv, 10, socket.MSG_PEEK) == "b'x'"))


# ---- errors ----


@scenario
def connected_again_after_its_end() -> None:
    """A connection that was there leaves the error where it is."""
    with listener() as a:
        name = a.getsockname()
        c = socket.socket()
        c.connect(name)
        d = a.accept()[0]
        d.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
        d.close()
        settled(c, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM")
        say("connect", c.connect, name)
        print(errno.errorcode.get(c.getsockopt(SOL, socket.SO_ERROR)), outcome(c.connect, name))


@scenario
def refused_where_somebody_just_listened() -> None:
    """The socket is as before."""
    for _ in range(5):
        a, s = listener(), socket.socket()
        name = a.getsockname()
        a.close()
        say("connect", s.connect, name)
        s.setblocking(False)
        print(revents(s), outcome(s.recv, 10), outcome(s.getpeername))


@scenario
def refused_and_the_error_taken() -> None:
    """The next connect() hears that it failed, and the one behind it begins anew."""
    for _ in range(5):
        a, s = listener(), socket.socket()
        name = a.getsockname()
        s.setblocking(False)
        a.close()
        say("connect", s.connect, name)
        settled(s, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM")
        print(errno.errorcode.get(s.getsockopt(SOL, socket.SO_ERROR)), outcome(s.recv, 1))
        say("again", s.connect, name)
        print(revents(s))
        say("anew", s.connect, name)
        print(settled(s, "IN|OUT|ERR|HUP|RDHUP|RDNORM|WRNORM"))


@scenario
def error_queue_of_a_stream() -> None:
    """It is empty, and no way to the data."""
    c, d = pair()
    c.send(b"data")
    until(lambda: "IN" in revents(d).split("|"))
    for s in (d, socket.socket()):
        say("recv", s.recv, 10, socket.MSG_ERRQUEUE)
        say("recvmsg", s.recvmsg, 10, 0, socket.MSG_ERRQUEUE)
    say("recv", d.recv, 10)


@scenario
def datagram_to_one_that_just_left() -> None:
    """The second send hears of it, whoever answered the first one."""
    for _ in range(5):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
            v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            v.bind(("127.0.0.1", 0))
            u.connect(v.getsockname())
            u.send(b"x")
            settled(v, "IN|OUT|RDNORM|WRNORM")
            v.close()
            say("first", u.send, b"")
            print(settled(u, "OUT|ERR|WRNORM"), outcome(u.send, b"second"), revents(u))


# ---- messages ----


@scenario
def flags_of_a_message() -> None:
    c, d = pair()
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.bind(("127.0.0.1", 0))
    c.send(b"stream")
    c.send(b"more")
    u.sendto(b"datagram", u.getsockname())
    u.sendto(b"another", u.getsockname())
    for s in (d, u):
        for size, flags in ((1, 0), (1, socket.MSG_CMSG_CLOEXEC)):
            until(lambda s=s: "IN" in revents(s).split("|"))
            print([int(x) if isinstance(x, int) else x for x in s.recvmsg(size, 64, flags)[:3]])


@scenario
def ancillary_data_of_a_stream() -> None:
    """Of SOL_SOCKET only what there is; of other levels nothing is looked at (sock_cmsg_send())."""
    c, d = pair()
    for level, kind in ((SOL, 61), (SOL, 9999), (socket.IPPROTO_IP, 8), (socket.IPPROTO_TCP, 1)):
        say(f"{level} {kind}", c.sendmsg, [b"x"], [(level, kind, bytes(8))])
    say("nothing", c.sendmsg, [b""], [(SOL, 9999, bytes(8))])
    say("credentials", c.sendmsg, [b"x"], [(SOL, socket.SCM_CREDENTIALS, bytes(12))])
    wrong = ctypes.create_string_buffer(struct.pack("QiiQ", 3, SOL, 1, 0))
    data = ctypes.create_string_buffer(b"x", 1)
    vector = ctypes.create_string_buffer(struct.pack("PQ", ctypes.addressof(data), 1))
    header = struct.pack(
        "PI4xPQPQi4x", 0, 0, ctypes.addressof(vector), 1, ctypes.addressof(wrong), 24, 0
    )
    print("too short", call("sendmsg", c.fileno(), ctypes.create_string_buffer(header), 0))
    c.close()
    got = b""
    while piece := d.recv(100):
        got += piece
    print(got)
    say("unconnected", socket.socket().sendmsg, [b"x"], [(SOL, 9999, bytes(8))])
    c, d = pair()
    c.shutdown(socket.SHUT_WR)
    say("shut down", c.sendmsg, [b"x"], [(SOL, 9999, bytes(8))])


@scenario
def more_is_held_back() -> None:
    """What MSG_MORE sends waits for the rest, on a connection where nothing else is on its way."""

    def held(c: socket.socket, d: socket.socket) -> bool:
        c.send(b"head", socket.MSG_MORE)
        early = revents(d, 20, select.POLLIN)
        c.send(b"tail")
        got = b""
        while len(got) < 8:
            got += d.recv(8)
        until(lambda: LIBC.ioctl(c.fileno(), 0x5411, ctypes.byref(left)) == 0 and not left.value)
        return early == "0"

    left = ctypes.c_int()  # TIOCOUTQ
    for c, d in (pair(), pair()[::-1]):
        # Its limit of 200 ms may be over on a machine that has a lot to do.
        print(any([held(c, d) for _ in range(20)]))


# ---- time-outs and sets ----


@scenario
def time_out_below_zero() -> None:
    """Is none when asked for, and no wait."""
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.bind(("127.0.0.1", 0))
    c, d = pair()
    d.setblocking(False)
    for s in (c, u):
        for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            for seconds in (-1, -(2**40)):
                say("set", s.setsockopt, SOL, name, struct.pack("qq", seconds, 500_000))
                print(struct.unpack("qq", s.getsockopt(SOL, name, 16)))
        say("recv", s.recv, 10)
        s.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("qq", 20, 0))
    full = bytes(1 << 20)
    results = [outcome(c.send, full) for _ in range(20)]
    print("full", results[-1])


@scenario
def time_out_without_a_length() -> None:
    """Who asks for nothing was waiting for something, and hears that it is over by 0."""
    c, d = pair()
    c.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("qq", 0, 20_000))
    room = ctypes.create_string_buffer(8)
    print(call("recv", c.fileno(), room, 0, 0), call("recv", c.fileno(), room, 1, 0))
    print(call("recv", c.fileno(), room, 0, socket.MSG_DONTWAIT))
    d.close()
    print(call("recv", c.fileno(), room, 0, 0))


@scenario
def more_descriptors_than_there_may_be() -> None:
    """poll(2): EINVAL, whatever is in the set."""
    c, d = pair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    entry = struct.pack("ihh", d.fileno(), POLL["OUT"], 0)
    for n in (199, 200, 201, 100_000):
        fds = ctypes.create_string_buffer(entry * n)
        print(n, call("poll", fds, ctypes.c_ulong(n), 0))
        print(n, call("ppoll", fds, ctypes.c_ulong(n), None, None))
    print(call("poll", fds, ctypes.c_ulong(2**40), 0))
    for n in (-1, -(2**31)):
        print(call("select", n, None, None, None, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@scenario
def datagrams_have_a_band() -> None:
    """POLLWRBAND, which streams have not."""
    u, (c, _) = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), pair()
    v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    v.bind(("127.0.0.1", 0))
    for s in (u, v, c):
        p = select.poll()
        p.register(s, select.POLLOUT | select.POLLWRBAND)
        print([events for _, events in p.poll(0)])
