"""Random moves with sets in sets, sockets and pipes: every answer is Linux's."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections.abc import Callable

from .tools import bits, pair, scenario, until

IN, OUT, ET, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT


class Moves:
    """Sockets, pipes and sets in sets; each move prints what it saw."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pairs = [pair() for _ in range(3)]
        self.pipes = [os.pipe() for _ in range(2)]
        self.unread = [0] * 5
        self.sets = [select.epoll() for _ in range(4)]
        self.ping, self.pong = pair()
        self.witness = select.epoll()
        self.witness.register(self.pong, IN)
        self.names = {fd: f"s{i}" for i, fd in enumerate(self.low())}
        self.names |= {e.fileno(): f"e{i}" for i, e in enumerate(self.sets)}

    def low(self) -> list[int]:
        return [d.fileno() for _, d in self.pairs] + [r for r, _ in self.pipes]

    def events_came(self) -> None:
        """Events come in order: this one behind all others."""
        self.ping.send(b"p")
        assert self.witness.poll(5) and self.pong.recv(1)

    def ctl(self) -> str:
        at = self.random.randrange(len(self.sets))
        fds = [*self.low(), *(e.fileno() for e in self.sets)]
        fd = self.random.choice(fds)
        if self.random.random() < 0.7:  # mostly upwards
            at = max(at, 1)
            fd = self.random.choice([*self.low(), *(e.fileno() for e in self.sets[:at])])
        # An edge of one world while only the other is ready: differences.md 10.
        edge = [IN | ET] if fd in self.low() else []
        events = self.random.choice([IN, IN, IN, IN | ONESHOT, OUT, 0, *edge])
        op = self.random.choice(["register", "register", "modify", "unregister"])
        arguments = (fd,) if op == "unregister" else (fd, events)
        try:
            getattr(self.sets[at], op)(*arguments)
            result = "0"
        except OSError as err:
            result = str(err.errno)
        return f"{op} e{at} {self.names[fd]} {events:x} {result}"

    def send(self) -> str:
        i = self.random.randrange(5)
        if self.unread[i] > 20000:
            return "full"
        self.unread[i] += 1
        if i < 3:
            c, d = self.pairs[i]
            c.send(b"x")
            assert until(lambda: len(d.recv(100000, socket.MSG_PEEK)) == self.unread[i])
        else:
            os.write(self.pipes[i - 3][1], b"x")
        self.events_came()
        return f"send s{i}"

    def take(self) -> str:
        i = self.random.randrange(5)
        if self.unread[i]:
            os.read(self.low()[i], 100000)
        self.unread[i] = 0
        return f"take s{i}"

    def wait(self) -> str:
        at = self.random.randrange(len(self.sets))
        time.sleep(0.0001)  # differences.md 11: the kernel is asked every 50 us
        seen = sorted((self.names[fd], bits(e)) for fd, e in self.sets[at].poll(0))
        return f"wait e{at} {seen}"

    def poll(self) -> str:
        p = select.poll()
        time.sleep(0.0001)
        for e in self.sets:
            p.register(e.fileno(), select.POLLIN)
        return f"poll {sorted((self.names[fd], bits(e)) for fd, e in p.poll(0))}"

    def run(self, steps: int) -> None:
        moves: list[Callable[[], str]] = [self.send, self.wait] * 2
        moves += [self.ctl] * 3 + [self.take, self.poll]
        for i in range(steps):
            print(i, self.random.choice(moves)())


def random_moves(seed: int) -> Callable[[], None]:
    def run() -> None:
        Moves(seed).run(400)

    run.__name__ = f"nested_random_{seed}"
    return scenario(run)


for number in range(8):
    random_moves(number)
