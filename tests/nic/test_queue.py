"""The nic's end of a queue pair: order, holding, fencing, and words of a hostile replica."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import ffi

ENTRIES, BUFFER, HOLD_US = 512, 69632, 2_000_000
AWAKE, FUTEX = 0, 1


class Pair:
    def __init__(self, lib: Any, epoch: int) -> None:
        self.lib, self.at = lib, lib.pair_new(epoch)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.lib, f"pair_{name}")
        return lambda *args: function(self.at, *args)

    def deliver(self, frame: bytes = b"frame", now: int = 0) -> bool:
        return bool(self.put(frame, len(frame), now))

    def consume(self) -> tuple[bool, int, int, bool]:
        """One tx frame: descriptor sane, length, epoch, fenced."""
        length, epoch, fenced = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("int *")
        sane = bool(self.take(length, epoch, fenced))
        return sane, length[0], epoch[0], bool(fenced[0])


@pytest.fixture
def pair(lib: Any) -> Iterator[Pair]:
    pair = Pair(lib, 3)
    yield pair
    lib.pair_free(pair.at)


def test_nothing_reaches_a_replica_before_it_announced_its_epoch(pair: Pair) -> None:
    for announced in (0, 2):
        pair.announce(announced)
        assert pair.deliver()
        assert pair.get(b"rx.tail") == 0
    pair.announce(3)
    assert pair.release(1) == 0
    assert pair.shown() == 2


def test_held_frames_come_before_newer_ones(pair: Pair) -> None:
    pair.deliver()
    pair.announce(3)
    pair.deliver()
    assert pair.shown() == 2


def test_holding_is_bounded_in_number_and_time(pair: Pair) -> None:
    taken = [pair.deliver(now=5) for _ in range(ENTRIES + 10)]
    assert taken == [True] * ENTRIES + [False] * 10
    assert pair.release(HOLD_US) == 0
    assert pair.release(HOLD_US + 5) == ENTRIES
    pair.announce(3)
    pair.release(HOLD_US + 5)
    assert pair.shown() == 0
    assert pair.deliver(now=HOLD_US + 6)
    assert pair.shown() == 1


def test_a_fence_holds_until_the_successor_announces(pair: Pair) -> None:
    pair.announce(3)
    pair.fence(4)
    pair.deliver()
    assert pair.shown() == 0
    pair.announce(4)
    pair.release(0)
    assert pair.shown() == 1


@pytest.mark.parametrize("head", [ENTRIES + 1, 2**63, 2**64 - ENTRIES - 1])
def test_a_head_out_of_reach_is_an_empty_ring(pair: Pair, head: int) -> None:
    """Its owner puts it right when it looks (test_nicq.py): then that is where we go on."""
    pair.announce(3)
    for where in (head, 0):
        pair.set(b"rx.head", where)
        assert pair.deliver()
        assert pair.get(b"rx.tail") == (where + 1) % 2**64


@pytest.mark.parametrize("tail", [ENTRIES + 1, 2**63, 2**64 - 1])
def test_a_tail_out_of_reach_is_no_work(pair: Pair, tail: int) -> None:
    pair.set(b"tx.tail", tail)
    assert pair.pending() == 0


def test_a_descriptor_longer_than_its_buffer_is_refused_and_retired(pair: Pair) -> None:
    pair.send(BUFFER + 1, 3)
    pair.send(BUFFER, 3)
    assert pair.consume()[0] is False
    assert pair.consume()[0] is True
    assert pair.get(b"tx.head") == 2


def test_a_zombie_is_fenced(pair: Pair) -> None:
    for epoch in (2, 3, 4, 2**32 - 1):
        pair.send(60, epoch)
    assert [pair.consume()[3] for _ in range(4)] == [True, False, False, True]


def test_frames_from_before_the_fence_go_out(pair: Pair) -> None:
    """They are whole, and nobody would send a reset again."""
    pair.send(60, 3)
    pair.fence(4)
    pair.send(60, 3)
    pair.send(60, 4)
    assert [pair.consume()[3] for _ in range(3)] == [False, True, False]


def test_our_indices_are_not_read_back(pair: Pair) -> None:
    pair.announce(3)
    pair.deliver()
    pair.set(b"rx.tail", 400)
    pair.set(b"tx.head", 400)
    pair.deliver()
    assert pair.get(b"rx.tail") == 2
    pair.send(60, 3)
    pair.consume()
    assert pair.get(b"tx.head") == 1


def test_a_sleeper_is_woken_once_and_an_awake_one_never(pair: Pair) -> None:
    assert pair.must_wake(), "by a predecessor's debt, whatever the word says"
    pair.announce(3)
    pair.deliver()
    assert not pair.must_wake()
    pair.set(b"rx.asleep", FUTEX)
    assert not pair.must_wake(), "nothing new"
    pair.deliver()
    assert pair.must_wake()
    pair.deliver()
    assert not pair.must_wake(), "already told"


def test_who_was_refused_for_want_of_room_is_woken(pair: Pair) -> None:
    for _ in range(ENTRIES):
        pair.send(60, 3)
    for _ in range(2):  # ip waits for as many places (NEAT_QP_ROOM)
        pair.set(b"rx.asleep", FUTEX)
        pair.consume()
        assert pair.must_wake()
    pair.set(b"rx.asleep", FUTEX)
    pair.consume()
    assert not pair.must_wake()


def test_indices_run_over_the_end(lib: Any) -> None:
    pair = Pair(lib, 1)
    pair.announce(1)
    for round_ in range(3 * ENTRIES):
        assert pair.deliver()
        pair.set(b"rx.head", round_ + 1)
    assert pair.get(b"rx.tail") == 3 * ENTRIES
    lib.pair_free(pair.at)
