"""A bit that flips in a control block never becomes a wrong byte: decision 66."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.stack.host import LOCALHOST, Host, S

Make = Callable[..., Host]
BLOB = random.Random(3).randbytes(1 << 17)
LINE = 64 * 8  # bits of a line
FOUND = (signal.SIGILL, signal.SIGTRAP)  # __builtin_trap() on x86-64, on aarch64


def pair(host: Host) -> tuple[int, int]:
    """Both ends of a connection over lo that has moved some bytes each way."""
    listener = host.listen(80)
    client = host.connect(LOCALHOST, 80)
    return client, host.accept(listener)


class Streams:
    """What each end has written and read of the same bytes."""

    def __init__(self, host: Host, ends: tuple[int, int]) -> None:
        self.host, self.ends = host, ends
        self.sent, self.got = [0, 0], [0, 0]

    def serve(self, rounds: int) -> bool:
        """Messages both ways, timers included. False: somebody read what nobody wrote."""
        for _ in range(rounds):
            for i, slot in enumerate(self.ends):
                more = BLOB[self.sent[i] : self.sent[i] + 3000]
                self.sent[i] += self.host.write(slot, more)
            for i, slot in enumerate(self.ends):
                data = self.host.read(slot)
                end = self.got[i] + len(data)
                if data != BLOB[self.got[i] : end] or end > self.sent[1 - i]:
                    return False
                self.got[i] = end
            self.host.advance(S // 4)
        return True


def after_flip(host: Host, streams: Streams, slot: int, bit: int) -> int:
    """How a process ends in which that bit flips and the streams go on: 0, 1 = a wrong byte, or a
    signal as a negative number."""
    child = os.fork()
    if not child:
        faulthandler.disable()
        host.flip(slot, bit)
        os._exit(0 if streams.serve(8) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("line", "step"), [(0, 4), (2, 1)])
def test_a_flip_in_a_sealed_line_is_found(make: Make, line: int, step: int) -> None:
    """By the next unit of work, at either end: `line` of the control block, each `step`th bit."""
    host = make()
    ends = pair(host)
    streams = Streams(host, ends)
    assert streams.serve(4)
    for bit in range(line * LINE + step // 2, (line + 1) * LINE, step):
        ended = after_flip(host, streams, ends[bit // step % 2], bit)
        assert -ended in FOUND, (bit, ended)
