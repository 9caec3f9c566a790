"""Edges of what the library sees: duplicated epoll sets, wrong pointers, inherited sockets."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any

from .tools import bits, pair, say, scenario, sink, until

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
