"""Epoll sets that are watched themselves, by poll(), select() and other sets; flags of entries."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import socket
import threading
from collections.abc import Callable
from itertools import pairwise

from .tools import asleep, bits, listener, pair, revents, say, scenario, settled, until

IN, OUT, ET, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT


def inner(*watched: socket.socket, events: int = IN) -> select.epoll:
    ep = select.epoll()
    for s in watched:
        ep.register(s, events)
    return ep


def polled(ep: select.epoll, ms: int = 0) -> str:
    p = select.poll()
    p.register(ep.fileno(), select.POLLIN | select.POLLOUT | select.POLLRDNORM)
    got = p.poll(ms)
    return bits(got[0][1]) if got else "0"


def selected(ep: select.epoll, seconds: float = 0) -> list[int]:
    return [len(x) for x in select.select([ep.fileno()], [ep.fileno()], [ep.fileno()], seconds)]


def reported(ep: select.epoll, seconds: float = 0) -> list[str]:
    return [bits(e) for _, e in ep.poll(seconds)]


def becomes(look: Callable[[], object], want: object) -> object:
    """What `look` says once it says `want`, or at the end of the patience."""
    until(lambda: look() == want, 2.0)
    return look()


def arrived(s: socket.socket) -> None:
    s_ready = settled(s, "IN|OUT|RDNORM|WRNORM")
    assert "IN" in s_ready, s_ready


# ---- poll() and select() on a set ----


@scenario
def nested_poll_levels() -> None:
    c, d = pair()
    ep = inner(d)
    print(polled(ep), selected(ep))
    c.send(b"x")
    print(polled(ep, 5000), selected(ep, 5), polled(ep), reported(ep), polled(ep))
    d.recv(1)
    print(polled(ep), selected(ep), reported(ep))
    ep.modify(d, IN | OUT)
    print(polled(ep), selected(ep))
    ep.modify(d, 0)
    print(polled(ep), selected(ep))
    c.close()
    settled(d, "IN|OUT|RDHUP|RDNORM|WRNORM")
    print(polled(ep))
    ep.modify(d, IN)
    print(polled(ep))
    ep.unregister(d)
    print(polled(ep), selected(ep))


@scenario
def nested_poll_edge_and_oneshot() -> None:
    for flag in (ET, ONESHOT):
        c, d = pair()
        ep = inner(d, events=IN | flag)
        c.send(b"x")
        print(polled(ep, 5000), polled(ep), reported(ep, 5), polled(ep), selected(ep))
        c.send(b"y")
        print(becomes(lambda ep=ep: polled(ep), "IN|RDNORM" if flag == ET else "0"))
        print(reported(ep), polled(ep))
        ep.modify(d, IN | flag)
        print(polled(ep), reported(ep), polled(ep))


@scenario
def nested_poll_blocks() -> None:
    """Each way of waiting is woken from another thread, and ends by its time-out."""
    c, d = pair()
    a = listener()
    ep, accepting = inner(d), inner(a)
    print(polled(ep, 20), selected(ep, 0.02))
    for look in (lambda: polled(ep, 5000), lambda: selected(ep, 5)):
        threading.Timer(0.02, c.send, [b"x"]).start()
        print(look(), d.recv(1), polled(ep))
    connecting = threading.Timer(0.02, socket.create_connection, [a.getsockname()])
    connecting.start()
    print(polled(accepting, 5000))
    connecting.join()  # its connect() may return after the queue has the connection


@scenario
def nested_poll_beside_others() -> None:
    c, d = pair()
    g, f = pair()
    r, w = os.pipe()
    ep = inner(d)
    p = select.poll()
    watched = [ep.fileno(), f.fileno(), r]
    for fd in watched:
        p.register(fd, select.POLLIN)
    print(p.poll(0))
    for fire in (lambda: c.send(b"x"), lambda: g.send(b"x"), lambda: os.write(w, b"x")):
        threading.Timer(0.02, fire).start()
        got = p.poll(5000)
        print([(watched.index(fd), bits(mask)) for fd, mask in got])
        for fd, _ in got:
            {
                ep.fileno(): lambda: d.recv(1),
                f.fileno(): lambda: f.recv(1),
                r: lambda: os.read(r, 1),
            }[fd]()
        print(p.poll(0))
    c.send(b"x"), g.send(b"x"), os.write(w, b"x")
    print(becomes(lambda: len(p.poll(0)), 3))


@scenario
def nested_poll_mixed_set() -> None:
    """A set of both worlds: each part makes it readable, and is waited for."""
    c, d = pair()
    r, w = os.pipe()
    ep = inner(d)
    ep.register(r, IN)
    print(polled(ep))
    os.write(w, b"x")
    print(polled(ep), len(ep.poll(0)), polled(ep), os.read(r, 1), polled(ep))
    threading.Timer(0.02, os.write, [w, b"x"]).start()
    print(polled(ep, 5000), os.read(r, 1), polled(ep))
    threading.Timer(0.02, c.send, [b"x"]).start()
    print(polled(ep, 5000), d.recv(1), polled(ep))
    threading.Timer(0.02, c.send, [b"x"]).start()
    print([fd == d.fileno() for fd, _ in ep.poll(5)], d.recv(1), polled(ep), reported(ep))
    threading.Timer(0.02, os.write, [w, b"x"]).start()
    print([fd == r for fd, _ in ep.poll(5)], os.read(r, 1), polled(ep), reported(ep))
    print(ep.poll(0.02), polled(ep, 20))


@scenario
def nested_poll_numbers() -> None:
    """dup() of the set, and of the socket in it."""
    c, d = pair()
    ep = inner(d)
    other = select.epoll.fromfd(os.dup(ep.fileno()))
    double = d.dup()
    c.send(b"x")
    print(polled(other, 5000), polled(ep), revents(double), revents(d))
    ep.close()
    print(polled(other))
    double.recv(1)
    print(polled(other), revents(d), revents(double))
    threading.Timer(0.02, c.send, [b"y"]).start()
    print(polled(other, 5000), becomes(lambda: revents(double), revents(d)) == revents(d))


# ---- sets in sets ----


@scenario
def nested_level() -> None:
    c, d = pair()
    ep = inner(d)
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    print(outer.poll(0), outer.poll(0.02))
    threading.Timer(0.02, c.send, [b"x"]).start()
    print([(fd == ep.fileno(), bits(e)) for fd, e in outer.poll(5)], reported(outer), reported(ep))
    print(reported(outer), polled(outer))
    d.recv(1)
    print(reported(outer), polled(outer), reported(ep))
    c.close()
    print(reported(outer, 5), reported(ep))
    ep.unregister(d)
    print(reported(outer), reported(ep))


@scenario
def nested_edge() -> None:
    c, d = pair()
    ep = inner(d)
    outer = select.epoll()
    outer.register(ep.fileno(), IN | ET)
    print(outer.poll(0))
    c.send(b"x")
    print(reported(outer, 5), outer.poll(0.02), reported(ep), outer.poll(0))
    d.recv(1)
    print(outer.poll(0.02))
    c.send(b"x")
    print(reported(outer, 5), outer.poll(0.02))
    outer.modify(ep.fileno(), IN | ET)
    print(reported(outer), outer.poll(0.02))
    d.recv(1)
    outer.modify(ep.fileno(), IN | ET)
    print(outer.poll(0.02))


@scenario
def nested_oneshot() -> None:
    for flag in (0, ET):
        c, d = pair()
        ep = inner(d, events=IN | flag)
        outer = select.epoll()
        outer.register(ep.fileno(), IN | ONESHOT)
        c.send(b"x")
        print(reported(outer, 5), outer.poll(0), len(ep.poll(0)), outer.poll(0.02))
        outer.modify(ep.fileno(), IN | ONESHOT)
        print(reported(outer), outer.poll(0))
        d.recv(1)
        outer.modify(ep.fileno(), IN | ONESHOT)
        print(outer.poll(0.02))
        c.send(b"y")
        print(reported(outer, 5), outer.poll(0))


@scenario
def nested_inner_oneshot() -> None:
    c, d = pair()
    ep = inner(d, events=IN | ONESHOT)
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    c.send(b"x")
    print(reported(outer, 5), reported(ep), reported(outer))
    c.send(b"y")
    print(outer.poll(0.02))
    ep.modify(d, IN | ONESHOT)
    print(reported(outer), reported(outer), reported(ep), reported(outer))


@scenario
def nested_deep() -> None:
    """Readable through five sets; a sixth, a circle, and the set itself are refused."""
    c, d = pair()
    sets = [inner(d)]
    for _ in range(4):
        outer = select.epoll()
        say("add", outer.register, sets[-1].fileno(), IN)
        sets.append(outer)
    print([e.poll(0) for e in sets], [polled(e) for e in sets])
    threading.Timer(0.02, c.send, [b"x"]).start()
    print(reported(sets[-1], 5), [reported(e) for e in sets], [polled(e) for e in sets])
    d.recv(1)
    print([reported(e) for e in sets], [polled(e) for e in sets])
    threading.Timer(0.02, c.send, [b"x"]).start()
    print(polled(sets[-1], 5000))
    for low in sets:
        say("itself", low.register, low.fileno(), IN)
        say("circle", low.register, sets[-1].fileno(), IN)
    beyond = select.epoll()
    say("beyond", beyond.register, sets[-1].fileno(), IN)
    say("twice", sets[1].register, sets[0].fileno(), IN)
    say("other", sets[0].modify, sets[1].fileno(), IN)
    say("unregister", sets[0].unregister, sets[1].fileno())
    c.send(b"y")
    print([reported(e) for e in sets], [polled(e) for e in sets])
    sets[2].unregister(sets[1].fileno())
    print([reported(e) for e in sets], [polled(e) for e in sets])
    say("again", sets[2].register, sets[1].fileno(), IN)
    print([reported(e) for e in sets])


@scenario
def nested_deep_before() -> None:
    """The same, the sets joined from the top before there is any socket."""
    sets = [select.epoll() for _ in range(4)]
    for low, high in reversed(list(pairwise(sets))):
        high.register(low.fileno(), IN)
    print([reported(e) for e in sets])
    c, d = pair()
    sets[0].register(d, IN)
    print([reported(e) for e in sets], [polled(e) for e in sets])
    threading.Timer(0.02, c.send, [b"x"]).start()
    print(reported(sets[-1], 5), [reported(e) for e in sets], [polled(e) for e in sets])
    d.recv(1)
    print([reported(e) for e in sets], [polled(e) for e in sets])


@scenario
def nested_mixed() -> None:
    """Kernel descriptors and sockets in both sets, at all times one event for each."""
    c, d = pair()
    e, f = pair()
    r, w = os.pipe()
    r2, w2 = os.pipe()
    ep, outer = inner(d), inner(f)
    ep.register(r, IN)
    outer.register(r2, IN)
    outer.register(ep.fileno(), IN)
    names = {f.fileno(): "socket", r2: "pipe", ep.fileno(): "set"}
    fires: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: c.send(b"x"), lambda: d.recv(1)),
        (lambda: os.write(w, b"x"), lambda: os.read(r, 1)),
        (lambda: e.send(b"x"), lambda: f.recv(1)),
        (lambda: os.write(w2, b"x"), lambda: os.read(r2, 1)),
    ]

    def seen(seconds: float = 0) -> list[tuple[str, str]]:
        return sorted((names[fd], bits(e)) for fd, e in outer.poll(seconds))

    for fire, take in fires * 2:
        threading.Timer(0.01, fire).start()
        print(seen(5), seen(), polled(outer))
        take()
        print(seen(), polled(outer), polled(ep))
    for fire, _ in fires:
        fire()
    print(becomes(seen, [("pipe", "IN"), ("set", "IN"), ("socket", "IN")]), len(ep.poll(0)))
    fires[0][1]()
    print(seen(), len(ep.poll(0)))
    fires[1][1]()
    print(seen(), len(ep.poll(0)))
    for _, take in fires[2:]:
        take()
    print(seen(), outer.poll(0.02))


@scenario
def nested_kernel_only() -> None:
    """Sets without a socket of ours in a program that has some; sockets come and go later."""
    c, d = pair()
    r, w = os.pipe()
    ep, outer = select.epoll(), select.epoll()
    ep.register(r, IN)
    outer.register(ep.fileno(), IN)
    for _ in range(2):
        print(reported(outer), polled(ep), polled(outer))
        threading.Timer(0.02, os.write, [w, b"x"]).start()
        print(reported(outer, 5), polled(ep), polled(outer), reported(ep))
        os.read(r, 1)
        print(reported(outer), polled(ep), polled(outer), reported(ep))
        ep.register(d, IN)
        threading.Timer(0.02, c.send, [b"x"]).start()
        print(reported(outer, 5), polled(ep), polled(outer), reported(ep), d.recv(1))
        ep.unregister(d)


def first_socket(
    wait: Callable[[select.epoll, select.epoll], list[tuple[int, int]]], joined: bool = True
) -> None:
    """A thread waits already when the program's first socket comes into a set, and the second."""
    r, w = os.pipe()
    low, high = select.epoll(), select.epoll()
    low.register(r, IN)
    for first in (True, False):
        if joined or not first:
            high.register(low.fileno(), IN)
        results: list[tuple[int, int]] = []
        waiting = threading.Thread(target=lambda: results.extend(wait(low, high)))  # noqa: B023
        waiting.start()
        asleep(waiting)
        c, d = pair()
        low.register(d, IN)
        c.send(b"x")
        waiting.join(10)
        print([({d.fileno(): "socket", low.fileno(): "set"}.get(fd), bits(e)) for fd, e in results])
        low.unregister(d)
        low, high = select.epoll(), select.epoll()
        low.register(r, IN)


@scenario
def epoll_first_socket() -> None:
    first_socket(lambda low, high: low.poll(5), False)


@scenario
def nested_first_socket_inner() -> None:
    first_socket(lambda low, high: low.poll(5))


@scenario
def nested_first_socket_outer() -> None:
    first_socket(lambda low, high: high.poll(5))


@scenario
def nested_first_socket_poll() -> None:
    first_socket(lambda low, high: low.poll(5) if polled(low, 5000) != "0" else [], False)


@scenario
def nested_threads() -> None:
    """One thread in the inner set, one in the outer, one in poll(): all hear of it."""
    c, d = pair()
    r, w = os.pipe()
    for with_pipe in (False, True):
        ep = inner(d)
        if with_pipe:
            ep.register(r, IN)
        outer = select.epoll()
        outer.register(ep.fileno(), IN)
        looks: list[Callable[[], object]] = [
            lambda: reported(ep, 5),  # noqa: B023
            lambda: reported(outer, 5),  # noqa: B023
            lambda: polled(ep, 5000),  # noqa: B023
            lambda: selected(ep, 5),  # noqa: B023
            lambda: polled(outer, 5000),  # noqa: B023
        ]
        moves: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (lambda: c.send(b"x"), lambda: d.recv(1)),
            (lambda: os.write(w, b"x"), lambda: os.read(r, 1)),
        ]
        for fire, take in moves if with_pipe else moves[:1]:
            results: list[object] = [None] * len(looks)

            def look(i: int) -> None:
                results[i] = looks[i]()  # noqa: B023

            jobs = [threading.Thread(target=look, args=[i]) for i in range(len(looks))]
            for j in jobs:
                j.start()
            for j in jobs:
                asleep(j)
            fire()
            for j in jobs:
                j.join(10)
            print(results)
            take()


@scenario
def nested_round_trips() -> None:
    """Two threads that only ever wait, each in another way: no wake-up is lost."""
    c, d = pair()
    r, w = os.pipe()
    sets = [inner(s) for s in (c, d)]
    outer = [select.epoll() for _ in sets]
    for low, high in zip(sets, outer, strict=True):
        high.register(low.fileno(), IN | ET)
    waits: list[Callable[[int], object]] = [
        lambda i: outer[i].poll(5) and sets[i].poll(0),
        lambda i: polled(sets[i], 5000),
        lambda i: selected(sets[i], 5)[0],
        lambda i: sets[i].poll(5),
        lambda i: polled(outer[i], 5000) != "0" and outer[i].poll(0) and sets[i].poll(0),
    ]
    done = [0, 0]

    def trips(i: int, mine: socket.socket) -> None:
        for k in range(300):
            if i == 0:
                mine.send(b"x")
            if not waits[(k + i) % len(waits)](i):
                print("lost", i, k)
                return
            mine.recv(1)
            done[i] += 1
            if i == 1:
                mine.send(b"x")

    for with_pipe in (False, True):
        if with_pipe:
            for low in sets:
                low.register(r, IN)
        jobs = [threading.Thread(target=trips, args=[i, s]) for i, s in enumerate((c, d))]
        for j in jobs:
            j.start()
        for j in jobs:
            j.join()
        print(done)
    os.close(w)


@scenario
def nested_loops() -> None:
    """An event loop in an event loop: the outer one runs the inner one when its set is readable."""
    low, high = asyncio.new_event_loop(), asyncio.new_event_loop()
    a = listener()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    def run_low() -> None:
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        while True:
            low.call_soon(low.stop)
            low.run_forever()
            if not low._ready:  # nothing but descriptors to wait for
                break
        asyncio._set_running_loop(before)

    async def client() -> bytes:
        reader, writer = await asyncio.open_connection(*a.getsockname())
        got = b""
        for _ in range(50):
            writer.write(b"hello")
            got += await asyncio.wait_for(reader.readexactly(5), 5)
        writer.close()
        return got

    low.run_until_complete(asyncio.start_server(echo, sock=a))
    high.add_reader(low._selector.fileno(), run_low)
    print(len(high.run_until_complete(client())))
    print(until(lambda: (run_low(), not asyncio.all_tasks(low))[1]))


@scenario
def nested_set_changes_while_waiting() -> None:
    """add and modify make a waited-for set readable; so does a kernel descriptor that comes in."""
    c, d = pair()
    r, w = os.pipe()
    c.send(b"x")
    os.write(w, b"x")
    arrived(d)
    ep = select.epoll()
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    changes: list[Callable[[], object]] = [
        lambda: ep.register(d, IN),
        lambda: ep.modify(d, OUT),
        lambda: ep.register(r, IN),
    ]
    undo: list[Callable[[], object]] = [
        lambda: ep.modify(d, 0),
        lambda: ep.unregister(d),
        lambda: ep.unregister(r),
    ]
    for change, back in zip(changes, undo, strict=True):
        threading.Timer(0.02, change).start()
        print(reported(outer, 5), polled(ep), polled(outer))
        back()
        print(reported(outer), polled(ep), polled(outer))
    ep.register(d, IN)
    for change, back in ((lambda: ep.modify(d, IN), lambda: ep.modify(d, 0)),) * 2:
        back()
        threading.Timer(0.02, change).start()
        print(polled(outer, 5000))


@scenario
def nested_closed() -> None:
    """The inner set goes: its last number, one of two, the outer one first."""
    c, d = pair()
    ep = inner(d)
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    c.send(b"x")
    print(reported(outer, 5))
    ep.close()
    print(reported(outer), polled(outer), outer.poll(0.02))
    ep = inner(d)
    outer.register(ep.fileno(), IN)
    print(reported(outer), polled(outer))
    outer.close()
    print(reported(ep), polled(ep))
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    print(reported(outer))
    d.close()
    print(reported(outer), reported(ep), polled(ep))


@scenario
def nested_data() -> None:
    """The outer entry's data is the program's, also when it looks like one of the library's."""
    c, d = pair()
    r, w = os.pipe()
    ep = inner(d)
    ep.register(r, IN)
    outer = select.epoll()
    libc = ctypes.CDLL(None)

    def ctl(op: int, data: int) -> int:
        event = (IN).to_bytes(4, "little") + data.to_bytes(8, "little")
        return int(libc.epoll_ctl(outer.fileno(), op, ep.fileno(), event))

    def waited() -> list[str]:
        events = ctypes.create_string_buffer(12 * 4)
        n = libc.epoll_wait(outer.fileno(), events, 4, 5000)
        return [events.raw[i * 12 : i * 12 + 12].hex() for i in range(n)]

    if ctypes.sizeof(ctypes.c_void_p) == 8:
        print(ctl(1, 0x1122334455667788))
        c.send(b"x")
        print(waited(), ctl(3, (1 << 64) - 1), waited(), d.recv(1))
        os.write(w, b"x")
        print(waited(), ctl(3, 7), waited())


@scenario
def nested_fork() -> None:
    """The child waits in its copies while the parent waits in its own."""
    c, d = pair()
    r, w = os.pipe()
    ep = inner(d)
    ep.register(r, IN)
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    for fire, take in (
        (lambda: c.send(b"x"), lambda: d.recv(1)),
        (lambda: os.write(w, b"x"), lambda: os.read(r, 1)),
    ):
        done = [os.pipe() for _ in range(2)]
        pids = []
        for i in range(2):
            pid = os.fork()
            if pid == 0:
                result = [
                    reported(outer, 5),
                    polled(ep, 5000),
                    [fd == d.fileno() for fd, _ in ep.poll(5)],
                ]
                os.write(done[i][1], repr(result).encode())
                os._exit(0)
            pids.append(pid)
        fire()
        print(reported(outer, 5), polled(ep, 5000))
        print([os.read(rr, 1000) for rr, _ in done], [os.waitpid(pid, 0)[1] for pid in pids])
        take()


@scenario
def nested_datagrams() -> None:
    """Datagram sockets live in both worlds."""
    a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for s in (a, b):
        s.bind(("127.0.0.1", 0))
    ep = inner(b)
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    print(reported(outer), polled(ep), polled(outer))
    for _ in range(2):
        threading.Timer(0.02, a.sendto, [b"x", b.getsockname()]).start()
        print(reported(outer, 5), polled(ep), polled(outer), reported(ep), b.recv(10))
        print(reported(outer), polled(ep), polled(outer), reported(ep))


@scenario
def nested_goes_to_the_kernel() -> None:
    """A connect() to nobody of ours: the entry in the inner set is the kernel's from then on."""
    s = socket.socket()
    s.setblocking(False)
    ep = inner(s, events=IN | OUT)
    outer = select.epoll()
    outer.register(ep.fileno(), IN)
    print(reported(outer, 5), reported(ep))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()
    s.connect_ex(nobody)
    print(reported(outer, 5), polled(ep, 5000), polled(outer))


# ---- flags of an entry ----


@scenario
def epoll_flags() -> None:
    exclusive, wakeup = 1 << 28, 1 << 29
    c, d = pair()
    ep, other = select.epoll(), select.epoll()
    others = {"rdhup": select.EPOLLRDHUP, "oneshot": ONESHOT, "pri": select.EPOLLPRI, "msg": 0x400}
    for name, bit in others.items():
        say(f"exclusive {name}", ep.register, d, IN | exclusive | bit)
    say("exclusive set", ep.register, other.fileno(), IN | exclusive)
    say("modify to exclusive, absent", ep.modify, d, IN | exclusive)
    say("exclusive", ep.register, d, IN | ET | OUT | wakeup | exclusive)
    say("twice", ep.register, d, IN)
    say("twice exclusive", ep.register, d, IN | exclusive)
    print(reported(ep, 5))
    say("modify", ep.modify, d, IN)
    say("modify to exclusive", ep.modify, d, IN | exclusive)
    c.send(b"x")
    print(reported(ep, 5))
    say("unregister", ep.unregister, d)
    say("wakeup", ep.register, d, IN | wakeup)
    say("modify wakeup", ep.modify, d, IN | OUT | wakeup)
    print(reported(ep, 5), polled(ep))
    say("modify to exclusive", ep.modify, d, IN | exclusive)
    say("wakeup set", other.register, ep.fileno(), IN | wakeup)
    print(reported(other))
    say("set to exclusive", other.modify, ep.fileno(), IN | exclusive)
    say("unregister", other.unregister, ep.fileno())
    d.close()
    say("exclusive", ep.register, c, IN | exclusive)
