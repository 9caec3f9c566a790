"""What the scenarios are made of: outcomes as text, connections, conditions with a deadline."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import select
import socket
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
SCENARIOS: dict[str, Callable[[], None]] = {}  # of the subjects that were imported


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
