"""The accept queue of a replica's listener when its words were overwritten, or are full."""

from __future__ import annotations

import errno

import pytest

from .api_world import CLOSE, CONNECTED, KICK, LISTENING, Replica

ENTRIES = 4096


@pytest.mark.parametrize("head", [5, ENTRIES + 5, 2**63, 2**64 - ENTRIES - 5])
def test_an_overwritten_head_makes_no_listener_deaf(replica: Replica, head: int) -> None:
    """Who sleeps in accept() is woken by the connection, and puts the head right (take_entry())."""
    listener = replica.listen()
    replica.subscribe(listener, 1)
    replica.overwrite_head(listener, head)
    tcb = replica.arrive(0)
    assert tcb >= 0
    assert replica.flags(replica.tcb_slot(tcb)) == CONNECTED
    assert replica.drained(0) == [listener]


def arrive_later(replica: Replica) -> int:
    """A connection a while after the last one: its slot."""
    replica.later(200_000)
    return int(replica.tcb_slot(replica.arrive(0)))


def all_accepted(replica: Replica, listener: int) -> list[int]:
    accepted = []
    while slot := replica.accept_one(listener, 1 + len(accepted)):
        accepted.append(int(slot))
    return accepted


@pytest.mark.parametrize("skipped", [1, 4])
def test_what_a_head_that_is_too_high_hides_is_queued_again(replica: Replica, skipped: int) -> None:
    """Nobody has it, though it was taken long ago."""
    listener = replica.listen()
    replica.later(200_000)
    hidden = [replica.tcb_slot(replica.arrive(0)) for _ in range(4)]
    replica.overwrite_head(listener, skipped)
    later = [arrive_later(replica) for _ in range(3)]
    accepted = all_accepted(replica, listener)
    assert sorted(accepted) == sorted([*hidden, *later]), "each once"
    assert accepted[: 4 - skipped] == hidden[skipped:]


def test_nothing_is_queued_twice_however_often_the_queue_is_looked_through(
    replica: Replica,
) -> None:
    """More than the ring holds."""
    listener = replica.listen()
    accepted: list[int] = []
    for n in range(ENTRIES + 204):
        replica.later(9_000)
        assert replica.arrive(0) >= 0
        if n % 100 == 99:
            accepted += all_accepted(replica, listener)
    assert len(set(accepted)) == len(accepted) == ENTRIES + 204


def test_a_connection_whose_taker_is_slow_becomes_only_its(replica: Replica) -> None:
    """Between the two steps of accept() for seconds: a second entry names it, and is skipped."""
    listener = replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    assert replica.accept_one(listener, 0) == slot
    later = [arrive_later(replica) for _ in range(3)]
    assert replica.own(slot, replica.gen(slot), 9)
    accepted = [replica.accept_one(listener, n) for n in range(1, 5)]
    assert sorted(accepted) == [0, *sorted(later)]


def test_a_full_queue_takes_no_more(replica: Replica) -> None:
    listener = replica.listen()
    for _ in range(ENTRIES):
        assert replica.arrive(0) >= 0
    assert replica.arrive(0) == -errno.ENOBUFS
    assert replica.accept_one(listener, 1)
    assert replica.arrive(0) >= 0


def test_an_overwritten_status_of_a_listener_is_put_right(replica: Replica) -> None:
    """The library compares the generation in it with that of the socket (take_entry())."""
    listener = replica.listen()
    status = replica.status(listener)
    replica.overwrite_status(listener, status ^ 1 << 50)
    replica.arrive(0)
    assert replica.status(listener) == status and replica.flags(listener) == LISTENING


def test_a_connection_whose_taker_lives_is_not_reset_because_the_queue_is_full(
    replica: Replica,
) -> None:
    """It is between the two steps of accept() when a sibling dies, and goes on."""
    listener = replica.listen()
    tcb = replica.arrive(0)
    slot = replica.tcb_slot(tcb)
    gen = replica.gen(slot)
    assert replica.accept_one(listener, 0) == slot
    for _ in range(ENTRIES):
        assert replica.arrive(0) >= 0
    replica.set_open(1, 2)
    replica.run()
    assert replica.tcb_aborted(tcb) == 0
    assert replica.own(slot, gen, 9)


def test_a_connection_that_found_the_queue_full_is_queued_when_there_is_room(
    replica: Replica,
) -> None:
    listener = replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    assert replica.accept_one(listener, 0) == slot  # and its taker dies
    others = [replica.tcb_slot(replica.arrive(0)) for _ in range(ENTRIES)]
    replica.set_open(1, 2)
    replica.run()
    assert replica.accept_one(listener, 1) == others[0]
    replica.command(KICK, others[0])
    accepted = [replica.accept_one(listener, n) for n in range(2, ENTRIES + 2)]
    assert accepted == [*others[1:], slot]


def test_a_connection_that_waits_for_room_is_reset_with_its_listener(replica: Replica) -> None:
    listener = replica.listen()
    tcb = replica.arrive(0)
    assert replica.accept_one(listener, 0)
    for _ in range(ENTRIES):
        replica.arrive(0)
    replica.set_open(1, 2)
    replica.run()
    replica.forget_listeners()
    replica.command(CLOSE, listener)
    replica.run()
    assert replica.tcb_aborted(tcb) == errno.ECONNRESET


def test_a_connection_is_queued_again_at_its_own_applications_listener(replica: Replica) -> None:
    """SO_REUSEPORT: listeners of several programs share the port."""
    first = replica.listen()
    second = replica.listen()
    tcb = replica.arrive(1)
    slot = replica.tcb_slot(tcb)
    assert replica.accept_one(second, 0) == slot
    for foreign in (0, 1):
        replica.set_foreign(foreign, True)
        replica.set_foreign(1 - foreign, False)
        replica.set_open(1, 2 + 2 * foreign)
        replica.run()
        assert replica.tcb_aborted(tcb) == 0
        assert replica.accept_one((second, first)[foreign], 0) == slot
