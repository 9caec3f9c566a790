"""Tracking filters: connections stay where they are, floods push nobody out, memory is bounded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import ffi
from .frames import ACK, FIN, PEER, RST, SYN, received, sent
from .test_steer import RETURN, SEND, Nic

SECOND = 1_000_000
HALF_S, OPEN_S, CLOSING_S = 60, 8000, 120
FLOWS = 64


@pytest.fixture
def nic(lib: Any) -> Iterator[Nic]:
    nic = Nic(lib, 4, flows=FLOWS)
    yield nic
    lib.nic_free(nic.at)


def establish(nic: Nic, peer: tuple[int, int], port: int = 80, now: int = 0) -> int:
    """SYN, SYN-ACK, ACK; returns the owner."""
    owner = nic.owner(received(peer, port, SYN, seq=100), now)
    assert nic.tx(sent(peer, port, SYN | ACK, seq=500, ack=101), owner, now)
    assert nic.owner(received(peer, port, ACK, seq=101, ack=501), now) == owner
    return owner


def flood(nic: Nic, count: int, now: int = 0) -> None:
    frame, out = received((PEER, 1), 80, SYN), ffi.new("uint32_t[16]")
    nic.lib.nic_flood(nic.at, frame, len(frame), 77, count, now, out)


def test_tracked_flows_never_move_whatever_the_table_does(lib: Any) -> None:
    nic = Nic(lib, 8, flows=4096)
    peers = [(PEER + i, 1000 + i) for i in range(1000)]
    owners = {peer: establish(nic, peer) for peer in peers}
    before = nic.reta()
    dice = random.Random(5)
    moved = 0
    for _ in range(10):
        nic.active(dice.randrange(1, 256))
        moved += nic.reta() != before
        for peer, owner in owners.items():
            assert nic.owner(received(peer, 80, ACK, seq=101, ack=501)) == owner
    assert moved
    lib.nic_free(nic.at)


def test_new_flows_go_to_active_replicas_only(nic: Nic) -> None:
    nic.active(0b0110)
    owners = {nic.owner(received((PEER + i, 7), 80, SYN)) for i in range(50)}
    assert owners == {1, 2}


def test_a_half_open_flow_does_not_move_either(nic: Nic) -> None:
    owner = nic.owner(received((PEER, 1), 80, SYN))
    nic.active(nic.all & ~(1 << owner))
    assert nic.owner(received((PEER, 1), 80, SYN)) == owner


def test_a_flood_evicts_the_oldest_half_open_only(nic: Nic) -> None:
    peers = [(PEER + i, 9) for i in range(20)]
    owners = {peer: establish(nic, peer) for peer in peers}
    flood(nic, 10_000)
    counts = nic.counts()
    assert counts["open"] == 20
    assert counts["half"] == FLOWS // 2
    assert counts["evicted"] == 10_000 - FLOWS // 2
    nic.active(0b0001)
    for peer, owner in owners.items():
        assert nic.owner(received(peer, 80, ACK, seq=101, ack=501)) == owner


def test_a_table_full_of_connections_refuses_and_steers_by_hash(nic: Nic) -> None:
    for i in range(FLOWS):
        establish(nic, (PEER + i, 9))
    assert nic.counts()["open"] == FLOWS
    stranger = received((PEER + 5000, 9), 80, SYN)
    first = nic.owner(stranger)
    assert nic.counts()["refused"] == 1
    nic.active(nic.all & ~(1 << first))
    assert nic.owner(stranger) != first
    assert nic.counts()["open"] == FLOWS


def test_a_blind_ack_opens_nothing(nic: Nic) -> None:
    peer = (PEER, 9)
    owner = nic.owner(received(peer, 80, SYN, seq=100))
    nic.tx(sent(peer, 80, SYN | ACK, seq=500, ack=101), owner)
    nic.rx(received(peer, 80, ACK, seq=101, ack=500 + (1 << 30)))
    assert nic.counts()["half"] == 1
    nic.rx(received(peer, 80, ACK, seq=101, ack=501))
    assert nic.counts()["open"] == 1


def test_our_connect_is_tracked_from_its_syn(nic: Nic) -> None:
    peer = (PEER, 443)
    assert nic.tx(sent(peer, 40000, SYN, seq=700), 2)
    assert nic.owner(received(peer, 40000, SYN | ACK, seq=1, ack=701)) == 2
    assert nic.counts()["open"] == 1


def test_a_restarted_nic_learns_from_what_replicas_send(nic: Nic) -> None:
    peer = (PEER, 9)
    assert nic.tx(sent(peer, 80, ACK, seq=5, ack=6), 3)
    assert nic.owner(received(peer, 80, ACK, seq=6, ack=5)) == 3


def test_no_replica_takes_over_the_connection_of_another(nic: Nic) -> None:
    owner = establish(nic, (PEER, 9))
    thief = (owner + 1) % 4
    nic.tx(sent((PEER, 9), 80, ACK, seq=501, ack=101), thief)
    assert nic.verdict(sent((PEER, 9), 80, SYN, seq=1), thief) == RETURN
    nic.tx(sent((PEER, 9), 80, RST, seq=501), thief)
    assert nic.owner(received((PEER, 9), 80, ACK, seq=101, ack=501)) == owner
    assert nic.counts()["open"] == 1


def test_a_syn_for_the_tuple_of_another_replica_comes_back(nic: Nic) -> None:
    """While the other one opens, and while it has a connection; its own SYN goes out again."""
    peer, syn = (PEER, 443), sent((PEER, 443), 40000, SYN, seq=700)
    assert nic.verdict(syn, 2) == SEND
    before = nic.counts()
    for _ in range(3):
        assert nic.verdict(syn, 1) == RETURN
        assert nic.verdict(syn, 2) == SEND
    assert nic.counts() == before
    assert nic.owner(received(peer, 40000, SYN | ACK, seq=1, ack=701)) == 2
    assert nic.verdict(sent(peer, 40000, SYN, seq=9), 1) == RETURN
    # What is no opening SYN is nobody's try at a port: it goes out, and changes nothing.
    for flags in (ACK, RST, SYN | ACK, SYN | RST):
        assert nic.verdict(sent(peer, 40000, flags, seq=9), 1) == SEND
    assert nic.owner(received(peer, 40000, ACK, seq=2, ack=701)) == 2


def test_a_finished_connection_is_no_reason_to_give_a_syn_back(nic: Nic) -> None:
    """Our clock and numbers go on over all replicas, so a peer in TIME_WAIT takes it (RFC 6191)."""
    peer = (PEER, 443)
    assert nic.verdict(sent(peer, 40000, SYN, seq=700), 2) == SEND
    nic.tx(sent(peer, 40000, RST, seq=701), 2)
    assert nic.verdict(sent(peer, 40000, SYN, seq=900), 1) == SEND
    assert nic.verdict(sent(peer, 40000, SYN, seq=999), 2) == RETURN
    assert nic.owner(received(peer, 40000, SYN | ACK, seq=1, ack=901)) == 1


def test_who_opens_later_gets_the_tuple_when_the_first_try_is_forgotten(nic: Nic) -> None:
    syn = sent((PEER, 443), 40000, SYN, seq=700)
    assert nic.verdict(syn, 2) == SEND
    assert nic.verdict(syn, 1, now=HALF_S * SECOND) == RETURN
    assert nic.verdict(syn, 1, now=(HALF_S + 1) * SECOND) == SEND


def test_fin_both_ways_ages_and_the_tuple_may_be_used_again(nic: Nic) -> None:
    peer = (PEER, 9)
    owner = establish(nic, peer)
    nic.rx(received(peer, 80, FIN | ACK, seq=101, ack=501))
    assert nic.counts()["open"] == 1
    nic.tx(sent(peer, 80, FIN | ACK, seq=501, ack=102), owner)
    assert nic.counts()["closing"] == 1
    # While the owner takes connections, a new SYN is its business (RFC 6191): TIME_WAIT is there.
    assert nic.owner(received(peer, 80, SYN, seq=9000)) == owner
    assert nic.counts()["half"] == 1


def test_a_finished_connection_of_a_draining_replica_moves_with_its_next_syn(nic: Nic) -> None:
    peer = (PEER, 9)
    owner = establish(nic, peer)
    nic.tx(sent(peer, 80, RST, seq=501), owner)
    nic.active(nic.all & ~(1 << owner))
    assert nic.owner(received(peer, 80, SYN, seq=9000)) != owner


def test_a_reset_that_the_replica_ignored_ends_nothing(nic: Nic) -> None:
    peer = (PEER, 9)
    owner = establish(nic, peer)
    nic.rx(received(peer, 80, RST, seq=0x70000000))
    assert nic.counts()["open"] == 1
    nic.rx(received(peer, 80, RST, seq=150))
    assert nic.counts()["closing"] == 1
    nic.tx(sent(peer, 80, ACK, seq=501, ack=101), owner)
    assert nic.counts()["open"] == 1


@pytest.mark.parametrize("state,life", [("half", HALF_S), ("open", OPEN_S), ("closing", CLOSING_S)])
def test_silence_ends_each_state(nic: Nic, state: str, life: int) -> None:
    peer = (PEER, 9)
    if state == "half":
        nic.rx(received(peer, 80, SYN))
    else:
        owner = establish(nic, peer)
        if state == "closing":
            nic.tx(sent(peer, 80, RST, seq=501), owner)
    other = received((PEER + 1, 1), 81, ACK)
    nic.rx(other, now=life * SECOND)
    assert nic.counts()[state] == 1
    nic.rx(other, now=(life + 1) * SECOND)
    assert nic.counts()[state] == 0


def test_traffic_keeps_a_connection_alive(nic: Nic) -> None:
    owner = establish(nic, (PEER, 9))
    nic.active(nic.all & ~(1 << owner))
    for hour in range(1, 10):
        frame = received((PEER, 9), 80, ACK, seq=101, ack=501)
        assert nic.owner(frame, now=hour * 3600 * SECOND) == owner


def test_a_removed_replica_leaves_no_filters(nic: Nic) -> None:
    owner = establish(nic, (PEER, 9))
    nic.lib.nic_purge(nic.at, owner)
    assert nic.counts()["open"] == 0


def test_random_traffic_keeps_the_table_consistent(nic: Nic) -> None:
    """100,000 random packets over few tuples: never more than max, and nothing leaks."""
    dice = random.Random(11)
    now = 0
    for _ in range(100_000):
        peer = (PEER + dice.randrange(90), dice.randrange(1, 3))
        flags = dice.choice([SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST])
        seq, ack = dice.randrange(1 << 21), dice.randrange(1 << 21)
        now += dice.choice([0, 0, 0, 1000, SECOND])
        if dice.random() < 0.5:
            nic.rx(received(peer, 80, flags, seq, ack), now)
        else:
            nic.tx(sent(peer, 80, flags, seq, ack), dice.randrange(4), now)
    counts = nic.counts()
    assert counts["half"] + counts["open"] + counts["closing"] <= FLOWS
    for replica in range(4):
        nic.lib.nic_purge(nic.at, replica)
    counts = nic.counts()
    assert (counts["half"], counts["open"], counts["closing"]) == (0, 0, 0)
