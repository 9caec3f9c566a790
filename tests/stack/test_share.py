"""What one application may hold of what all share: tcp_share.c, docs/decisions.md 52."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.stack.host import MS, OPT_RCVBUF, OPT_SNDBUF, THERE, Host, Peer, autotuned

Make = Callable[..., Host]
FREE = 65536  # of each buffer, for everybody


def connect_all(host: Host) -> list[int]:
    """Connections until there is an error, which is ENOBUFS as in Linux's tcp_connect()."""
    host.learn(THERE)
    slots = []
    while (slot := host.connect(THERE, 80)) > 0:
        slots.append(slot)
    assert slot == -errno.ENOBUFS
    return slots


def test_half_of_the_control_blocks_stay_for_others(make: Make) -> None:
    host = make(connections=64)
    slots = connect_all(host)
    assert len(slots) == 32  # the 33rd would leave 31
    host.abort(slots[7])
    host.close(slots[7])
    assert len(connect_all(host)) == 1


def test_a_limit_of_sockets(make: Make) -> None:
    host = make(connections=64, app_sockets=10)
    assert len(connect_all(host)) == 10


def test_a_listener_beyond_it_takes_no_syn(make: Make) -> None:
    host = make(connections=64, app_sockets=10)
    listener = host.listen(80)
    slots = connect_all(host)
    assert len(slots) == 9  # the listener is one
    host.segments()
    peer = Peer(host)
    peer.send("S", 0)
    host.connect(THERE, 81)
    peer.none()
    host.abort(slots[0])
    host.close(slots[0])
    host.abort(slots[1])
    host.close(slots[1])
    host.segments()
    slot = peer.open(listener)
    peer.send("PA", 1, 1, b"hello")
    assert host.read(slot) == b"hello"


def test_a_handshake_beyond_it_is_completed_later(make: Make) -> None:
    """As with a full accept queue: the last segment is dropped, the SYN-ACK comes again."""
    host = make(connections=64, app_sockets=2)
    host.learn(THERE)
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    one = host.connect(THERE, 81)
    assert one > 0 and host.connect(THERE, 82) == -errno.ENOBUFS
    host.segments()
    peer.send("A", 1, 1)
    assert host.accept(listener) == -errno.EAGAIN
    host.abort(one)
    host.close(one)
    host.advance(1500 * MS)
    assert any(s.letters == "SA" for s in peer.recv())
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


def closed_by_the_program(host: Host, listener: int, ports: range) -> list[Peer]:
    """Connections whose peers have not acknowledged the FIN."""
    peers = []
    for port in ports:
        peer = Peer(host, rport=port)
        host.close(peer.open(listener))
        assert peer.one().letters == "FA"
        peers.append(peer)
    return peers


@pytest.mark.parametrize("silent", [False, True], ids=["FIN-WAIT-2", "FIN-WAIT-1"])
def test_peers_that_do_not_close_leave_half_of_the_blocks(make: Make, silent: bool) -> None:
    """Linux: tcp_max_orphans. A peer's share is what is free, like an application's."""
    host = make(connections=64)
    listener = host.listen(80)
    for first in (1000, 1020, 1040, 1060):
        for peer in closed_by_the_program(host, listener, range(first, first + 20)):
            if not silent:
                peer.send("A", 1, 2)
        host.advance(300 * MS)  # FIN-WAIT-1: the first timeout
        host.segments()
    assert len(connect_all(host)) >= 15  # half of the rest


def test_an_orphan_among_few_waits_for_its_peer(make: Make) -> None:
    host = make(connections=64)
    peers = closed_by_the_program(host, host.listen(80), range(1000, 1020))
    for peer in peers:
        peer.send("A", 1, 2)
    host.advance(50_000 * MS)  # of 60 s
    for peer in peers:
        peer.send("FA", 1, 2)
        assert peer.one().letters == "A"


def test_buffers_grow_within_the_budget(make: Make) -> None:
    host = make(app_buffers=100_000)
    words = {OPT_RCVBUF: 2 * (FREE + 60_000), OPT_SNDBUF: 2 * (FREE + 60_000)}
    listener = host.listen(80, options=words)
    first, second = Peer(host, rport=1), Peer(host, rport=2)
    slot = first.open(listener)
    info = host.info(slot)
    assert (info.rcvbuf, info.sndbuf) == (FREE + 60_000, FREE + 40_000)
    other = second.open(listener)
    info = host.info(other)
    assert (info.rcvbuf, info.sndbuf) == (FREE, FREE)
    assert host.room(other) == FREE
    host.option(slot, OPT_SNDBUF, 2 * 4096)  # gives it back
    assert (host.info(slot).rcvbuf, host.info(slot).sndbuf) == (FREE, 4096)
    host.option(other, OPT_SNDBUF, 2 * (FREE + 110_000))
    assert host.info(other).sndbuf == FREE + 100_000
    host.abort(slot)
    host.close(slot)
    host.abort(other)
    host.close(other)
    third = Peer(host, rport=3)
    info = host.info(third.open(listener))
    assert (info.rcvbuf, info.sndbuf) == (FREE + 60_000, FREE + 40_000)


def test_autotuning_stops_there_too(make: Make) -> None:
    assert autotuned(make(app_buffers=5000)) == FREE + 5000
    assert autotuned(make(app_buffers=0)) == FREE
