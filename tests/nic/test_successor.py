"""A restarted nic takes the table of connections over: what is whole, and nothing that is not."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import ffi
from .frames import ACK, FIN, OUR, PEER, SYN, received, sent
from .test_filters import FLOWS, HALF_S, SECOND, establish, flood
from .test_steer import Nic

HEAD, EACH = 64, 32  # sizeof struct neat_flow_table, struct neat_flow
FREE, OPEN, CLOSING = 0, 2, 3


@pytest.fixture
def nic(lib: Any) -> Iterator[Nic]:
    nic = Nic(lib, 4, flows=FLOWS)
    yield nic
    lib.nic_free(nic.at)


def table(nic: Nic) -> Any:
    return ffi.buffer(nic.lib.nic_table(nic.at), HEAD + EACH * FLOWS)


def succeed(nic: Nic, now: int = 0) -> None:
    nic.lib.nic_successor(nic.at, now)


def state(nic: Nic, peer: tuple[int, int], port: int = 80) -> int:
    return int(nic.lib.nic_state(nic.at, *peer, OUR, port))


def entry_of(nic: Nic, peer: tuple[int, int]) -> int:
    """Offset of its entry in the table."""
    where = bytes(table(nic)).find(struct.pack("=IIHH", peer[0], OUR, peer[1], 80))
    assert where > 0
    return where


def others_than(nic: Nic, owner: int) -> int:
    return nic.all & ~(1 << owner)


def test_only_the_table_steers_right_after_the_indirection_table_changed(nic: Nic) -> None:
    peers = [(PEER + i, 1000 + i) for i in range(30)]
    owners = {peer: establish(nic, peer) for peer in peers}
    succeed(nic)
    for peer, owner in owners.items():
        nic.active(others_than(nic, owner))
        assert nic.owner(received(peer, 80, ACK, seq=101, ack=501)) == owner
    assert nic.counts()["open"] == 30


def test_states_and_ages_are_taken_over(nic: Nic) -> None:
    half, closing = (PEER, 1), (PEER, 2)
    owner = establish(nic, closing)
    assert nic.tx(sent(closing, 80, FIN | ACK, seq=501, ack=101), owner)
    nic.owner(received(closing, 80, FIN | ACK, seq=101, ack=502))
    nic.owner(received(half, 80, SYN), 5 * SECOND)
    succeed(nic, 6 * SECOND)
    assert nic.counts() | {"half": 1, "open": 0, "closing": 1} == nic.counts()
    nic.owner(received((PEER, 3), 80, ACK), (5 + HALF_S + 1) * SECOND)
    assert nic.counts()["half"] == 0, "its age is that of its SYN"


def test_the_oldest_half_open_goes_first_also_after_the_restart(nic: Nic) -> None:
    order = list(range(FLOWS // 2))
    random.Random(3).shuffle(order)
    for second, i in enumerate(order):
        nic.owner(received((PEER + i, 9), 80, SYN), second * SECOND)
    succeed(nic, FLOWS * SECOND)
    for i in order[:10]:
        assert state(nic, (PEER + i, 9))
        nic.owner(received((PEER + 5000 + i, 9), 80, SYN), (FLOWS // 2) * SECOND)
        assert not state(nic, (PEER + i, 9)), "the oldest made room"
    assert all(state(nic, (PEER + i, 9)) for i in order[10:])


@pytest.mark.parametrize(
    "at,bytes_",
    [
        (0, b"\xff"),  # another address than the check says
        (8, b"\xff\xff"),
        (12, b"\0\0\0\0"),
        (16, b"\x04"),  # no such state
        (16, b"\0"),
        (17, b"\x10"),  # no such replica
        (18, b"\x08"),  # no such flag
        (19, b"\x01"),
    ],
)
def test_an_entry_that_makes_no_sense_is_dropped_alone(nic: Nic, at: int, bytes_: bytes) -> None:
    peers = [(PEER + i, 1000) for i in range(8)]
    owners = {peer: establish(nic, peer) for peer in peers}
    where = entry_of(nic, peers[3]) + at
    table(nic)[where : where + len(bytes_)] = bytes_
    succeed(nic)
    assert nic.counts()["open"] == 7 and state(nic, peers[3]) == FREE
    for peer in set(peers) - {peers[3]}:
        nic.active(others_than(nic, owners[peer]))
        assert nic.owner(received(peer, 80, ACK, seq=101, ack=501)) == owners[peer]
    nic.active(nic.all)
    establish(nic, peers[3])
    assert nic.counts()["open"] == 8


def test_a_tuple_that_is_there_twice_is_taken_once(nic: Nic) -> None:
    first, second = (PEER, 1), (PEER, 2)
    owner = establish(nic, first)
    establish(nic, second)
    a, b = entry_of(nic, first), entry_of(nic, second)
    table(nic)[b : b + EACH] = table(nic)[a : a + EACH]
    succeed(nic)
    assert nic.counts()["open"] == 1
    assert nic.owner(received(first, 80, ACK, seq=101, ack=501)) == owner


def test_a_clock_of_the_future_does_not_keep_an_entry_for_ever(nic: Nic) -> None:
    peer = (PEER, 1)
    nic.owner(received(peer, 80, SYN))
    where = entry_of(nic, peer) + 28
    table(nic)[where : where + 4] = struct.pack("=I", 2_000_000)
    succeed(nic, 10 * SECOND)
    nic.owner(received((PEER, 2), 80, ACK), (10 + HALF_S + 1) * SECOND)
    assert state(nic, peer) == FREE


def test_garbage_in_the_whole_table(nic: Nic) -> None:
    dice = random.Random(11)
    for _ in range(200):
        view = table(nic)
        for _ in range(dice.randrange(1, 400)):
            at = dice.randrange(32, len(view))
            view[at : at + 1] = bytes([dice.randrange(256)])
        succeed(nic, dice.randrange(1 << 40))
        assert sum(nic.counts()[k] for k in ("half", "open", "closing")) <= FLOWS
        flood(nic, 300, dice.randrange(1 << 40))
        for _ in range(40):
            establish(nic, (PEER + dice.randrange(100), dice.randrange(1, 65536)))


def test_every_entry_is_free_again(nic: Nic) -> None:
    """What was dropped or had ended can be used: the table does not shrink with each restart."""
    for i in range(FLOWS):
        establish(nic, (PEER + i, 1))
    assert nic.counts()["refused"] == 0
    table(nic)[HEAD : HEAD + EACH * 10] = bytes(EACH * 10)
    succeed(nic)
    for i in range(10):
        establish(nic, (PEER + 1000 + i, 1))
    assert nic.counts() | {"open": FLOWS, "refused": 0} == nic.counts()
