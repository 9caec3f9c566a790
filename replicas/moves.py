"""Homes of UDP ports leave a replica that drains (shim/client/dgram_move.c is the other half).

Of each port first all sockets get a slot in the new home, then senders and the NIC are told, and a
moment later the slots in the old home are closed. What is under way is in the registry page, so a
neatd that takes over goes on. Programs do their part when they look at the page; asked again and
again, with longer and longer pauses, until nothing of UDP is in a replica that drains.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from neatsock import abi

from .bindings import Binding, Bindings
from .datagrams import choose_home
from .registry import Key
from .state import State

LIB = abi.lib
PAUSE_S = 0.002
PAUSE_MOST_S = 1.0
GRACE_S = 0.25  # from the move to the end of the old slots: datagrams on their way arrive


@dataclass(frozen=True)
class Port:
    """Where a UDP port is, and what its sockets have reached."""

    home: int
    also: int | None  # replica that the home is moving to, or has come from
    joined: bool  # every socket has a slot in `also`
    settled: bool  # GRACE_S has passed since the move


def staying(active: int, leaving: set[int]) -> int:
    """Mask of the active replicas that do not leave."""
    return active & ~sum(1 << replica for replica in leaving)


def decide(port: Port, leaving: set[int], active: int) -> str | None:
    """ "open": choose a new home, sockets get slots there; "move"; "close"; None: wait, or stay."""
    if port.home in leaving:
        if port.also is None or port.also in leaving:
            return "open" if staying(active, leaving) else None
        return "move" if port.joined else None
    return "close" if port.also is not None and port.settled else None


class Moves:
    def __init__(
        self,
        state: State,
        bindings: Bindings,
        loop: asyncio.AbstractEventLoop,
        nudge: Callable[[], None],
    ) -> None:
        self.state = state
        self.bindings = bindings
        self.loop = loop
        self.nudge = nudge
        self.moved: dict[Key, float] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.pause_s = PAUSE_S

    def begin(self) -> None:
        """Replicas drain, or drain no more; also after a restart of neatd."""
        self.pause_s = PAUSE_S
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(0, self._look)

    def _look(self) -> None:
        self.timer = None
        leaving = {replica.index for replica in self.state.replicas if replica.draining}
        groups = self.bindings.datagram_groups()
        self.moved = {key: at for key, at in self.moved.items() if key in groups}
        done = [self._step(key, group, leaving) for key, group in groups.items()]
        unfinished = any(self.state.registry.also(key) is not None for key in groups)
        if not unfinished and not any(self._occupied(replica) for replica in leaving):
            return
        self.pause_s = PAUSE_S if any(done) else min(2 * self.pause_s, PAUSE_MOST_S)
        self.nudge()
        self.timer = self.loop.call_later(self.pause_s, self._look)

    def _step(self, key: Key, group: list[Binding], leaving: set[int]) -> bool:
        """One step of a port, if it is time for one."""
        registry = self.state.registry
        also = registry.also(key)
        port = Port(
            group[0].home,
            also,
            also is not None and all(self._joined(binding, also) for binding in group),
            self.loop.time() >= self.moved.setdefault(key, self.loop.time()) + GRACE_S
            if also is not None
            else False,
        )
        step = decide(port, leaving, registry.active())
        if step == "open":
            homes = (b.home for b in self.bindings.table.values() if b.datagram)
            registry.set_also(key, choose_home(None, staying(registry.active(), leaving), homes))
        elif step == "move":
            assert also is not None
            self.bindings.rehome(group, also)
            self.moved[key] = self.loop.time()
        elif step == "close":
            registry.set_also(key, None)
            self.moved.pop(key, None)
        return step is not None

    def _joined(self, binding: Binding, replica: int) -> bool:
        """It has a slot there, which the replica has taken up; or it is closed already."""
        app = self.state.apps.get(binding.claim.app_id)
        if app is None:
            return True
        record = app.shared.at.socks[binding.claim.sock]
        if int(record.gen.v) != binding.claim.gen or int(record.state.v) != LIB.NEAT_SOCK_DGRAM:
            return True
        slot, gen = int(record.sub[replica].slot), int(record.sub[replica].gen)
        if not 0 < slot < LIB.NEAT_SLOTS:
            return False
        status = slot_status(app.segments[replica][0], slot)
        flags = status & 0xFFFFFFFF
        gone = LIB.NEAT_SLOT_HUP | LIB.NEAT_SLOT_DEAD
        return status >> 48 == gen & 0xFFFF and bool(flags & LIB.NEAT_SLOT_DATAGRAM & ~gone)

    def _occupied(self, replica: int) -> bool:
        """A UDP socket has a slot there."""
        return any(
            binding.home == replica or self._has_slot(binding, replica)
            for binding in self.bindings.table.values()
            if binding.datagram
        )

    def _has_slot(self, binding: Binding, replica: int) -> bool:
        app = self.state.apps.get(binding.claim.app_id)
        return app is not None and bool(app.shared.at.socks[binding.claim.sock].sub[replica].slot)


def slot_status(pub: int, slot: int) -> int:
    """neat_slot_pub.status of a segment's published half."""
    at = abi.ffi.offsetof("struct neat_seg_pub", "slots")
    data = os.pread(pub, 8, at + slot * abi.ffi.sizeof("struct neat_slot_pub"))
    return int.from_bytes(data, "little")
