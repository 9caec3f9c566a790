"""Closed loops against real servers, for ``python -m bench stalls``.

``main()`` takes NAME HOST PORT SECONDS and prints what ``pairs.py ask`` prints.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import sys
from collections.abc import Iterator

from bench.loads.pairs import BODY, Ask, exactly, measure, no_delay

CROWD = 16
STORM = 100
LARGE = 100_000
DATAGRAM = 65_536


def connected(to: tuple[str, int]) -> socket.socket:
    c = socket.create_connection(to)
    c.settimeout(20)
    return c


def check(good: bool, what: object) -> None:
    if not good:
        raise SystemExit(f"wrong answer: {what!r:.200}")


# ---- HTTP ----


def read_answer(c: socket.socket, want: int) -> None:
    """One response with a Content-Length of `want`, and no byte more."""
    got = b""
    while (end := got.find(b"\r\n\r\n")) < 0:
        part = c.recv(65536)
        check(bool(part), got)
        got += part
    head = got[:end].lower()
    check(b" 200 " in head and b"content-length: %d" % want in head, got)
    body = got[end + 4 :]
    check(len(body + exactly(c, want - len(body))) == want, len(body))


def request(path: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def keep_alive(path: str, want: int) -> Ask:
    def ask(to: tuple[str, int]) -> Iterator[float]:
        c = connected(to)
        yield 0.0
        while True:
            c.sendall(request(path))
            read_answer(c, want)
            yield 0.0

    return ask


def fresh(path: str, want: int) -> Ask:
    """A connection for each request, which the server closes."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        yield 0.0
        while True:
            with connected(to) as c:
                c.sendall(request(path, "Connection: close\r\n"))
                read_answer(c, want)
                check(c.recv(1) == b"", "more")
            yield 0.0

    return ask


def polled(path: str, want: int) -> Ask:
    """As httperf does: never sleeps, looks with a time-out of zero."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        yield 0.0
        while True:
            with socket.socket() as c:
                c.setblocking(False)
                c.connect_ex(to)
                while not select.select([], [c], [], 0)[1]:
                    pass
                c.send(request(path, "Connection: close\r\n"))
                got = b""
                while not got.endswith(b"x" * want):
                    while not select.select([c], [], [], 0)[0]:
                        pass
                    part = c.recv(65536)
                    check(bool(part), got)
                    got += part
            yield 0.0

    return ask


def crowd(path: str, want: int, fresh_ones: bool) -> Ask:
    """As many at once; an exchange ends with the last answer."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        conns: list[socket.socket] = []
        yield 0.0
        while True:
            count = STORM if fresh_ones else CROWD
            conns += [connected(to) for _ in range(count - len(conns))]
            for c in conns:
                c.sendall(request(path, "Connection: close\r\n" if fresh_ones else ""))
            for c in conns:
                read_answer(c, want)
            while fresh_ones and conns:
                conns.pop().close()
            yield 0.0

    return ask


def post(size: int, pause: bool) -> Ask:
    """Header and body in two writes; with `pause` the client asks first if the body may come."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        c = connected(to)
        more = "Expect: 100-continue\r\n" if pause else ""
        head = f"POST / HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {size}\r\n\r\n".encode()
        yield 0.0
        while True:
            c.sendall(head)
            if pause:
                check(b"100 Continue" in c.recv(25), "no 100")
            c.sendall(BODY[:size])
            read_answer(c, len(str(size)))
            yield 0.0

    return ask


# ---- redis ----


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def say(c: socket.socket, want: bytes, *words: bytes) -> None:
    c.sendall(command(*words))
    answer(c, want)


def answer(c: socket.socket, want: bytes) -> None:
    got = exactly(c, len(want))
    check(got == want, got)


def redis_get(to: tuple[str, int]) -> Iterator[float]:
    c = no_delay(connected(to))
    draw = random.Random(3)
    yield 0.0
    while True:
        value = BODY[: draw.choice((1, 100, 5000, LARGE))]
        say(c, b"+OK\r\n", b"SET", b"k", value)
        say(c, b"$%d\r\n%s\r\n" % (len(value), value), b"GET", b"k")
        yield 0.0


def redis_pipeline(to: tuple[str, int]) -> Iterator[float]:
    c = connected(to)
    yield 0.0
    while True:
        for _ in range(20):
            c.sendall(command(b"SET", b"p", BODY[:500]))
            c.sendall(command(b"GET", b"p"))
        for _ in range(20):
            answer(c, b"+OK\r\n$500\r\n" + BODY[:500] + b"\r\n")
        yield 0.0


def redis_publish(to: tuple[str, int]) -> Iterator[float]:
    """One publisher, several subscribers: until all of them have the message."""
    publisher = connected(to)
    subscribers = [connected(to) for _ in range(8)]
    for c in subscribers:
        say(c, b"*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n", b"SUBSCRIBE", b"ch")
    draw = random.Random(5)
    yield 0.0
    while True:
        text = BODY[: draw.choice((1, 100, 20_000))]
        publisher.sendall(command(b"PUBLISH", b"ch", text))
        for c in subscribers:
            answer(c, command(b"message", b"ch", text))
        answer(publisher, b":8\r\n")
        yield 0.0


def redis_blpop(to: tuple[str, int]) -> Iterator[float]:
    """Two lists as queues: a waiter gets what another pushes, and the other way around."""
    waiter, pusher = connected(to), connected(to)
    yield 0.0
    while True:
        for w, p, key in ((waiter, pusher, b"a"), (pusher, waiter, b"b")):
            w.sendall(command(b"BLPOP", key, b"5"))
            say(p, b":1\r\n", b"RPUSH", key, b"value")
            answer(w, command(key, b"value"))
        yield 0.0


# ---- memcached ----


def memcached_get(to: tuple[str, int]) -> Iterator[float]:
    c = connected(to)
    draw = random.Random(3)
    yield 0.0
    while True:
        value = BODY[: draw.choice((1, 100, 5000, LARGE))]
        c.sendall(b"set k 0 0 %d\r\n" % len(value))
        c.sendall(value + b"\r\n")
        answer(c, b"STORED\r\n")
        c.sendall(b"get k\r\n")
        answer(c, b"VALUE k 0 %d\r\n%s\r\nEND\r\n" % (len(value), value))
        yield 0.0


def datagrams(c: socket.socket, number: int, text: bytes) -> bytes:
    """One request of memcached over UDP: its answer, put together."""
    c.send(struct.pack("!HHHH", number & 0xFFFF, 0, 1, 0) + text)
    parts: dict[int, bytes] = {}
    count = 1
    while len(parts) < count:
        got = c.recv(DATAGRAM)
        who, index, count, _ = struct.unpack("!HHHH", got[:8])
        check(who == number & 0xFFFF, got)
        parts[index] = got[8:]
    return b"".join(parts[i] for i in range(count))


def memcached_udp(to: tuple[str, int]) -> Iterator[float]:
    """Values of one datagram and of twenty."""
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.connect(to)
    c.settimeout(5)
    small, large = BODY[:1000], BODY[:25_000]
    check(datagrams(c, 0, b"set s 0 0 1000\r\n" + small + b"\r\n") == b"STORED\r\n", "set")
    with connected(to) as t:
        t.sendall(b"set l 0 0 25000\r\n" + large + b"\r\n")
        answer(t, b"STORED\r\n")
    number = 0
    yield 0.0
    while True:
        number += 1
        key, value = (b"s", small) if number % 4 else (b"l", large)
        want = b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (key, len(value), value)
        check(datagrams(c, number, b"get " + key + b"\r\n") == want, key)
        yield 0.0


ASKS: dict[str, Ask] = {
    "keep": keep_alive("/small", 20),
    "keep-large": keep_alive("/large", LARGE),
    "fresh": fresh("/small", 20),
    "fresh-large": fresh("/large", LARGE),
    "polled": polled("/large", LARGE),
    "crowd": crowd("/large", LARGE, False),
    "storm": crowd("/small", 20, True),
    "post": post(3000, False),
    "post-large": post(LARGE, False),
    "expect": post(3000, True),
    "redis-get": redis_get,
    "redis-pipeline": redis_pipeline,
    "redis-publish": redis_publish,
    "redis-blpop": redis_blpop,
    "memcached-get": memcached_get,
    "memcached-udp": memcached_udp,
}


def main() -> None:
    measure(ASKS[sys.argv[1]]((sys.argv[2], int(sys.argv[3]))), float(sys.argv[4]))
