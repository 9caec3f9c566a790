"""Small servers and clients that use sockets in ways in which somebody may wait for a timer.

``pairs.py serve NAME PORT`` and ``pairs.py ask NAME HOST PORT SECONDS``; ``pairs.py names``. The
client prints ``{"count", "p50_ms", "p99_ms", "slow_ms"}``; a wrong answer ends it with an error.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import http.client
import http.server
import json
import os
import queue
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SLOW_MS = 20.0
TCP = socket.IPPROTO_TCP
BACKLOG = 512
Serve = Callable[[socket.socket], None]  # one connection, in a thread of its own
Setup = Callable[[socket.socket], object]  # sets options
# Each step is one exchange, and yields the seconds of it that were a pause of its own; the first
# one sets up and does not count.
Ask = Callable[[tuple[str, int]], Iterator[float]]


def pattern(size: int) -> bytes:
    """Bytes whose place can be told from their values."""
    return array.array("H", (i & 0xFFFF for i in range(size // 2 + 1))).tobytes()[:size]


BODY = pattern(2_000_000)


def exactly(c: socket.socket, size: int) -> bytes:
    """`size` bytes; fewer at the end of file."""
    parts = []
    while size and (part := c.recv(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def expect(c: socket.socket, size: int) -> None:
    """The next `size` bytes are BODY's."""
    got = exactly(c, size)
    if got != BODY[:size]:
        raise SystemExit(f"wrong bytes: {len(got)} of {size}")


def no_delay(c: socket.socket) -> socket.socket:
    c.setsockopt(TCP, socket.TCP_NODELAY, 1)
    return c


def small(c: socket.socket) -> socket.socket:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        c.setsockopt(socket.SOL_SOCKET, option, 4096)
    return c


def pieces(c: socket.socket, size: int, draw: random.Random, flags: int = 0) -> None:
    """BODY[:size] in one to four writes; `flags` on all but the last."""
    cuts = sorted(draw.randrange(1, size) for _ in range(draw.randrange(0, 4))) if size > 1 else []
    ends = [*cuts, size]
    for start, end in zip([0, *cuts], ends, strict=True):
        if start < end:
            c.sendall(BODY[start:end], 0 if end == size else flags)


def sizes(draw: random.Random) -> int:
    """From one byte to some hundred kilobytes, small ones more often."""
    return min(int(2 ** (draw.random() * 18)), 200_000)


# Servers. A request begins with its own size and that of the answer, 8 digits each, except in echo.


def echo(c: socket.socket) -> None:
    while part := c.recv(65536):
        c.sendall(part)


def request(c: socket.socket) -> int | None:
    """Read one; the size that is wanted back."""
    head = exactly(c, 16)
    if len(head) < 16:
        return None
    expect(c, int(head[:8]))
    return int(head[8:])


def answering(write: Callable[[socket.socket, int], None], *setup: Setup) -> Serve:
    def serve(c: socket.socket) -> None:
        for option in setup:
            option(c)
        while (size := request(c)) is not None:
            write(c, size)

    return serve


def plain(c: socket.socket, size: int) -> None:
    c.sendall(BODY[:size])


def in_pieces(flags: int = 0) -> Callable[[socket.socket, int], None]:
    draw = random.Random(11)
    return lambda c, size: pieces(c, size, draw, flags)


def corked(c: socket.socket, size: int) -> None:
    c.setsockopt(TCP, socket.TCP_CORK, 1)
    pieces(c, size, random.Random(size))
    c.setsockopt(TCP, socket.TCP_CORK, 0)


def corked_pushed(c: socket.socket, size: int) -> None:
    """Setting TCP_NODELAY sends what CORK holds, and CORK stays."""
    c.setsockopt(TCP, socket.TCP_CORK, 1)
    pieces(c, size, random.Random(size))
    c.setsockopt(TCP, socket.TCP_NODELAY, 1)


def by_sendfile(c: socket.socket, size: int) -> None:
    """The first half written with MSG_MORE, then pieces of a file."""
    c.sendall(BODY[: size // 2], socket.MSG_MORE if size > 1 else 0)
    at = size // 2
    with tempfile.TemporaryFile() as file:
        file.write(BODY[:size])
        file.flush()
        while at < size:
            at += os.sendfile(c.fileno(), file.fileno(), at, max(1, size // 5))


def lines(c: socket.socket) -> None:
    """A pipelining client: answers of 1000 bytes, each a write, to requests of 20."""
    while len(exactly(c, 20)) == 20:
        c.sendall(BODY[:1000])


def to_the_end(c: socket.socket) -> None:
    parts = []
    while part := c.recv(65536):
        parts.append(part)
    c.sendall(b"".join(parts))
    c.shutdown(socket.SHUT_WR)


def corked_end(c: socket.socket) -> None:
    """CORK is still set when it is closed."""
    c.setsockopt(TCP, socket.TCP_CORK, 1)
    if (size := request(c)) is not None:
        pieces(c, size, random.Random(size))


def quick(c: socket.socket) -> None:
    """TCP_QUICKACK before each read, so that the client's second write does not wait."""
    while True:
        c.setsockopt(TCP, socket.TCP_QUICKACK, 1)
        if not exactly(c, 10):
            return
        c.setsockopt(TCP, socket.TCP_QUICKACK, 1)
        exactly(c, 50)
        c.sendall(BODY[:60])


def duplex(c: socket.socket) -> None:
    """Both sides write before they read."""
    while exactly(c, 1):
        writer = threading.Thread(target=c.sendall, args=(BODY[:500_000],))
        writer.start()
        expect(c, 500_000)
        writer.join()
        c.sendall(b"!")


def inherited(c: socket.socket) -> None:
    """As inetd: another program has the connection as stdin and stdout."""
    subprocess.run(["cat"], stdin=c.fileno(), stdout=c.fileno(), check=False)


def forked(c: socket.socket) -> None:
    """The child writes what the parent reads."""
    get, put = os.pipe()
    if os.fork() == 0:
        os.close(put)
        while part := os.read(get, 65536):
            c.sendall(part)
        os._exit(0)
    os.close(get)
    while part := c.recv(65536):
        os.write(put, part)
    os.close(put)


def peeking(c: socket.socket) -> None:
    """Looks at the head until all of it is there, then takes the whole."""
    while len(head := c.recv(16, socket.MSG_PEEK | socket.MSG_WAITALL)) == 16:
        want = 16 + int(head[:8])
        got = c.recv(want, socket.MSG_WAITALL)
        if got[16:] != BODY[: want - 16]:
            raise SystemExit("wrong bytes in the request")
        c.sendall(BODY[: int(head[8:])])


def low_water(c: socket.socket) -> None:
    """poll() until a whole request of 50 kB is there."""
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 50_000)
    poll = select.poll()
    poll.register(c, select.POLLIN)
    while True:
        poll.poll()
        got = c.recv(50_000, socket.MSG_DONTWAIT)
        if not got:
            return
        c.sendall(b"%8d" % len(got))


# Clients


def dial(to: tuple[str, int]) -> socket.socket:
    c = socket.create_connection(to)
    c.settimeout(20)
    c.setblocking(True)
    return c


def head(ask: int, answer: int) -> bytes:
    return b"%08d%08d" % (ask, answer)


def asking(
    size: Callable[[random.Random], int],
    answer: Callable[[random.Random], int],
    *setup: Setup,
    write: Callable[[socket.socket, int, random.Random], None] | None = None,
    fresh: bool = False,
    pause_s: float = 0,
) -> Ask:
    """Requests and answers of such sizes."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        draw = random.Random(7)
        c: socket.socket | None = None
        yield 0.0
        while True:
            time.sleep(pause_s)
            if c is None:
                c = dial(to)
                for option in setup:
                    option(c)
            out, back = size(draw), answer(draw)
            if write:
                c.sendall(head(out, back), socket.MSG_MORE)
                write(c, out, draw)
            else:
                c.sendall(head(out, back) + BODY[:out])
            expect(c, back)
            if fresh:
                if c.recv(1):
                    raise SystemExit("more than was asked for")
                c.close()
                c = None
            yield pause_s

    return ask


def fixed(size: int) -> Callable[[random.Random], int]:
    return lambda _: size


def echoing(size: int, *setup: Setup, pause_s: float = 0) -> Ask:
    """A thread writes while this one reads."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        c = dial(to)
        for option in setup:
            option(c)
        work: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def write() -> None:
            while True:
                c.sendall(work.get())

        threading.Thread(target=write, daemon=True).start()
        yield 0.0
        while True:
            time.sleep(pause_s)
            work.put(BODY[:size])
            expect(c, size)
            yield pause_s

    return ask


def pipelining(to: tuple[str, int]) -> Iterator[float]:
    yield from pipelined(dial(to))


def pipelining_small(to: tuple[str, int]) -> Iterator[float]:
    c = socket.socket()
    small(c).connect(to)
    yield from pipelined(c)


def pipelined(c: socket.socket) -> Iterator[float]:
    yield 0.0
    while True:
        c.sendall(b"x" * 20 * 200)
        for _ in range(200):
            expect(c, 1000)
        yield 0.0


def half_closing(to: tuple[str, int]) -> Iterator[float]:
    draw = random.Random(7)
    yield 0.0
    while True:
        with dial(to) as c:
            size = sizes(draw)
            pieces(c, size, draw)
            c.shutdown(socket.SHUT_WR)
            expect(c, size)
            if c.recv(1):
                raise SystemExit("more than was sent")
        yield 0.0


def write_write_read(to: tuple[str, int]) -> Iterator[float]:
    c = dial(to)
    yield 0.0
    while True:
        c.sendall(BODY[:10])
        c.sendall(BODY[10:60])
        expect(c, 60)
        yield 0.0


def duplex_ask(to: tuple[str, int]) -> Iterator[float]:
    c = dial(to)
    yield 0.0
    while True:
        c.sendall(b"!")
        writer = threading.Thread(target=c.sendall, args=(BODY[:500_000],))
        writer.start()
        expect(c, 500_000)
        writer.join()
        exactly(c, 1)
        yield 0.0


def pausing(to: tuple[str, int]) -> Iterator[float]:
    """Lets the window close; timed is what follows when it reads again."""
    c = dial(to)
    yield 0.0
    while True:
        c.sendall(head(0, 2_000_000))
        time.sleep(0.3)
        expect(c, 2_000_000)
        yield 0.3


def low_water_ask(to: tuple[str, int]) -> Iterator[float]:
    c = no_delay(dial(to))
    yield 0.0
    while True:
        for at in range(0, 50_000, 1000):
            c.sendall(BODY[at : at + 1000])
        exactly(c, 8)
        yield 0.0


def with_timeout(to: tuple[str, int]) -> Iterator[float]:
    """Asks again and again for what takes its time: nothing may get lost between two asks."""
    c = dial(to)
    c.settimeout(0.003)
    yield 0.0
    while True:
        c.settimeout(5)
        c.sendall(head(0, 300_000))
        c.settimeout(0.003)
        got = 0
        while got < 300_000:
            with contextlib.suppress(TimeoutError):
                got += len(c.recv(7000))
        yield 0.0


def storm(count: int) -> Ask:
    """Many connections at once; all connected, all answered."""

    def ask(to: tuple[str, int]) -> Iterator[float]:
        yield 0.0
        while True:
            ep = select.epoll()
            live = {}
            for _ in range(count):
                c = socket.socket()
                c.setblocking(False)
                c.connect_ex(to)
                ep.register(c, select.EPOLLOUT)
                live[c.fileno()] = c
            while live:
                for fd, event in ep.poll():
                    c = live[fd]
                    if event & select.EPOLLOUT:
                        c.send(b"ping")
                        ep.modify(fd, select.EPOLLIN)
                    elif c.recv(4) == b"ping":
                        del live[fd]
                        c.close()
                    else:
                        raise SystemExit(f"a connection ended early: {event:#x}")
            yield 0.0

    return ask


# TLS, HTTP, asyncio


def certificate() -> tuple[str, str]:
    """A self-signed one, made at first use."""
    where = Path(tempfile.gettempdir()) / f"neat-pairs-{os.getuid()}"
    where.mkdir(mode=0o700, exist_ok=True)
    cert, key = where / "cert.pem", where / "key.pem"
    if not (cert.exists() and key.exists()):
        new_key, new = where / f"key.{os.getpid()}", where / f"cert.{os.getpid()}"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
            + ["-subj", "/CN=localhost", "-keyout", str(new_key), "-out", str(new)],
            check=True,
            capture_output=True,
        )
        new_key.rename(key)
        new.rename(cert)
    return str(cert), str(key)


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate())
    return context


def client_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def tls_echo(c: socket.socket) -> None:
    with server_tls().wrap_socket(c, server_side=True) as secure:
        echo(secure)
        secure.unwrap()


def tls(fresh: bool) -> Ask:
    def ask(to: tuple[str, int]) -> Iterator[float]:
        context, draw = client_tls(), random.Random(7)
        c = context.wrap_socket(dial(to))
        yield 0.0
        while True:
            size = min(sizes(draw), 30_000)
            c.sendall(BODY[:size])
            expect(c, size)
            if fresh:
                c.unwrap()
                c.close()
                c = context.wrap_socket(dial(to))
            yield 0.0

    return ask


class Chunked(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        got = b""
        while size := int(self.rfile.readline(), 16):
            got += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(got), 3000):
            part = got[at : at + 3000]
            self.wfile.write(b"%x\r\n" % len(part))
            self.wfile.write(part)
            self.wfile.write(b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


def serve_chunked(port: int) -> None:
    http.server.ThreadingHTTPServer(("", port), Chunked).serve_forever()


def chunked(to: tuple[str, int]) -> Iterator[float]:
    c = http.client.HTTPConnection(*to)
    draw = random.Random(7)
    yield 0.0
    while True:
        size = sizes(draw)
        parts = (BODY[at : min(at + 5000, size)] for at in range(0, size, 5000))
        c.request("POST", "/", body=parts, encode_chunked=True)
        if c.getresponse().read() != BODY[:size]:
            raise SystemExit("wrong bytes")
        yield 0.0


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.CancelledError, ssl.SSLError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()


async def _upgraded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.readline() == b"STARTTLS\r\n":
        writer.write(b"go\r\n")
        await writer.drain()
        await writer.start_tls(server_tls())  # type: ignore[attr-defined]
        await _echo(reader, writer)


def serve_asyncio(kind: str) -> Callable[[int], None]:
    async def main(port: int) -> None:
        if kind == "starttls":
            server = await asyncio.start_server(_upgraded, "0.0.0.0", port)
        else:
            secure = server_tls() if kind == "tls" else None
            server = await asyncio.start_server(_echo, "0.0.0.0", port, ssl=secure)
        await server.serve_forever()

    return lambda port: asyncio.run(main(port))


def asyncio_ask(kind: str) -> Ask:
    async def connect(to: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            *to, ssl=client_tls() if kind == "tls" else None
        )
        if kind == "starttls":
            writer.write(b"STARTTLS\r\n")
            await reader.readline()
            await writer.start_tls(client_tls())  # type: ignore[attr-defined]
        return reader, writer

    async def exchange(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int
    ) -> None:
        writer.write(BODY[:size])
        if await reader.readexactly(size) != BODY[:size]:
            raise SystemExit("wrong bytes")

    def ask(to: tuple[str, int]) -> Iterator[float]:
        loop, draw, turn = asyncio.new_event_loop(), random.Random(7), 0
        reader, writer = loop.run_until_complete(connect(to))
        yield 0.0
        while True:
            loop.run_until_complete(exchange(reader, writer, sizes(draw)))
            turn += 1
            if turn % 20 == 0:
                writer.close()
                reader, writer = loop.run_until_complete(connect(to))
            yield 0.0

    return ask


# Servers that are not a thread for each connection


def serve_prefork(port: int) -> None:
    """Four processes sleep in accept() of one socket."""
    listener = socket.create_server(("", port), backlog=BACKLOG)
    for _ in range(3):
        if os.fork() == 0:
            break
    while True:
        c, _ = listener.accept()
        with c:
            request_size = request(c)
            if request_size is not None:
                plain(c, request_size)


def serve_herd(port: int) -> None:
    """Four processes wait by epoll for one non-blocking listener."""
    listener = socket.create_server(("", port), backlog=BACKLOG)
    listener.setblocking(False)
    for _ in range(3):
        if os.fork() == 0:
            break
    ep = select.epoll()
    ep.register(listener, select.EPOLLIN)
    while True:
        ep.poll()
        with contextlib.suppress(BlockingIOError):
            c, _ = listener.accept()
            with c:
                c.setblocking(True)
                request_size = request(c)
                if request_size is not None:
                    plain(c, request_size)


def serve_backlog(backlog: int) -> Callable[[int], None]:
    """Accepts one, answers, then the next."""

    def serve(port: int) -> None:
        listener = socket.create_server(("", port), backlog=backlog)
        while True:
            c, _ = listener.accept()
            with c, contextlib.suppress(OSError):
                c.sendall(c.recv(4))

    return serve


def serve_udp(port: int) -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", port))
    threading.Thread(target=serve_threads(echo), args=(port,), daemon=True).start()  # readiness
    while True:
        message, sender = s.recvfrom(65536)
        s.sendto(message, sender)


def udp(to: tuple[str, int]) -> Iterator[float]:
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.connect(to)
    c.settimeout(5)
    draw = random.Random(7)
    yield 0.0
    while True:
        size = min(sizes(draw), 60_000)
        c.send(BODY[:size])
        if c.recv(65536) != BODY[:size]:
            raise SystemExit("wrong bytes")
        yield 0.0


def serve_threads(serve: Serve, setup: Setup | None = None) -> Callable[[int], None]:
    def run(c: socket.socket) -> None:
        with c, contextlib.suppress(OSError):
            serve(c)

    def main(port: int) -> None:
        listener = socket.create_server(("", port), backlog=BACKLOG)
        if setup:
            setup(listener)
        while True:
            c, _ = listener.accept()
            threading.Thread(target=run, args=(c,), daemon=True).start()

    return main


def serve_processes(serve: Serve) -> Callable[[int], None]:
    """A child for each connection, as servers of old."""

    def main(port: int) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        listener = socket.create_server(("", port), backlog=BACKLOG)
        while True:
            c, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                with contextlib.suppress(OSError):
                    serve(c)
                os._exit(0)
            c.close()

    return main


def send_pieces(flags: int = 0) -> Callable[[socket.socket, int, random.Random], None]:
    return lambda c, size, draw: pieces(c, size, draw, flags)


MORE = socket.MSG_MORE
PAIRS: dict[str, tuple[Callable[[int], None], Ask]] = {
    "echo": (serve_threads(echo), echoing(64)),
    "echo-250ms": (serve_threads(echo), echoing(64, pause_s=0.25)),
    "echo-100k": (serve_threads(echo), echoing(100_000)),
    "echo-2M": (serve_threads(echo), echoing(2_000_000)),
    "small-buffers": (serve_threads(echo, small), echoing(100_000, small)),
    "small-sender": (serve_threads(echo), echoing(100_000, small)),
    "small-receiver": (serve_threads(echo, small), echoing(100_000)),
    "forked": (serve_processes(forked), echoing(1000)),
    "forked-100k": (serve_processes(forked), echoing(100_000)),
    "inetd": (serve_threads(inherited), echoing(5000)),
    "sizes": (serve_threads(answering(plain)), asking(sizes, sizes)),
    "sizes-fresh-250ms": (serve_threads(answering(plain)), asking(sizes, sizes, pause_s=0.25)),
    "pieces-nodelay": (
        serve_threads(answering(in_pieces(), no_delay)),
        asking(sizes, sizes, no_delay, write=send_pieces()),
    ),
    "pieces": (
        serve_threads(answering(in_pieces())),
        asking(sizes, sizes, write=send_pieces()),
    ),
    "more": (
        serve_threads(answering(in_pieces(MORE))),
        asking(sizes, sizes, write=send_pieces(MORE)),
    ),
    "cork": (serve_threads(answering(corked)), asking(sizes, sizes)),
    "cork-pushed": (serve_threads(answering(corked_pushed)), asking(fixed(10), sizes)),
    "cork-end": (serve_threads(corked_end), asking(fixed(10), sizes, fresh=True)),
    "sendfile": (serve_threads(answering(by_sendfile)), asking(fixed(10), sizes)),
    "quickack": (serve_threads(quick), write_write_read),
    "pipelining": (serve_threads(lines), pipelining),
    "pipelining-small": (serve_threads(lines, small), pipelining_small),
    "half-close": (serve_threads(to_the_end), half_closing),
    "duplex": (serve_threads(duplex), duplex_ask),
    "duplex-small": (serve_threads(duplex, small), duplex_ask),
    "pause": (serve_threads(answering(plain)), pausing),
    "pause-small": (serve_threads(answering(plain), small), pausing),
    "peek": (serve_threads(peeking), asking(sizes, sizes)),
    "low-water": (serve_threads(low_water), low_water_ask),
    "timeout": (serve_threads(answering(plain)), with_timeout),
    "prefork": (serve_prefork, asking(fixed(10), sizes, fresh=True)),
    "herd": (serve_herd, asking(fixed(10), sizes, fresh=True)),
    "storm": (serve_backlog(BACKLOG), storm(200)),
    "backlog-1": (serve_backlog(1), storm(5)),
    "backlog-16": (serve_backlog(16), storm(30)),
    "backlog-0": (serve_backlog(0), storm(1)),
    "tls": (serve_threads(tls_echo), tls(False)),
    "tls-fresh": (serve_threads(tls_echo), tls(True)),
    "chunked": (serve_chunked, chunked),
    "asyncio": (serve_asyncio("plain"), asyncio_ask("plain")),
    "asyncio-tls": (serve_asyncio("tls"), asyncio_ask("tls")),
    "asyncio-starttls": (serve_asyncio("starttls"), asyncio_ask("starttls")),
    "udp": (serve_udp, udp),
}


def measure(step: Iterator[float], seconds: float) -> None:
    """Asks for so long, and prints what was found."""
    next(step)
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        paused = next(step)
        took.append((time.monotonic() - start - paused) * 1e3)
    slow = [round(t, 1) for t in took if t >= SLOW_MS]
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(json.dumps({"count": len(took), "p50_ms": p50, "p99_ms": p99, "slow_ms": slow}))


def main() -> None:
    if sys.argv[1] == "names":
        print("\n".join(PAIRS))
        return
    name = sys.argv[2]
    serve, ask = PAIRS[name]
    if sys.argv[1] == "serve":
        serve(int(sys.argv[3]))
    else:
        measure(ask((sys.argv[3], int(sys.argv[4]))), float(sys.argv[5]))


if __name__ == "__main__":
    main()
