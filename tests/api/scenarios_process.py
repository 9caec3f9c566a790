"""Descriptors, threads and processes: dup, fork, exec, a kill."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from .tools import WAITS, die_in, listener, pair, say, scenario, sink, until


@scenario
def duplicates() -> None:
    c, d = pair()
    e = d.dup()
    d.close()
    c.send(b"x")
    say("dup reads", e.recv, 1)
    n = os.open("/dev/null", os.O_RDONLY)
    os.dup2(e.fileno(), n)
    e.close()
    c.send(b"y")
    say("dup2 reads", os.read, n, 1)
    os.dup2(os.open("/dev/null", os.O_RDONLY), n)
    say("last one replaced: eof", c.recv, 1)
    say("replaced", os.read, n, 1)
    f = fcntl.fcntl(c, fcntl.F_DUPFD_CLOEXEC, 50)
    print(f >= 50, os.get_inheritable(f))
    say("F_GETFL", lambda: fcntl.fcntl(c, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_ACCMODE))
    fcntl.fcntl(f, fcntl.F_SETFL, os.O_NONBLOCK)
    say("shared flag", lambda: fcntl.fcntl(c, fcntl.F_GETFL) & os.O_NONBLOCK != 0)


@scenario
def forked() -> None:
    a = listener()
    c = socket.create_connection(a.getsockname())
    d, _ = a.accept()
    pid = os.fork()
    if pid == 0:
        d.sendall(b"from the child")
        print("child", d.recv(4), flush=True)
        os._exit(0)
    d.close()
    say("recv", c.recv, 14, socket.MSG_WAITALL)
    c.send(b"bye!")
    os.waitpid(pid, 0)
    say("eof after the child's death", c.recv, 1)


@scenario
def forked_acceptors() -> None:
    a = listener()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            while True:
                s, _peer = a.accept()
                s.sendall(s.recv(10).upper())
                s.close()
        pids.append(pid)
    answers = []
    for i in range(30):
        c = socket.create_connection(a.getsockname())
        c.sendall(b"w%d" % i)
        answers.append(sink(c) == b"W%d" % i)
    print(all(answers), len(answers))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@scenario
def forked_by_number() -> None:
    """As vsftpd does it: clone(2) by syscall(2), without a stack."""
    a = listener()
    nr = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    flags = [ctypes.c_long(n) for n in (signal.SIGCHLD, 0, 0, 0, 0)]
    for _ in range(3):
        pid = ctypes.PyDLL(None).syscall(ctypes.c_long(nr), *flags)
        if pid == 0:
            s, _peer = a.accept()
            a.close()
            s.sendall(s.recv(5).upper())
            os._exit(0)
        c = socket.create_connection(a.getsockname(), timeout=20)
        c.sendall(b"hello")
        say("answer", sink, c)
        print(os.waitpid(pid, 0)[1])


EVENTFD2 = {"x86_64": 290, "aarch64": 19}


def confined_child(a: socket.socket) -> None:
    """In a filter of system calls that kills for what OpenSSH's and others kill for."""
    signal.alarm(20)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)
    c, _ = a.accept()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    r, _w = os.pipe()
    die_in([449, EVENTFD2[platform.machine()]])  # futex_waitv
    buf = ctypes.create_string_buffer(1)
    c.send(b"restarted" if ctypes.CDLL(None).recv(c.fileno(), buf, 1, 0) == 1 else b"ended")
    c.send(repr([s is c for s in select.select([c, r], [], [])[0]]).encode() + c.recv(1))
    d, _ = a.accept()
    d.send(d.recv(1))
    os._exit(0)


def asleep_or_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/syscall") as f:
            return f.read().split()[0] in WAITS
    except OSError:
        return True


@scenario
def confined() -> None:
    a = listener()
    pid = os.fork()
    if pid == 0:
        confined_child(a)
    c = socket.create_connection(a.getsockname(), timeout=20)
    until(lambda: asleep_or_dead(pid))
    os.kill(pid, signal.SIGUSR1)
    c.send(b"1")
    say("recv", c.recv, 100)
    until(lambda: asleep_or_dead(pid))
    c.send(b"2")
    say("select", c.recv, 100)
    until(lambda: asleep_or_dead(pid))
    d = socket.create_connection(a.getsockname(), timeout=20)
    until(lambda: asleep_or_dead(pid))
    d.send(b"3")
    say("accept", d.recv, 100)
    print(os.waitpid(pid, 0)[1])


@scenario
def killed_peer() -> None:
    a = listener()
    pid = os.fork()
    if pid == 0:
        a.accept()[0].sendall(b"alive")
        signal.pause()
    c = socket.create_connection(a.getsockname())
    say("recv", c.recv, 5, socket.MSG_WAITALL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    say("eof", c.recv, 1)


@scenario
def killed_in_close() -> None:
    """SIGKILL takes effect within the system calls of close(), or thereabouts."""
    a = listener()
    ends = []
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            a.accept()[0].sendall(b"alive")
            signal.pause()
        c = socket.create_connection(a.getsockname())
        c.recv(5, socket.MSG_WAITALL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ends.append(c.recv(1))
    print(set(ends))


DUPLICATING = {"x86_64": ([32, 33, 292], 72), "aarch64": ([23, 24], 25)}  # dup, dup2, dup3; fcntl


@scenario
def killed_in_dup() -> None:
    """A connection whose descriptor is being duplicated does not outlive the process."""
    a = listener()
    dups, fcntl_nr = DUPLICATING[platform.machine()]
    ways: dict[str, Callable[[socket.socket], object]] = {
        "dup": lambda c: os.dup(c.fileno()),
        "dup2": lambda c: os.dup2(c.fileno(), 77),
        "dup3": lambda c: os.dup2(c.fileno(), 77, inheritable=False),
        "fcntl": lambda c: fcntl.fcntl(c, fcntl.F_DUPFD, 50),
    }
    for name, way in ways.items():
        pid = os.fork()
        if pid == 0:
            c = socket.create_connection(a.getsockname())
            die_in(dups, fcntl_nr)
            way(c)
            os._exit(1)
        s, _ = a.accept()
        s.settimeout(10)
        print(name, signal.Signals(os.WTERMSIG(os.waitpid(pid, 0)[1])).name)
        say("eof", s.recv, 1)


@scenario
def executed() -> None:
    c, d = pair()
    code = (
        "import socket,sys; s=socket.socket(fileno=int(sys.argv[1])); s.sendall(s.recv(9).upper())"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(d.fileno())], pass_fds=[d.fileno()])
    d.close()
    c.sendall(b"exec")
    say("answer", c.recv, 4, socket.MSG_WAITALL)
    child.wait()
    say("eof", c.recv, 1)


@scenario
def executed_as_stdin() -> None:
    c, d = pair()
    child = subprocess.Popen(["cat"], stdin=d, stdout=d)
    d.close()
    c.sendall(b"through cat")
    say("answer", c.recv, 11, socket.MSG_WAITALL)
    c.shutdown(socket.SHUT_WR)
    print("cat", child.wait())
    say("eof", c.recv, 1)


@scenario
def not_inherited() -> None:
    c, d = pair()
    child = subprocess.Popen(["sleep", "30"])
    d.close()
    say("eof at once", c.recv, 1)
    child.kill()
    child.wait()


@scenario
def threads_share() -> None:
    a = listener()
    served = []

    def serve() -> None:
        while True:
            s, _peer = a.accept()
            data = s.recv(100)
            s.sendall(data)
            s.close()
            if data == b"stop":
                return
            served.append(data)

    jobs = [threading.Thread(target=serve) for _ in range(4)]
    for j in jobs:
        j.start()
    for i in range(100):
        c = socket.create_connection(a.getsockname())
        c.sendall(b"%d" % i)
        assert sink(c) == b"%d" % i
    for _ in jobs:
        c = socket.create_connection(a.getsockname())
        c.sendall(b"stop")
        sink(c)
    for j in jobs:
        j.join()
    print(len(served))


@scenario
def close_range_keeps_working() -> None:
    c, d = pair()
    os.closerange(200, 60000)
    c.send(b"x")
    say("recv", d.recv, 1)
    number = d.fileno()
    d.detach()
    os.closerange(number, number + 1)
    say("eof", c.recv, 1)


@scenario
def many_connections() -> None:
    a = listener(backlog=512)
    ep = select.epoll()
    pairs = []
    for _ in range(300):
        c = socket.create_connection(a.getsockname())
        d, _ = a.accept()
        ep.register(d, select.EPOLLIN)
        pairs.append((c, d))
    by_fd = {d.fileno(): d for _, d in pairs}
    for i, (c, _) in enumerate(pairs):
        c.send(b"%03d" % i)
    left = set(by_fd)
    end = time.monotonic() + 5
    while left and time.monotonic() < end:
        for fd, _ in ep.poll(0.1):
            by_fd[fd].send(by_fd[fd].recv(3))
            left.discard(fd)
    print(all(c.recv(3) == b"%03d" % i for i, (c, _) in enumerate(pairs)))
