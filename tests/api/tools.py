"""What the scenarios are made of: outcomes as text, connections, conditions with a deadline."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import select
import socket
import struct
import subprocess
import sys
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


WAITS = {
    str(nr) for nr in (0, 7, 23, 42, 45, 47, 232, 270, 271, 281, 441, 202, 449, 22, 72, 73, 98, 203)
}


def asleep(thread: threading.Thread) -> None:
    """Until the thread sleeps in a system call that waits for descriptors."""

    def waits() -> bool:
        with open(f"/proc/self/task/{thread.native_id}/syscall") as f:
            return f.read().split()[0] in WAITS

    assert until(waits)


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


def outside(code: str, *args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """A Python program on the kernel, whatever we are on; its output comes through a pipe."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LD_PRELOAD", "NEATSOCK"))}
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, **kwargs)


# A host for outside(): connect() to it waits, until its input is closed.
FULL_LISTENER = """
import socket, sys
a = socket.socket()
a.bind(("127.0.0.1", 0))
a.listen(0)
fill = [socket.socket() for _ in range(4)]
for s in fill:
    s.setblocking(False)
    s.connect_ex(a.getsockname())
print(a.getsockname()[1], flush=True)
sys.stdin.readline()
while True:
    fill.append(a.accept()[0])
"""


def sink(s: socket.socket) -> bytes:
    out = bytearray()
    while piece := s.recv(65536):
        out += piece
    return bytes(out)


def pattern(n: int) -> bytes:
    return bytes((i * 7 + i // 251) & 255 for i in range(n))


def die_in(calls: list[int], fcntl_nr: int = -1) -> None:
    """The process dies as it enters one of these system calls; of fcntl(2) only F_DUPFD counts."""
    load_nr, load_arg1 = struct.pack("HBBI", 0x20, 0, 0, 0), struct.pack("HBBI", 0x20, 0, 0, 24)
    allow, kill = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("HBBI", 6, 0, 0, 0x80000000)

    def unless(value: int, skip: int) -> bytes:
        return struct.pack("HBBI", 0x15, 0, skip, value)

    code = load_nr + b"".join(unless(nr, 1) + kill for nr in calls)
    code += unless(fcntl_nr & 0xFFFFFFFF, 5) + load_arg1
    code += b"".join(unless(n, 1) + kill for n in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC))
    program = ctypes.create_string_buffer(code + allow)
    packed = struct.pack("HxxxxxxQ", len(code + allow) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, packed, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
