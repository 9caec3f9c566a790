"""Who wakes another takes his word first, and may be killed before it calls the kernel.

Its successor then reads that nobody sleeps; it wakes once all the same.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.replica.mini import ABI, ROOT, Object, Replica, ffi
from tests.waiting import wait_until

from .rig import Nic, NicReplica, Plan

NATIVE = ROOT / "neatsock/_native"
PAIR_SIZE = 71335936  # NEAT_QP_SIZE


def sleeping(replica: Replica, words: Callable[[], list[int]]) -> int:
    """How often it slept, once it sleeps, on `words`."""
    status = replica.status.at

    def asleep() -> int:
        before = int(status.sleeps.v)
        state = Path(f"/proc/{replica.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        there = state == "S" and all(word == ABI.NEAT_ASLEEP_FUTEX for word in words())
        return before if there and status.awake.v == 0 and status.sleeps.v == before else 0

    return int(wait_until(asleep, "it sleeps"))


def test_a_successor_of_the_nic_wakes_the_replica() -> None:
    nic = Nic(NATIVE / "neat-nic", Plan(ABI.NEAT_NIC_NONE), [])
    nic.configured()
    replica = NicReplica(NATIVE / "neat-replica", nic)
    try:
        replica.go()
        word = nic.pairs[0].at.rx.asleep
        before = sleeping(replica, lambda: [word.v])
        nic.kill()
        word.v = ABI.NEAT_AWAKE
        nic.start()
        wait_until(lambda: replica.status.at.sleeps.v > before, "it was woken")
    finally:
        replica.kill()
        nic.close()


class Component(Replica):
    """A neat-filter or neat-ip; its neighbours are given by their queue pairs."""

    def __init__(self, name: str) -> None:
        self.page = Object("struct neat_snapshot", ABI.NEAT_OBJ_SNAPSHOT, 0)
        super().__init__(NATIVE / f"neat-{name}")

    def send(self, kind: int, message: Any, fds: list[int] | None = None) -> None:
        if kind == ABI.NEAT_MSG_R_CONFIG:
            fds = [*(fds or []), self.arena, self.page.fd]  # in place of what only tcp uses
        super().send(kind, message, fds)

    def peer(self, pair: Object, upper: bool) -> None:
        message = ffi.new("struct neat_msg_r_peer *")
        message.role, message.upper = ABI.NEAT_ROLE_UDP, upper
        self.send(ABI.NEAT_MSG_R_PEER, message, [pair.fd])


@contextmanager
def component(name: str) -> Iterator[Component]:
    made = Component(name)
    try:
        yield made
    finally:
        made.kill()


@pytest.mark.parametrize("upper", [False, True])
def test_a_successor_of_a_component_wakes_its_neighbour(upper: bool) -> None:
    """The one that is started again is the end that `upper` says."""
    pair = Object("struct neat_queue_pair", ABI.NEAT_OBJ_QUEUE_PAIR, 0, PAIR_SIZE)
    word = (pair.at.tx if upper else pair.at.rx).asleep
    with component("filter") as neighbour:
        neighbour.peer(pair, not upper)
        neighbour.go()
        before = sleeping(neighbour, lambda: [word.v])
        word.v = ABI.NEAT_AWAKE
        with component("filter") as successor:
            successor.peer(pair, upper)
            successor.go()
            wait_until(lambda: neighbour.status.at.sleeps.v > before, "it was woken")


def test_a_successor_of_ip_rings_the_nic() -> None:
    pair = Object("struct neat_queue_pair", ABI.NEAT_OBJ_QUEUE_PAIR, 0, PAIR_SIZE)
    bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        with component("ip") as ip:
            ip.send(ABI.NEAT_MSG_R_QUEUE, ffi.new("struct neat_msg_header *"), [pair.fd, bell])
            ip.go()
            assert select.select([bell], [], [], 20)[0]
    finally:
        os.close(bell)
