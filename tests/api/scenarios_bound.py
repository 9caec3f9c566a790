"""connect() to somebody of the kernel's, who may be slow, or to nobody, also of a bound socket."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

from .tools import FULL_LISTENER, asleep, listener, outcome, outside, revents, say, scenario, until

HOST = """
import socket, sys
a = socket.create_server(("127.0.0.1", 0))
print(a.getsockname()[1], flush=True)
while True:
    print(a.accept()[1][1], flush=True)
"""


def unused() -> tuple[str, int]:
    """A port that nobody has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        name: tuple[str, int] = s.getsockname()
        return name


def bind(s: socket.socket, address: str = "127.0.0.1") -> tuple[str, int]:
    """To a port that it names: Linux keeps that one only."""

    def bound() -> bool:
        with contextlib.suppress(OSError):
            s.bind((address, unused()[1]))
            return True
        return False

    assert until(bound)
    name: tuple[str, int] = s.getsockname()
    return name


def taken(name: tuple[str, int]) -> str:
    """What others hear who want the port, with and without SO_REUSEADDR."""
    results = []
    for reuse in (0, 1):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            results.append(outcome(s.bind, name))
    code = """import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    s.bind((sys.argv[1], int(sys.argv[2])))
except OSError as err:
    print(err.errno)
"""
    out, _ = outside(code, name[0], str(name[1])).communicate()
    return " ".join([*results, out.decode().strip()])


@scenario
def bound_and_refused() -> None:
    """A socket stays bound when connect() fails, and may try again from there."""
    nowhere = unused()
    for destination in (nowhere, ("255.255.255.255", 9)):
        for address in ("127.0.0.1", "0.0.0.0"):
            s = socket.socket()
            name = bind(s, address)
            for _ in range(3):
                print(s.connect_ex(destination), s.getsockname() == name, taken(name))
            a = listener()
            say("connect", s.connect, a.getsockname())
            print(a.accept()[1][1] == name[1], s.getsockname()[1] == name[1])


@scenario
def bound_goes_to_the_kernel() -> None:
    """From the port that it is bound to, whoever shares it."""
    host = outside(HOST, stdin=subprocess.PIPE)
    assert host.stdin and host.stdout
    nowhere, there = unused(), ("127.0.0.1", int(host.stdout.readline()))
    for blocking in (True, False):
        for shared in (False, True):
            s, t = socket.socket(), socket.socket()
            for each in (s, t):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
            name = bind(s)
            if shared:
                t.bind(name)
            s.setblocking(blocking)
            print(s.connect_ex(nowhere) in (errno.ECONNREFUSED, errno.EINPROGRESS))
            until(lambda s=s: revents(s) != "0")
            s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if blocking:
                print(s.connect_ex(there), s.getsockname() == name)
                print(int(host.stdout.readline()) == name[1])
            say("bind of the other", t.bind, name)
            s.close()
            if shared:
                say("listen", t.listen)
            u = socket.socket()
            say("bind of a third", u.bind, name)
    host.kill()
    host.wait()


@scenario
def bound_shares_its_port_after_it() -> None:
    """SO_REUSEPORT, as those who punch holes do; and a port with connections of the kernel's."""
    host = outside(HOST, stdin=subprocess.PIPE)
    assert host.stdin and host.stdout
    there = ("127.0.0.1", int(host.stdout.readline()))
    s, t, u = socket.socket(), socket.socket(), socket.socket()
    for each in (s, t):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    name = bind(s)
    say("connect", s.connect, there)
    say("bind of the other", t.bind, name)
    say("bind of a third", u.bind, name)
    s, t = socket.socket(), socket.socket()
    for each in (s, t):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    name = bind(s)
    say("connect", s.connect, there)
    s.close()
    say("bind again", t.bind, name)
    say("listen", t.listen)
    print(taken(name))
    host.kill()
    host.wait()


# ---- one that answers late ----


@contextlib.contextmanager
def slow() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """It takes connections once its input is closed."""
    host = outside(FULL_LISTENER, stdin=subprocess.PIPE)
    assert host.stdin and host.stdout
    yield int(host.stdout.readline()), host
    host.kill()
    host.wait()


def libc_connect(s: socket.socket, port: int) -> str:
    """As a C program calls it: Python's method goes on after a signal."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), bytes([127, 0, 0, 1]))
    rc = libc.connect(s.fileno(), address, len(address))
    return errno.errorcode[ctypes.get_errno()] if rc else "0"


@scenario
def slow_connect_interrupted() -> None:
    """By a handler with SA_RESTART it is not, and the connection comes either way."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    main = threading.main_thread()
    for restart in (False, True):
        signal.siginterrupt(signal.SIGUSR1, not restart)
        with slow() as (port, host):

            def interrupt(host: subprocess.Popen[bytes] = host, restart: bool = restart) -> None:
                asleep(main)
                assert host.stdin and main.ident
                signal.pthread_kill(main.ident, signal.SIGUSR1)
                if restart:
                    host.stdin.close()

            s = socket.socket()
            thread = threading.Thread(target=interrupt)
            thread.start()
            print(restart, libc_connect(s, port))
            thread.join()
            assert host.stdin
            host.stdin.close()
            print(until(lambda s=s: revents(s) == "OUT|WRNORM"))
            say("peer", lambda s=s, port=port: s.getpeername()[1] == port)


@scenario
def slow_connect_of_two_threads() -> None:
    """Who comes while another waits waits with it; who does not block hears of it."""
    with slow() as (port, host):
        s, results = socket.socket(), list[str]()

        def connect() -> None:
            results.append(libc_connect(s, port))

        threads = [threading.Thread(target=connect) for _ in range(2)]
        for thread in threads:
            thread.start()
            asleep(thread)
        s.setblocking(False)
        print(libc_connect(s, port))
        say("bind", s.bind, ("127.0.0.1", 0))
        say("listen", s.listen)
        s.setblocking(True)
        assert host.stdin
        host.stdin.close()
        for thread in threads:
            thread.join()
        print(results, s.getpeername()[1] == port)


@scenario
def slow_connect_with_a_timeout() -> None:
    with slow() as (port, host):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, 50_000))
        print(libc_connect(s, port), libc_connect(s, port))
        assert host.stdin
        host.stdin.close()
        print(until(lambda: revents(s) == "OUT|WRNORM"), libc_connect(s, port))
