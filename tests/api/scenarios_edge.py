"""Edges of what the library sees: duplicated epoll sets, wrong pointers, inherited sockets."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import Any

from .tools import bits, listener, outside, pair, say, scenario, settled, sink, until

# ---- numbers of an epoll set ----


def seen(ep: select.epoll, seconds: float = 5) -> list[tuple[int, str]]:
    return [(data, bits(events)) for data, events in ep.poll(seconds)]


def duplicates(fd: int) -> list[int]:
    spare = os.open("/dev/null", os.O_RDONLY)
    return [
        os.dup(fd),
        os.dup2(fd, spare),
        fcntl.fcntl(fd, fcntl.F_DUPFD, 100),
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100),
    ]


@scenario
def epoll_dup_shares() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    others = [select.epoll.fromfd(fd) for fd in duplicates(ep.fileno())]
    c.send(b"x")
    for other in [ep, *others]:
        print([(data == d.fileno(), what) for data, what in seen(other)])
    d.recv(1)
    print([other.poll(0.01) for other in [ep, *others]])
    others[0].unregister(d)
    c.send(b"x")
    print([other.poll(0.05) for other in [ep, *others]])
    others[1].register(d, select.EPOLLIN)
    print([len(seen(other)) for other in [ep, *others]])


@scenario
def epoll_dup_outlives() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    others = [select.epoll.fromfd(fd) for fd in duplicates(ep.fileno())]
    ep.close()
    for i, other in enumerate(others):
        c.send(b"x")
        print([(data == d.fileno(), what) for data, what in seen(other)])
        d.recv(1)
        if i % 2:
            other.close()
        else:  # something else sits on the number now
            os.dup2(os.open("/dev/null", os.O_RDONLY), other.fileno())


@scenario
def epoll_dup_replaces() -> None:
    """A set that lost its last number to dup2() of another set is gone."""
    c, d = pair()
    first, second = select.epoll(), select.epoll()
    first.register(d, select.EPOLLIN)
    os.dup2(second.fileno(), first.fileno())
    c.send(b"x")
    print(first.poll(0.05), second.poll(0.05))
    first.register(d, select.EPOLLIN)
    print(len(seen(first)), len(seen(second)))


@scenario
def epoll_number_again() -> None:
    """close_range() ends a set; what has its number next is another one."""
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    number = ep.fileno()
    os.closerange(number, number + 1)
    c.send(b"x")
    again = select.epoll()
    print(again.fileno() == number, again.poll(0.05))
    again.register(d, select.EPOLLIN)
    print(len(seen(again)))


@scenario
def epoll_inherited() -> None:
    """Only events of the program's own registrations reach a child or a new image."""
    c, d = pair()
    r, w = os.pipe()
    ep = select.epoll()
    ep.register(r, select.EPOLLIN)
    ep.register(d, select.EPOLLIN)
    c.send(b"x")
    print(until(lambda: len(ep.poll(0)) == 1))
    d.recv(1)
    os.write(w, b"x")
    code = (
        "import select,sys; e = select.epoll.fromfd(int(sys.argv[1]));"
        "print([d == int(sys.argv[2]) for d, _ in e.poll(5)], flush=True)"
    )
    for fork_only in (True, False):
        fd = os.dup(ep.fileno())
        os.set_inheritable(fd, True)
        pid = os.fork()
        if pid == 0 and fork_only:
            print([data == r for data, _ in select.epoll.fromfd(fd).poll(5)], flush=True)
            os._exit(0)
        elif pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", code, str(fd), str(r)])
        print(os.waitpid(pid, 0)[1])


# ---- syscall(2), by the numbers that libuv and others call past libc ----

# dup, dup2, fcntl, sendmmsg, close, close_range, writev, readv, getsockname, setsockopt, getsockopt
NUMBERS = {
    "x86_64": (32, 33, 72, 307, 3, 436, 20, 19, 51, 54, 55),
    "aarch64": (23, None, 25, 269, 57, 436, 66, 65, 204, 208, 209),
}


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("len", ctypes.c_size_t))


class Header(ctypes.Structure):
    """struct msghdr of 64-bit machines."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Message(Header):
    """struct mmsghdr."""

    _fields_ = (("length", ctypes.c_uint),)


def by_number(number: int, *args: Any) -> int:
    """syscall(2) as a C program calls it: -errno on failure."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    rc = LIBC.syscall(ctypes.c_long(number), *wide)
    return -ctypes.get_errno() if rc < 0 else int(rc)


@scenario
def syscall_by_number() -> None:
    dup, dup2, fcntl, sendmmsg, close, _, writev, readv, name, setopt, getopt = NUMBERS[
        os.uname().machine
    ]
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(5)
    sender.connect(receiver.getsockname())
    both = (Iovec * 2)(Iovec(b"one", 3), Iovec(b"three", 5))
    batch = (Message * 2)(*(Message(iov=ctypes.pointer(part), iovlen=1) for part in both))
    print(by_number(sendmmsg, sender.fileno(), batch, 2, 0), [m.length for m in batch])
    print(receiver.recv(10), receiver.recv(10))
    c, d = pair()
    print(by_number(writev, c.fileno(), both, 2), d.recv(8, socket.MSG_WAITALL))
    d.sendall(b"to you")
    space = ctypes.create_string_buffer(6)
    into = Iovec(ctypes.cast(space, ctypes.c_char_p), 6)
    c.setblocking(True)
    print(by_number(readv, c.fileno(), ctypes.byref(into), 1), space.raw)
    address, size = ctypes.create_string_buffer(16), ctypes.c_uint(16)
    print(by_number(name, c.fileno(), address, ctypes.byref(size)), size.value)
    print(int.from_bytes(address.raw[2:4], "big") == c.getsockname()[1])
    one = ctypes.c_int(1)
    print(by_number(setopt, c.fileno(), 6, 1, ctypes.byref(one), 4), c.getsockopt(6, 1))
    one.value, size.value = 0, 4
    print(by_number(getopt, c.fileno(), 6, 1, ctypes.byref(one), ctypes.byref(size)), one.value)
    print(bool(by_number(fcntl, c.fileno(), 3, 0) & os.O_NONBLOCK))
    again = by_number(dup, c.fileno())
    print(again > 2, by_number(close, c.detach()), os.write(again, b"by the duplicate"))
    print(d.recv(16, socket.MSG_WAITALL))
    if dup2 is not None:
        pipe = os.pipe()
        by_number(dup2, pipe[0], again)
    else:
        by_number(close, again)
    print(d.recv(1))


# poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2
WAITS = {
    "x86_64": (7, 271, 23, 270, 232, 281, 441),
    "aarch64": (None, 73, None, 72, None, 22, 441),
}


class Waits:
    """Each wait for input by its number, with a time-out of whole seconds: what it returned."""

    def __init__(self, fd: int, ep: int) -> None:
        self.fd, self.ep = fd, ep
        numbers = WAITS[os.uname().machine]
        calls = (self.poll, self.ppoll, self.select, self.pselect, *[self.epoll] * 3)
        self.calls = [(nr, call) for nr, call in zip(numbers, calls, strict=True) if nr]
        self.mask = ctypes.c_ulong(0)
        self.size = 8  # of the mask
        self.left: list[float] = []  # what select() and the like said

    def each(self, seconds: int) -> list[tuple[int, ...]]:
        return [call(nr, seconds) for nr, call in self.calls]

    def poll(self, nr: int, seconds: int) -> tuple[int, ...]:
        at = (ctypes.c_short * 4)(*struct.unpack("hh", struct.pack("i", self.fd)), select.POLLIN)
        return by_number(nr, at, 1, seconds * 1000), at[3]

    def ppoll(self, nr: int, seconds: int) -> tuple[int, ...]:
        at = (ctypes.c_short * 4)(*struct.unpack("hh", struct.pack("i", self.fd)), select.POLLIN)
        t = (ctypes.c_long * 2)(seconds)
        rc = by_number(nr, at, 1, t, ctypes.byref(self.mask), self.size)
        self.left.append(t[0] + t[1] / 1e9)
        return rc, at[3]

    def select(self, nr: int, seconds: int, *mask: Any) -> tuple[int, ...]:
        reads, t = (ctypes.c_ulong * 16)(), (ctypes.c_long * 2)(seconds)
        reads[self.fd // 64] = 1 << self.fd % 64
        rc = by_number(nr, self.fd + 1, reads, None, None, t, *mask)
        self.left.append(t[0])
        return rc, int(any(reads))

    def pselect(self, nr: int, seconds: int) -> tuple[int, ...]:
        packed = (ctypes.c_ulong * 2)(ctypes.addressof(self.mask), self.size)
        return self.select(nr, seconds, packed)

    def epoll(self, nr: int, seconds: int) -> tuple[int, ...]:
        at = (ctypes.c_uint32 * 3)() if os.uname().machine == "x86_64" else (ctypes.c_uint32 * 4)()
        t = (ctypes.c_long * 2)(seconds)
        timeout: Any = t if nr == 441 else seconds * 1000
        rc = by_number(nr, self.ep, at, 1, timeout, ctypes.byref(self.mask), self.size)
        return rc, at[0] if rc > 0 else 0


@scenario
def wait_by_number() -> None:
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    waits = Waits(d.fileno(), ep.fileno())
    print(waits.each(0))
    threading.Timer(0.05, c.send, (b"x",)).start()
    print(waits.calls[0][1](waits.calls[0][0], 5), waits.each(5))
    print([3 < left <= 5 for left in waits.left[-3:]])  # it says what is left
    d.recv(1)
    for nr, call in waits.calls:
        threading.Timer(0.05, c.send, (b"x",)).start()
        print(call(nr, 5), d.recv(1))
    waits.size = 4
    print(waits.each(0))


@scenario
def wait_by_number_for_the_kernels() -> None:
    c, d = pair()
    r, w = os.pipe()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    ep.register(r, select.EPOLLIN)
    waits = Waits(r, ep.fileno())
    print(waits.each(0))
    os.write(w, b"x")
    print(waits.each(5))
    c.close()


# socket, accept, accept4, epoll_create, epoll_create1, fork
MAKERS = {
    "x86_64": (41, 43, 288, 213, 291, 57),
    "aarch64": (198, 202, 242, None, 20, None),
}


@scenario
def made_by_number() -> None:
    make, accept, accept4, create, create1, fork = MAKERS[os.uname().machine]
    stream = (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    for nr in (accept, accept4):
        a = listener()
        c = socket.socket(fileno=by_number(make, *stream))
        c.connect(a.getsockname())
        d = socket.socket(fileno=by_number(nr, a.fileno(), None, None, 0))
        print(os.get_inheritable(c.fileno()), os.get_inheritable(d.fileno()))
        print(c.getsockname() == d.getpeername(), c.send(b"x"), d.recv(1))
        for made, flags in ((create, 1), (create1, os.O_CLOEXEC)):
            if made is None:
                continue
            ep = select.epoll.fromfd(by_number(made, flags))
            ep.register(d, select.EPOLLIN)
            c.send(b"y")
            print(len(ep.poll(5)), os.get_inheritable(ep.fileno()), d.recv(1), ep.poll(0.01))
    if fork is not None:
        child = by_number(fork)
        if not child:
            d.send(b"from the child")
            os._exit(0)
        print(c.recv(14, socket.MSG_WAITALL), os.waitpid(child, 0)[1])
    d.close()
    print(c.recv(1))
    print(by_number(make, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP))


@scenario
def first_socket_by_number() -> None:
    r, w = os.pipe()
    child = os.fork()
    if not child:
        a = listener()
        a.settimeout(5)
        os.write(w, b"%d" % a.getsockname()[1])
        a.accept()[0].send(b"hello")
        os._exit(0)
    port = int(os.read(r, 10))
    make = MAKERS[os.uname().machine][0]
    c = socket.socket(fileno=by_number(make, socket.AF_INET, socket.SOCK_STREAM, 0))
    say("connect", c.connect, ("127.0.0.1", port))
    say("recv", c.recv, 5, socket.MSG_WAITALL)


@scenario
def select_of_more_than_fd_setsize() -> None:
    """Sets of the program's own size, as libevent's and Perl's; Python's select() has none."""
    c, d = pair()
    high = 1500
    os.dup2(d.fileno(), high)
    LIBC.select.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 4
    for data in (b"", b"x"):
        if data:
            c.sendall(data)
            select.select([d], [], [], 5)
        reads, writes = (ctypes.c_ulong * 32)(), (ctypes.c_ulong * 32)()
        for wanted in (reads, writes):
            wanted[high // 64] = 1 << high % 64
        zero = (ctypes.c_long * 2)()
        found = LIBC.select(high + 1, reads, writes, None, zero)
        print(found, bool(any(reads)), bool(any(writes)))
    # As many as there may be, with sets of the usual size: Linux reads what the table has room for.
    os.close(high)
    for size in (1 << 20, 2000):
        reads = (ctypes.c_ulong * 32)()
        reads[d.fileno() // 64] = 1 << d.fileno() % 64
        print(LIBC.select(size, reads, None, None, (ctypes.c_long * 2)()), any(reads))


@scenario
def close_range_by_number() -> None:
    """All descriptors from 3 on, as daemons do whose libc has no close_range()."""
    close_range = NUMBERS[os.uname().machine][5]
    c, d = pair()
    d.settimeout(5)
    where = d.getsockname()
    pid = os.fork()
    if not pid:
        d.close()
        result = by_number(close_range, 3, 0xFFFFFFFF, 0)
        gone = by_number(close_range, 5, 4, 0)
        try:
            os.write(c.fileno(), b"by a closed descriptor")
        except OSError as err:
            print(err.errno == errno.EBADF)
        again = socket.socket()
        print(result, gone, again.fileno(), where[0], flush=True)
        c.detach()
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
    c.sendall(b"alive")
    print(d.recv(5, socket.MSG_WAITALL))
    c.close()
    print(d.recv(1))


# ---- sockets that other programs inherit ----

LIBC: Any = ctypes.CDLL(None, use_errno=True)
LIBC.popen.restype = ctypes.c_void_p
LIBC.pclose.argtypes = [ctypes.c_void_p]
LIBC.fgets.restype = ctypes.c_char_p
LIBC.fgets.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
LIBC.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]


def passed_on() -> tuple[socket.socket, socket.socket]:
    """A connection whose second end a child inherits."""
    c, d = pair()
    d.set_inheritable(True)
    return c, d


@scenario
def inherited_as_stdout() -> None:
    """Programs that write by stdio, by write(), and through a shell."""
    for command in (
        ["/bin/echo", "from echo"],
        ["sh", "-c", "echo from sh; /bin/echo from its child; printf '%s\\n' from printf"],
        ["seq", "100000"],
        ["env", "-i", "/bin/echo", "without an environment"],
    ):
        c, d = pair()
        child = subprocess.Popen(command, stdout=d)
        d.close()
        say(command[0], sink, c)
        print(child.wait())


@scenario
def inherited_as_all_three() -> None:
    """inetd and CGI: the connection is stdin, stdout and stderr."""
    program = "import sys; print(input().upper(), flush=True); print('error', file=sys.stderr)"
    for command, text in (
        (["cat"], b"through cat\n"),
        (["sort"], b"b\na\n"),
        (["sed", "s/a/b/"], b"aaa\n"),
        (["sh", "-c", "read line; echo got $line; ls /nowhere 2>&1 >/dev/null | wc -l"], b"x\n"),
        (["ls", "/nowhere"], b""),
        (["tr", "a-z", "A-Z"], b"shout\n"),
        ([sys.executable, "-c", program], b"python\n"),
    ):
        c, d = pair()
        child = subprocess.Popen(command, stdin=d, stdout=d, stderr=d)
        d.close()
        c.sendall(text)
        c.shutdown(socket.SHUT_WR)
        say(command[0], sink, c)
        print(child.wait())


@scenario
def spawned() -> None:
    c, d = pair()  # close-on-exec: only what the file actions say
    null = os.open("/dev/null", os.O_RDONLY)
    actions: list[Any] = [
        (os.POSIX_SPAWN_DUP2, d.fileno(), 1),
        (os.POSIX_SPAWN_OPEN, 0, "/etc/hostname", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_CLOSE, null),
    ]
    code = "wc -l; echo $0 $A; test -e /proc/self/fd/$1 || echo closed"
    arguments = ["sh", "-c", code, "name", str(null)]
    pid = os.posix_spawn("/bin/sh", arguments, {"A": "b", "PATH": os.defpath}, file_actions=actions)
    print(os.waitpid(pid, 0)[1])
    d.close()
    say("all", sink, c)
    c, d = passed_on()
    code = f"echo by number >&{d.fileno()}; kill -INT $$; echo ignored >&{d.fileno()}; exit 3"
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.set_inheritable(null, True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.posix_spawnp("sh", ["sh", "-c", code], os.environ, setpgroup=0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    pid = os.posix_spawnp("sh", ["sh", "-c", code], os.environ, setsigdef=[signal.SIGINT])
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    d.close()
    say("all", sink, c)


@scenario
def spawned_wrongly() -> None:
    c, d = passed_on()
    say("no program", os.posix_spawn, "/nowhere", ["x"], os.environ)
    say("no program in PATH", os.posix_spawnp, "no-such-program", ["x"], os.environ)
    bad: list[Any] = [(os.POSIX_SPAWN_DUP2, 999, 1)]
    echo = ("/bin/echo", ["echo"], os.environ)
    say("bad action", lambda: os.posix_spawn(*echo, file_actions=bad))
    bad = [(os.POSIX_SPAWN_OPEN, 1, "/nowhere/file", os.O_RDONLY, 0)]
    say("bad open", lambda: os.posix_spawn(*echo, file_actions=bad))
    say("nothing left to wait for", os.wait)
    d.close()
    say("eof", c.recv, 1)


@scenario
def by_system() -> None:
    c, d = passed_on()
    command = f"echo one >&{d.fileno()}; exit 5"
    print(os.waitstatus_to_exitcode(os.system(command)))
    print(os.waitstatus_to_exitcode(os.system("kill -INT $$")))
    print(LIBC.system(None) != 0, os.system("exec /nowhere 2>/dev/null") >> 8)
    os.system(f"(sleep 0.1; echo two >&{d.fileno()}) &")
    d.close()
    say("all", sink, c)
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)


@scenario
def by_popen() -> None:
    c, d = passed_on()
    sys.stdout.flush()
    out = LIBC.popen(b"cat >&%d" % d.fileno(), b"w")
    both = LIBC.popen(b"echo answer; echo more >&%d; exit 7" % d.fileno(), b"re")
    line = ctypes.create_string_buffer(100)
    print(LIBC.fgets(line, 100, both), LIBC.pclose(both))
    LIBC.fputs(b"by cat\n", out)
    print(LIBC.pclose(out), LIBC.popen(b"true", b"rw"), errno.errorcode[ctypes.get_errno()])
    d.close()
    say("all", sink, c)


@scenario
def stdio_streams() -> None:
    """fdopen(), fileno() and dprintf() of libc on a socket."""
    c, d = pair()
    LIBC.fdopen.restype = ctypes.c_void_p
    for name in ("fileno", "fclose", "fflush"):
        getattr(LIBC, name).argtypes = [ctypes.c_void_p]
    f = LIBC.fdopen(d.detach(), b"w")
    fd = LIBC.fileno(f)
    print(fd > 2, LIBC.dprintf(fd, b"%s %d\n", b"direct", 7))
    LIBC.fputs(b"x" * 100000, f)
    print(LIBC.fflush(f), LIBC.fclose(f))
    say("all", sink, c)
    c, d = pair()
    code = "import ctypes as c; c.set_errno(2); c.CDLL(None, use_errno=True).perror(b'x')"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=d)
    d.close()
    say("perror", sink, c)
    print(child.wait())


# ---- wrong pointers ----


def fails(name: str, *args: Any) -> str:
    ctypes.set_errno(0)
    rc = getattr(LIBC, name)(*args)
    return f"{name} {rc} {errno.errorcode.get(ctypes.get_errno(), '0')}"


@scenario
def wrong_pointers() -> None:
    c, d = pair()
    d.send(b"x")
    c.recv(1, socket.MSG_PEEK)
    fresh = socket.socket()
    for bad in (None, ctypes.c_void_p(8), ctypes.c_void_p(1 << 62)):
        for name in ("write", "read", "writev", "readv"):
            print(fails(name, c.fileno(), bad, 5))
        print(fails("send", c.fileno(), bad, 5, 0), fails("recv", c.fileno(), bad, 5, 0))
        print(fails("sendmsg", c.fileno(), bad, 0), fails("recvmsg", c.fileno(), bad, 0))
        print(fails("connect", fresh.fileno(), bad, 16), fails("bind", fresh.fileno(), bad, 16))
        option = (c.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, bad)
        print(fails("setsockopt", *option, 4), fails("getsockopt", *option, bad))
    print(fails("write", c.fileno(), None, 0))
    say("and still", c.recv, 1)
    c.send(b"y")
    say("and back", d.recv, 1)


def header(name: Any, namelen: int) -> Header:
    """Of a message of one byte."""
    byte = ctypes.create_string_buffer(b"m", 1)
    iov = Iovec(ctypes.cast(byte, ctypes.c_char_p), 1)
    return Header(name, namelen, ctypes.pointer(iov), 1)


def length(n: int) -> Any:
    return ctypes.byref(ctypes.c_int(n))


WRONG = {"NULL": None, "8": ctypes.c_void_p(8), "2**62": ctypes.c_void_p(1 << 62)}


@scenario
def wrong_addresses() -> None:
    """Pointers to addresses and options: each call with none, small and impossible ones."""
    address = ctypes.create_string_buffer(128)
    for label, bad in WRONG.items():
        print(label)
        a = listener()
        c, d = pair()
        u, v = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        v.bind(("127.0.0.1", 0))
        u.connect(v.getsockname())
        for s in (a, c, u, v):
            for call in ("getsockname", "getpeername"):
                arguments = ((bad, length(16)), (address, bad), (bad, length(0)), (bad, length(-1)))
                print([fails(call, s.fileno(), *two) for two in arguments])
        for two in ((bad, length(16)), (address, bad), (address, length(-1))):
            client = socket.create_connection(a.getsockname(), 5)
            rc = LIBC.accept(a.fileno(), *two)
            if rc >= 0:
                os.close(rc)
            print("accept", rc >= 0, errno.errorcode[ctypes.get_errno()] if rc < 0 else "")
            say("end", client.recv, 1)
        for s, peer in ((d, c), (v, u)):
            for two in ((bad, length(16)), (address, bad), (bad, length(0)), (address, length(-1))):
                peer.send(b"xy")
                settled(s, "IN|OUT|RDNORM|WRNORM")
                print(fails("recvfrom", s.fileno(), address, 2, socket.MSG_DONTWAIT, *two))
                say("left", s.recv, 2, socket.MSG_DONTWAIT)
            for namelen in (16, 0):
                peer.send(b"z")
                settled(s, "IN|OUT|RDNORM|WRNORM")
                h = header(bad, namelen)
                print(fails("recvmsg", s.fileno(), ctypes.byref(h), socket.MSG_DONTWAIT), h.namelen)
                say("left", s.recv, 2, socket.MSG_DONTWAIT)
        for s in (c, u):
            sent = [fails("sendto", s.fileno(), b"q", 1, 0, bad, n) for n in (16, 4, 200)]
            h = header(bad, 16)
            print(sent, fails("sendmsg", s.fileno(), ctypes.byref(h), 0))
        print(fails("connect", u.fileno(), bad, 16), fails("connect", u.fileno(), bad, 1))
        options(c, bad)


def options(c: socket.socket, bad: Any) -> None:
    integer = ctypes.byref(ctypes.c_int(1))
    for level, name in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.SOL_SOCKET, socket.SO_LINGER),
        (socket.SOL_SOCKET, socket.SO_RCVTIMEO),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_TCP, socket.TCP_CONGESTION),
        (socket.IPPROTO_TCP, socket.TCP_INFO),
        (socket.IPPROTO_IP, socket.IP_TOS),
    ):
        got = [fails("getsockopt", c.fileno(), level, name, bad, length(n)) for n in (4, 0, -1)]
        got.append(fails("getsockopt", c.fileno(), level, name, integer, bad))
        if name != socket.TCP_INFO:
            got += [fails("setsockopt", c.fileno(), level, name, bad, n) for n in (4, 1, -1, 16)]
        print(level, name, got)


@scenario
def wrong_sets() -> None:
    """Wrong pointers to what readiness is asked about, or reported to."""
    c, d = pair()
    ep = select.epoll()
    ep.register(d, select.EPOLLIN)
    for label, bad in WRONG.items():
        print(label, fails("epoll_wait", ep.fileno(), bad, 4, 20))
        print(fails("epoll_ctl", ep.fileno(), 3, d.fileno(), bad))
        print(fails("poll", bad, 1, 0), fails("poll", bad, 0, 0))
        if bad:
            print(fails("select", 5, bad, None, None, length(0)))
        print(fails("ioctl", d.fileno(), 0x5421, bad), fails("ioctl", d.fileno(), 0x541B, bad))
        print(fails("sendmsg", socket.socketpair()[0].fileno(), bad, 0))
    c.send(b"x")
    settled(d, "IN|OUT|RDNORM|WRNORM")
    for label, bad in WRONG.items():
        print(label, fails("epoll_wait", ep.fileno(), bad, 4, 1000))
    print(len(ep.poll(1)))


# ---- options of a socket that becomes the kernel's ----

OUTSIDER = """
import socket, sys
a = socket.create_server(("127.0.0.1", 0))
print(a.getsockname()[1], flush=True)
sys.stdin.readline()
"""


@scenario
def options_follow_to_the_kernel() -> None:
    host = outside(OUTSIDER, stdin=subprocess.PIPE)
    assert host.stdin and host.stdout
    port = int(host.stdout.readline())
    tcp = socket.IPPROTO_TCP
    choices: list[tuple[int, int, int | bytes]] = [
        (tcp, socket.TCP_CONGESTION, b"reno"),
        (tcp, socket.TCP_MAXSEG, 700),
        (tcp, socket.TCP_LINGER2, 7),
        (tcp, socket.TCP_LINGER2, 0),
        (tcp, socket.TCP_LINGER2, -1),
        (socket.IPPROTO_IP, socket.IP_TOS, 255),
        (socket.SOL_SOCKET, socket.SO_BROADCAST, 1),
        (tcp, socket.TCP_DEFER_ACCEPT, 7),
        (tcp, socket.TCP_QUICKACK, 0),
        (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000),
    ]
    for level, name, value in choices:
        for chosen in (True, False):
            s = socket.socket()
            if chosen:
                s.setsockopt(level, name, value)
            print("connect", s.connect_ex(("127.0.0.1", port)))
            size = 16 if isinstance(value, bytes) else 0
            say(f"{level} {name} {chosen}", s.getsockopt, level, name, size)
    host.stdin.close()
    print(host.wait())
