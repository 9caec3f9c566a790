"""Two hosts and the link between them, in simulated time.

`Link.run` is an event loop: the next packet to arrive or the next timer to run decides the time.
What the link does to packets follows from a seed, so a failure can be repeated.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.stack.host import HERE, THERE, Host
from tests.stack.packet import SYN, decode


@dataclass(frozen=True)
class Faults:
    """Probabilities per packet; times in microseconds. `strip`: SYN options a middlebox removes."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay_us: int = 5000
    jitter_us: int = 0
    strip: frozenset[str] = frozenset()


class Link:
    def __init__(self, a: Host, b: Host, faults: Faults, seed: int) -> None:
        self.hosts, self.faults, self.random = (a, b), faults, random.Random(seed)
        self.flying: list[tuple[int, int, int, bytes]] = []
        self.count = 0
        self.now = a.now
        a.learn(THERE)
        b.learn(HERE)

    def strip(self, packet: bytes) -> bytes:
        if packet[9] != 6 or not packet[33] & SYN or not self.faults.strip:
            return packet
        seg = decode(packet)
        gone: dict[str, Any] = dict.fromkeys(self.faults.strip)
        if "sack_ok" in gone:
            gone["sack_ok"] = False
        return replace(seg, options=replace(seg.options, **gone)).encode()

    def corrupted(self, packet: bytes) -> bytes:
        """One bit; the Internet checksum finds every single one."""
        bit = self.random.randrange(len(packet) * 8)
        wrong = bytearray(packet)
        wrong[bit // 8] ^= 1 << bit % 8
        return bytes(wrong)

    def fly(self, to: int, packet: bytes, extra: int = 0) -> None:
        late = extra + self.faults.delay_us
        if self.faults.jitter_us:
            late += self.random.randrange(self.faults.jitter_us)
        self.count += 1
        heapq.heappush(self.flying, (self.now + late, self.count, to, packet))

    def carry(self) -> None:
        """Take what both hosts have sent."""
        f, chance = self.faults, self.random.random
        for i, host in enumerate(self.hosts):
            for packet in host.packets():
                if chance() < f.loss:
                    continue
                packet = self.strip(packet)
                if chance() < f.corrupt:
                    packet = self.corrupted(packet)
                extra = self.random.randrange(20_000) if chance() < f.reorder else 0
                self.fly(1 - i, packet, extra)
                if chance() < f.duplicate:
                    self.fly(1 - i, packet, self.random.randrange(50_000))

    def run(self, until: Callable[[], bool], limit_us: int) -> bool:
        """Until `until()` holds; False after `limit_us` of simulated time or when nothing is left.

        `until` may let applications act; one that dawdles is asked a hundred times in a row.
        """
        end, idle = self.now + limit_us, 0
        self.carry()
        while not until():
            due = min(host.deadline for host in self.hosts)
            if self.flying:
                due = min(due, self.flying[0][0])
            if due > end:
                idle += 1
                if idle > 100:
                    return False
                continue
            idle = 0
            self.now = max(self.now, due)
            for host in self.hosts:
                host.lib.host_time(host.h, self.now)
            while self.flying and self.flying[0][0] <= self.now:
                _, _, to, packet = heapq.heappop(self.flying)
                self.hosts[to].input(packet)
            self.carry()
        return True

    def quiet(self, us: int) -> None:
        """Let `us` microseconds pass."""
        end = self.now + us
        self.run(lambda: False, us)
        self.now = end
        for host in self.hosts:
            host.at(end)
        self.carry()
