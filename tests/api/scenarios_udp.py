"""Datagram sockets.

Readiness between two ends is asynchronous on neatsock (docs/differences.md 3), so what was sent is
waited for before it is looked at without waiting.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
from typing import Any

from .tools import bits, outside, revents, say, scenario, settled, until

HOST = "127.0.0.1"


def udp(bound: bool = True) -> socket.socket:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    if bound:
        s.bind((HOST, 0))
    return s


def pair() -> tuple[socket.socket, socket.socket]:
    """A client connected to a server."""
    server, client = udp(), udp(False)
    client.connect(server.getsockname())
    return server, client


def readable(s: socket.socket) -> bool:
    return bool(select.select([s], [], [], 5)[0])


def recv_now(s: socket.socket, size: int, flags: int = 0) -> bytes:
    """Without waiting; Python's timeout would wait for EAGAIN to end."""
    seconds = s.gettimeout()
    s.settimeout(None)
    try:
        return s.recv(size, flags | socket.MSG_DONTWAIT)
    finally:
        s.settimeout(seconds)


def queued(s: socket.socket) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(s, termios.FIONREAD, size)
    return size[0]


@scenario
def udp_create() -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for name in (socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL, socket.SO_ERROR):
        say("option", s.getsockopt, socket.SOL_SOCKET, name)
    say("name", s.getsockname)
    say("peer", s.getpeername)
    say("listen", s.listen)
    say("accept", s.accept)
    say("send", s.send, b"x")
    say("shutdown", s.shutdown, socket.SHUT_RDWR)
    say("close", s.close)
    say("protocol", socket.socket, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_TCP)


@scenario
def udp_bind_errors() -> None:
    s = udp(False)
    say("foreign", s.bind, ("192.0.2.1", 0))
    say("bind", s.bind, (HOST, 0))
    say("again", s.bind, (HOST, 0))
    t = udp(False)
    say("in use", t.bind, s.getsockname())
    say("any, in use", t.bind, ("0.0.0.0", s.getsockname()[1]))
    say("other address", t.bind, ("127.0.0.2", s.getsockname()[1]))
    s.close()
    u = udp(False)
    say("free again", u.bind, (HOST, t.getsockname()[1]))


@scenario
def udp_reuse() -> None:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        a, b, c = udp(False), udp(False), udp(False)
        a.setsockopt(socket.SOL_SOCKET, option, 1)
        b.setsockopt(socket.SOL_SOCKET, option, 1)
        a.bind((HOST, 0))
        say("both", b.bind, a.getsockname())
        say("one", c.bind, a.getsockname())
        say("get", a.getsockopt, socket.SOL_SOCKET, option)
        # Somebody gets it.
        c.sendto(b"x", a.getsockname())
        print(len(select.select([a, b], [], [], 5)[0]))


@scenario
def udp_echo() -> None:
    server, client = udp(), udp(False)
    for size in (0, 1, 100, 1472, 8192, 65507):
        say("sendto", client.sendto, b"q" * size, server.getsockname())
        data, peer = server.recvfrom(65536)
        print(len(data), data == b"q" * size, peer[0], peer[1] == client.getsockname()[1])
        say("reply", server.sendto, data[::-1], peer)
        data, peer = client.recvfrom(65536)
        print(len(data), peer == server.getsockname())
    say("too long", client.sendto, b"q" * 65508, server.getsockname())
    say("much too long", client.sendto, b"q" * 70000, server.getsockname())


@scenario
def udp_boundaries() -> None:
    server, client = pair()
    for size in (5, 0, 3000, 17):
        client.send(bytes([size & 0xFF]) * size)
    for _ in range(4):
        say("got", server.recv, 100)


@scenario
def udp_truncation() -> None:
    server, client = pair()
    client.send(b"0123456789")
    client.send(b"abcdefghij")
    client.send(b"last")
    data, _, flags, peer = server.recvmsg(4)
    print(data, flags == socket.MSG_TRUNC, peer == client.getsockname())
    say("peek", server.recv, 4, socket.MSG_PEEK)
    say("real length", server.recv, 4, socket.MSG_TRUNC)
    say("last", server.recv, 4)
    say("empty", recv_now, server, 4)


@scenario
def udp_peek() -> None:
    server, client = pair()
    client.send(b"first")
    client.send(b"second")
    say("peek", server.recv, 100, socket.MSG_PEEK)
    say("again", recv_now, server, 100, socket.MSG_PEEK)
    say("peek truncated", server.recv_into, bytearray(2), 2, socket.MSG_PEEK | socket.MSG_TRUNC)
    say("first", server.recv, 100)
    say("second", server.recv, 100)


@scenario
def udp_scatter() -> None:
    server, client = pair()
    say("sendmsg", client.sendmsg, [b"ab", b"", b"cdef"])
    one, two = bytearray(1), bytearray(10)
    n, _, flags, peer = server.recvmsg_into([one, two])
    print(n, bytes(one), bytes(two[: n - 1]), flags, peer == client.getsockname())
    say("writev", os.writev, client.fileno(), [b"xy", b"z"])
    readable(server)
    say("readv", os.readv, server.fileno(), [one, two])
    print(bytes(one), bytes(two[:2]))


@scenario
def udp_connect() -> None:
    server, client = pair()
    print(client.getpeername() == server.getsockname(), client.getsockname()[0])
    other = udp()
    say("send", client.send, b"hello")
    say("got", server.recv, 10)
    other.sendto(b"stranger", client.getsockname())
    server.sendto(b"friend", client.getsockname())
    say("only the peer", client.recv, 100)
    say("nothing else", recv_now, client, 100)
    say("sendto while connected", client.sendto, b"elsewhere", other.getsockname())
    say("there", other.recv, 100)
    say("reconnect", client.connect, other.getsockname())
    server.sendto(b"old friend", client.getsockname())
    other.sendto(b"new friend", client.getsockname())
    say("new peer", client.recv, 100)
    say("isconn", client.sendto, b"x", server.getsockname())


@scenario
def udp_before_connect() -> None:
    """What was queued before connect() stays readable."""
    a, b, c = udp(), udp(), udp()
    b.sendto(b"early", a.getsockname())
    readable(a)
    a.connect(c.getsockname())
    say("early", a.recv, 100)
    b.sendto(b"late", a.getsockname())
    c.sendto(b"peer", a.getsockname())
    say("peer", a.recv, 100)


def disconnect(s: socket.socket) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    unspec = struct.pack("=H14x", socket.AF_UNSPEC)
    if libc.connect(s.fileno(), unspec, len(unspec)):
        return errno.errorcode[ctypes.get_errno()]
    return "ok"


@scenario
def udp_dissolve() -> None:
    server, client = pair()
    client.send(b"x")
    print(disconnect(client), client.getsockname())
    say("peer", client.getpeername)
    say("sendto", client.sendto, b"y", server.getsockname())
    print(client.getsockname()[0], client.getsockname()[1] != 0)
    say("send", client.send, b"x")
    for address, port in ((HOST, 0), (HOST, 1), ("0.0.0.0", 0), ("0.0.0.0", 1)):
        bound, free = udp(False), udp()
        name = address, free.getsockname()[1] * port
        free.close()
        bound.bind(name)
        bound.connect(server.getsockname())
        print(disconnect(bound), bound.getsockname() == name)
        bound.sendto(b"z", server.getsockname())
        print(bound.getsockname()[0], bound.getsockname()[1] != 0)


@scenario
def udp_port_again() -> None:
    """A port is free as soon as its socket is closed."""
    for _ in range(300):
        first, second = udp(), udp(False)
        name = first.getsockname()
        first.close()
        second.bind(name)
        second.close()
    print("done")


@scenario
def udp_refused() -> None:
    server, client = pair()
    server.close()
    say("send", client.send, b"into the void")
    until(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) and readable(client))
    say("refused", client.recv, 10)
    say("once", recv_now, client, 10)
    client.send(b"again")
    print(settled(client, "OUT|ERR|WRNORM"))
    print(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED)
    say("cleared", client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)


@scenario
def udp_refused_from_the_start() -> None:
    free, client = udp(), udp(False)
    name = free.getsockname()
    free.close()
    say("connect", client.connect, name)
    say("send", client.send, b"x")
    say("refused", client.recv, 10)
    # Without connect() nobody hears of it.
    stranger = udp(False)
    stranger.sendto(b"x", name)
    stranger.settimeout(0.1)
    say("silence", stranger.recv, 10)


@scenario
def udp_readiness() -> None:
    server, client = pair()
    print(revents(server), revents(client))
    client.send(b"abc")
    readable(server)
    print(revents(server))
    print(queued(server))
    client.send(b"defgh")
    until(lambda: False, 0.05)
    print(queued(server))
    server.recv(10)
    print(queued(server))
    server.recv(10)
    print(queued(server), revents(server))
    print(revents(udp(False)))


@scenario
def udp_select() -> None:
    server, client = pair()
    print([len(x) for x in select.select([server], [server], [server], 0)])
    client.send(b"")
    print([len(x) for x in select.select([server], [], [], 5)])
    say("empty", server.recv, 10)
    print([len(x) for x in select.select([server], [], [], 0)])


@scenario
def udp_epoll() -> None:
    server, client = pair()
    for flags in (0, select.EPOLLET, select.EPOLLONESHOT):
        ep = select.epoll()
        ep.register(server, select.EPOLLIN | flags)
        print(ep.poll(0))
        client.send(b"one")
        client.send(b"two")
        print([bits(e) for _, e in ep.poll(5)])
        until(lambda: False, 0.05)
        if flags == 0:
            print([bits(e) for _, e in ep.poll(0)])
        server.recv(10)
        server.recv(10)
        print(ep.poll(0.02))
        if flags == select.EPOLLONESHOT:
            client.send(b"three")
            readable(server)
            print(ep.poll(0.02))
            ep.modify(server, select.EPOLLIN | flags)
            print([bits(e) for _, e in ep.poll(5)])
            server.recv(10)
        ep.close()


@scenario
def udp_epoll_before_bind() -> None:
    s, client = udp(False), udp(False)
    ep = select.epoll()
    ep.register(s, select.EPOLLIN)
    print(ep.poll(0))
    s.bind((HOST, 0))
    client.sendto(b"x", s.getsockname())
    print([bits(e) for _, e in ep.poll(5)])
    ep.register(client, select.EPOLLIN)
    s.sendto(b"y", (HOST, client.getsockname()[1]))
    s.recv(1)
    print([bits(e) for _, e in ep.poll(5)])


@scenario
def udp_nonblocking() -> None:
    server, client = pair()
    server.setblocking(False)
    say("empty", server.recv, 10)
    say("empty", server.recvfrom, 10)
    client.send(b"x")
    readable(server)
    say("there", server.recv, 10)
    server.settimeout(0.05)
    say("timeout", server.recv, 10)


@scenario
def udp_timeouts() -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((HOST, 0))
    for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        s.setsockopt(socket.SOL_SOCKET, name, struct.pack("ll", 0, 30000))
        print(struct.unpack("ll", s.getsockopt(socket.SOL_SOCKET, name, 16)))
    say("timeout", s.recv, 10)


@scenario
def udp_options() -> None:
    s = udp()
    for level, name, values in (
        (socket.SOL_SOCKET, socket.SO_RCVBUF, (1, 4096, 100000)),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, (1, 4096, 100000)),
        (socket.SOL_SOCKET, socket.SO_BROADCAST, (1, 0)),
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, (1, 0)),
        (socket.SOL_SOCKET, socket.SO_PRIORITY, (3,)),
        (socket.IPPROTO_IP, socket.IP_TTL, (5, 0, 256)),
        (socket.IPPROTO_IP, socket.IP_TOS, (0x10,)),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, (1,)),
    ):
        say("default", s.getsockopt, level, name)
        for value in values:
            say("set", s.setsockopt, level, name, value)
            say("get", s.getsockopt, level, name)


@scenario
def udp_receive_buffer() -> None:
    """Datagrams beyond SO_RCVBUF are dropped, not the first ones."""
    server, client = udp(False), udp(False)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    server.bind((HOST, 0))
    client.connect(server.getsockname())
    for i in range(200):
        client.send(bytes([i]) * 1000)
    readable(server)
    until(lambda: False, 0.05)
    server.setblocking(False)
    got = []
    while True:
        try:
            got.append(server.recv(2000)[0])
        except BlockingIOError:
            break
    print(got[:3], 3 < len(got) < 60, got == list(range(len(got))))
    client.send(b"after")
    readable(server)
    say("after", server.recv, 100)


@scenario
def udp_multicast_is_the_kernels() -> None:
    s = udp(False)
    group = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
    say("join", s.setsockopt, socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    s.bind(("0.0.0.0", 0))
    t = udp(False)
    t.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    t.sendto(b"all", ("239.1.2.3", s.getsockname()[1]))
    say("got", s.recv, 10)
    say("broadcast", udp(False).sendto, b"x", ("255.255.255.255", 9))


@scenario
def udp_recvmmsg_time() -> None:
    """recvmmsg(2) looks at its time after each datagram: with none at all it takes one of two."""
    s, client = udp(), udp(False)
    for word in (b"one", b"two"):
        client.sendto(word, s.getsockname())
    select.select([s], [], [], 5)
    buffers = [ctypes.create_string_buffer(16) for _ in range(2)]
    vectors = [(ctypes.c_void_p * 2)(ctypes.addressof(b), 16) for b in buffers]
    headers = (ctypes.c_uint64 * 16)()  # two struct mmsghdr: iov at 2, iovlen at 3, msg_len at 7
    for i, vector in enumerate(vectors):
        headers[8 * i + 2], headers[8 * i + 3] = ctypes.addressof(vector), 1
    libc = ctypes.CDLL(None, use_errno=True)
    for seconds in (0, 60, -1):
        time_left = (ctypes.c_int64 * 2)(seconds, 0)
        got = libc.recvmmsg(s.fileno(), headers, 2 if seconds <= 0 else 1, 0, time_left)
        print(seconds, got, [b.value for b in buffers], headers[7], ctypes.get_errno())


@scenario
def udp_pktinfo() -> None:
    s, client = udp(False), udp(False)
    s.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO of <linux/in.h>
    s.bind(("0.0.0.0", 0))
    client.sendto(b"x", ("127.0.0.1", s.getsockname()[1]))
    data, control, flags, _ = s.recvmsg(10, 100)
    print(data, [(level, kind, len(raw)) for level, kind, raw in control], flags)


@scenario
def udp_shutdown() -> None:
    server, client = pair()
    say("write", client.shutdown, socket.SHUT_WR)
    say("send", client.send, b"x")
    server.sendto(b"still", client.getsockname())
    say("recv", client.recv, 10)
    say("read", client.shutdown, socket.SHUT_RD)
    client.settimeout(None)
    say("end", client.recv, 10)
    say("end at once", recv_now, client, 10)
    print(revents(client))
    # On a socket without peer it is an error, and wakes a reader nevertheless.
    woken: list[bytes] = []
    waiting = threading.Thread(target=lambda: woken.append(server.recv(10)))
    server.settimeout(None)
    waiting.start()
    until(lambda: False, 0.1)
    say("unconnected", server.shutdown, socket.SHUT_RD)
    waiting.join(5)
    print(waiting.is_alive(), woken)


@scenario
def udp_errors() -> None:
    s = udp()
    say("port 0", s.sendto, b"x", (HOST, 0))
    say("no destination", s.send, b"x")
    say("oob", s.sendto, b"x", socket.MSG_OOB, s.getsockname())
    say("errqueue", recv_now, s, 10, socket.MSG_ERRQUEUE)
    say("to itself", s.sendto, b"me", s.getsockname())
    say("itself", s.recv, 10)
    t = udp(False)
    t.connect(s.getsockname())
    say("closed", lambda: (t.close(), t.send(b"x")))


@scenario
def udp_dup_and_fork() -> None:
    server, client = pair()
    twin = server.dup()
    server.close()
    client.send(b"one")
    say("dup", twin.recv, 10)
    pid = os.fork()
    if pid == 0:
        data, peer = twin.recvfrom(10)
        twin.sendto(b"child " + data, peer)
        os._exit(0)
    client.send(b"two")
    say("from the child", client.recv, 20)
    os.waitpid(pid, 0)
    client.send(b"three")
    say("the parent's", twin.recv, 10)
    twin.close()
    client.settimeout(0.1)

    def refused() -> bool:
        try:
            client.send(b"four")
            client.recv(10)
        except ConnectionRefusedError:
            return True
        except TimeoutError:  # neatd has not seen yet that the child is gone
            pass
        return False

    print("refused", until(refused))


@scenario
def udp_threads() -> None:
    """Several threads on one socket: each datagram is taken once."""
    server, client = pair()
    got: list[bytes] = []
    lock = threading.Lock()

    def take() -> None:
        while True:
            data = server.recv(100)
            if data == b"end":
                return
            with lock:
                got.append(data)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for t in threads:
        t.start()
    for i in range(200):
        client.send(b"%d" % i)
    for _ in threads:
        client.send(b"end")
    for t in threads:
        t.join()
    print(sorted(map(int, got)) == list(range(200)))


@scenario
def udp_order() -> None:
    server, client = pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
    fine = True
    for base in range(0, 2000, 50):
        for i in range(base, base + 50):
            client.send(struct.pack("I", i) * (1 + i % 100))
        for i in range(base, base + 50):
            fine &= server.recv(1000) == struct.pack("I", i) * (1 + i % 100)
    print(fine)


@scenario
def udp_many_destinations() -> None:
    servers = [udp() for _ in range(20)]
    client = udp(False)
    for i, s in enumerate(servers):
        client.sendto(b"%d" % i, s.getsockname())
    for s in servers:
        data, peer = s.recvfrom(10)
        s.sendto(data, peer)
    print(sorted(int(client.recv(10)) for _ in servers))


@scenario
def udp_asyncio() -> None:
    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    class Client(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.got: asyncio.Queue[bytes] = asyncio.Queue()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.got.put_nowait(data)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(Server, local_addr=(HOST, 0))
        name = server.get_extra_info("sockname")
        client, protocol = await loop.create_datagram_endpoint(Client, remote_addr=name)
        for i in range(50):
            client.sendto(b"message %d" % i)
            print(await asyncio.wait_for(protocol.got.get(), 5))
        client.close()
        server.close()

    asyncio.run(run())


@scenario
def udp_two_worlds() -> None:
    """A program that is not on neatsock reaches our bound socket, and we reach its."""
    server = udp(False)
    server.bind(("0.0.0.0", 0))
    code = (
        "import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5);"
        "s.sendto(b'hello',('127.0.0.1',int(sys.argv[1]))); print(s.recv(100));"
        "s.sendto(b'bye',('127.0.0.1',int(sys.argv[1])))"
    )
    ep = select.epoll()
    ep.register(server, select.EPOLLIN)
    child = outside(code, str(server.getsockname()[1]))
    print([bits(e) for _, e in ep.poll(5)])
    data, peer = server.recvfrom(100)
    print(data, revents(server))
    server.sendto(b"welcome", peer)
    say("bye", server.recv, 100)
    # One of ours meanwhile.
    mine = udp(False)
    mine.sendto(b"mine", (HOST, server.getsockname()[1]))
    print([bits(e) for _, e in ep.poll(5)])
    say("mine", server.recv, 100)
    print(child.communicate(timeout=5)[0], child.returncode)


@scenario
def udp_epoll_armed_again() -> None:
    """What a program of the kernel sent while the entry was disarmed, and was read, is over."""
    server, mine, ep = udp(), udp(False), select.epoll()
    code = (
        "import socket, sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "s.sendto(b'kernel',('127.0.0.1',int(sys.argv[1])))"
    )
    ep.register(server, select.EPOLLIN | select.EPOLLONESHOT)
    mine.sendto(b"mine", server.getsockname())
    print([bits(e) for _, e in ep.poll(5)])
    say("mine", server.recv, 100)
    outside(code, str(server.getsockname()[1])).communicate()
    until(lambda: revents(server, want=select.POLLIN) == "IN")
    print(ep.poll(0.01))
    say("kernel", server.recv, 100)
    ep.modify(server, select.EPOLLIN | select.EPOLLONESHOT)
    print(ep.poll(0.05))
    mine.sendto(b"mine", server.getsockname())
    print([bits(e) for _, e in ep.poll(5)])


@scenario
def udp_epoll_disarmed_goes_over() -> None:
    """The socket is the kernel's from its first datagram on; its entry fired before, and is off."""
    code = (
        "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
        "s.bind(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); s.recv(1)"
    )
    child = outside(code)
    assert child.stdout
    s, ep = udp(False), select.epoll()
    ep.register(s, select.EPOLLOUT | select.EPOLLONESHOT)
    print([bits(e) for _, e in ep.poll(5)])
    s.sendto(b"x", (HOST, int(child.stdout.readline())))
    print(child.wait(5), ep.poll(0.05))
    ep.modify(s, select.EPOLLOUT | select.EPOLLONESHOT)
    print([bits(e) for _, e in ep.poll(5)], ep.poll(0.05))


@scenario
def udp_mixed_sends() -> None:
    """One socket, a destination of each world: sends and receives go on with both."""
    code = (
        "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5);"
        "s.bind(('127.0.0.1',0)); print(s.getsockname()[1],flush=True)\n"
        "for _ in range(3):\n d,a=s.recvfrom(100); s.sendto(d.upper(),a)"
    )
    child = outside(code)
    assert child.stdout
    port = int(child.stdout.readline())
    ours, s = udp(), udp(False)
    s.sendto(b"ours", ours.getsockname())
    data, peer = ours.recvfrom(10)
    for i in range(3):
        s.sendto(b"kernel%d" % i, (HOST, port))
        say("kernel", s.recv, 100)
        ours.sendto(data, peer)
        say("ours", s.recv, 100)
    print(child.wait(5))
