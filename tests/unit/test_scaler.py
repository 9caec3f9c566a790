"""What a neatd that takes over tells the NIC and replicas (replicas/scale.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from neatsock import abi
from replicas.scale import Scaler, recall
from replicas.state import Replica

LIB = abi.lib


class Neatd:
    """The Scaler of one neatd: what it remembers, and the masks that it gives the NIC."""

    def __init__(self, remembered: dict[str, Any] | None, count: int) -> None:
        self.remembered = remembered
        self.at_nic: list[int] = []
        self.seen: list[int] = []  # the replicas that programs open channels to
        status: Any = SimpleNamespace(at=SimpleNamespace(connections=SimpleNamespace(v=0)))
        replicas = [Replica(i, status, -1) for i in range(count)]
        for replica in replicas:
            recall(replica, remembered, 2)
        registry = SimpleNamespace(
            active=lambda: 0, set_active=lambda mask: None, scaled=lambda: None,
            set_replicas=self.seen.append,
        )  # fmt: skip
        self.drains: dict[int, bool] = {}  # what the keeper, and the replica, were told
        link = SimpleNamespace(
            store=self._store, remember=self._remember, send=self._send,
            spawn=lambda *args: None, drop=lambda *args: None,
        )  # fmt: skip
        state: Any = SimpleNamespace(
            replicas=replicas, registry=registry, link=link,
            running=lambda: [r for r in replicas if r.wanted],
            options=SimpleNamespace(uplink=object()),
        )  # fmt: skip
        bindings: Any = SimpleNamespace(install=lambda index: None)
        self.replicas = replicas
        self.scaler = Scaler(state, bindings, lambda index: None, remembered is not None)

    def _remember(self, kind: str, **what: Any) -> None:
        self.remembered = what

    def _store(self, role: int, index: int, key: int, message: bytes) -> None:
        if abi.header(message).type == LIB.NEAT_MSG_R_DRAIN:
            self._send(role, index, message)
            return
        order = abi.unpack("struct neat_msg_n_queue", message)
        assert order.h.type == LIB.NEAT_MSG_N_ACTIVE
        self.at_nic.append(int(order.replica))

    def _send(self, role: int, index: int, message: bytes) -> None:
        if abi.header(message).type == LIB.NEAT_MSG_R_DRAIN:
            self.drains[index] = bool(abi.unpack("struct neat_msg_result", message).value)

    def ready(self, *which: int) -> None:
        for index in which:
            self.scaler.ready(self.replicas[index])


def test_a_replica_that_is_down_keeps_its_buckets_when_neatd_dies() -> None:
    """Else the others draw its local ports, and two replicas have one tuple."""
    first = Neatd(None, 2)
    first.ready(0, 1)
    second = Neatd(first.remembered, 2)
    second.ready(0)  # replica 1 is being replaced
    assert set(second.at_nic) == {0b11}
    second.ready(1)
    assert set(second.at_nic) == {0b11}


def test_a_replica_that_was_never_ready_gets_no_buckets_from_a_successor() -> None:
    first = Neatd(None, 3)
    first.ready(0, 1)
    first.scaler.scale_to(3)
    second = Neatd(first.remembered, 3)
    second.ready(0, 1)
    assert set(second.at_nic) == {0b11}
    second.ready(2)
    assert second.at_nic[-1] == 0b111
    assert second.remembered and second.remembered["announced"] == 0b111


def test_an_order_that_a_dead_neatd_only_remembered_is_given() -> None:
    first = Neatd(None, 2)
    first.ready(0, 1)
    first.scaler.scale_to(1)
    assert first.drains == {1: True}
    second = Neatd(first.remembered, 2)
    second.scaler.resume({1})
    assert second.drains == {0: False}
    third = Neatd(first.remembered, 2)
    third.scaler.resume(set())
    assert third.drains == {0: False, 1: True}


def test_an_order_that_a_dead_neatd_only_remembered_to_take_back_is_taken_back() -> None:
    first = Neatd(None, 2)
    first.ready(0, 1)
    first.scaler.scale_to(1)
    first.scaler.scale_to(2)
    assert first.drains == {1: False}
    second = Neatd(first.remembered, 2)
    second.scaler.resume({1})
    assert second.drains == {0: False, 1: False}
    third = Neatd(first.remembered, 2)  # the keeper has forgotten the order, the replica may not
    third.scaler.resume(set())
    assert third.drains == {0: False, 1: False}


def test_programs_see_the_replica_that_a_dead_neatd_only_remembered() -> None:
    """Else nobody of them takes the connections that it accepts."""
    first = Neatd(None, 3)
    first.ready(0, 1)
    first.scaler.scale_to(3)
    second = Neatd(first.remembered, 3)
    second.scaler.resume(set())
    assert second.seen == [0b111]
