"""SYNs that the nic gives back because another replica has the tuple (decision 78)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.stack.host import (
    CONNECTED,
    CONNECTING,
    ERROR,
    HERE,
    KEEPALIVE,
    LIKE_LINUX,
    OPT_FLAGS,
    OPT_KEEPCNT,
    OPT_KEEPIDLE,
    OPT_KEEPINTVL,
    SYN_SENT,
    THERE,
    Host,
    Peer,
    S,
)  # fmt: skip
from tests.stack.packet import Segment, decode
from tests.stack.test_filter import rules

Make = Callable[..., Host]
REDRAWS = 250  # TCP_PORT_REDRAWS


def syn(host: Host) -> Segment:
    (seg,) = host.segments()
    assert (seg.letters, seg.ack) == ("S", 0)
    return seg


def test_a_drawn_port_is_drawn_again(host: Host) -> None:
    """The program sees one connection, with the port of the last SYN, and the peer no other one."""
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    ports = set()
    for _ in range(5):
        first = syn(host)
        assert host.info(slot).lport == first.sport
        ports.add(first.sport)
        host.give_back(first.encode())
    last = syn(host)
    ports.add(last.sport)
    assert len(ports) == 6
    # RFC 6528: of the tuple it has now.
    assert last.seq == host.lib.host_isn(host.h, HERE, last.sport, THERE, 80)
    assert host.flags(slot) & (CONNECTED | CONNECTING) == CONNECTING
    peer = Peer(host, port=last.sport, rport=80, ts=True, host_iss=last.seq)
    peer.send("SA", 0, 1, options=LIKE_LINUX)
    assert host.flags(slot) & (CONNECTED | CONNECTING) == CONNECTED
    assert peer.one().letters == "A"
    host.write(slot, b"hello")
    assert peer.one().data == b"hello"
    # Nothing is left behind of the tuples that were given up.
    for port in ports - {last.sport}:
        Peer(host, port=port, rport=80, host_iss=0).send("A", 1, 1)
    assert [seg.letters for seg in host.segments()] == ["R"] * 5


def test_a_bound_port_is_not_available(host: Host) -> None:
    host.learn(THERE)
    slot = host.connect(THERE, 80, lport=5000)
    host.give_back(syn(host).encode())
    assert host.flags(slot) & ERROR
    assert host.error(slot) == errno.EADDRNOTAVAIL
    assert host.segments() == []
    assert host.connect(THERE, 80, lport=5000) > 0, "the tuple is free again"


def test_a_peer_to_which_all_ports_are_used_is_given_up(host: Host) -> None:
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    for _ in range(REDRAWS):
        host.give_back(syn(host).encode())
    assert not host.flags(slot) & ERROR
    host.give_back(syn(host).encode())
    assert host.error(slot) == errno.EADDRNOTAVAIL
    assert host.segments() == []


def test_the_redraws_are_no_probes_of_the_connection(host: Host) -> None:
    """They share a counter, and keepalive begins with none that the peer did not answer."""
    options = {OPT_FLAGS: KEEPALIVE, OPT_KEEPIDLE: 10, OPT_KEEPINTVL: 1, OPT_KEEPCNT: 3}
    host.learn(THERE)
    slot = host.connect(THERE, 80, options=options)
    for _ in range(20):
        host.give_back(syn(host).encode())
    last = syn(host)
    peer = Peer(host, port=last.sport, rport=80, host_iss=last.seq)
    peer.send("SA", 0, 1)
    peer.recv()
    host.advance(10 * S)
    assert peer.one().seq == 0, "a probe is one byte old"
    assert host.flags(slot) & CONNECTED


@pytest.mark.parametrize("what", ["number", "port", "peer"])
def test_only_its_last_syn_moves_a_connection(host: Host, what: str) -> None:
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    seg = syn(host)
    wrong = {
        "number": replace(seg, seq=(seg.seq + 1) % 2**32),
        "port": replace(seg, sport=seg.sport ^ 1),
        "peer": replace(seg, dst=THERE + 1),
    }[what]
    host.give_back(wrong.encode())
    assert host.segments() == []
    assert (host.state(slot), host.info(slot).lport) == (SYN_SENT, seg.sport)


def test_a_syn_that_comes_back_twice_moves_it_once(host: Host) -> None:
    """Sent again by its timer before the first copy was looked at."""
    host.learn(THERE)
    host.connect(THERE, 80)
    first = syn(host)
    host.give_back(first.encode())
    syn(host)
    host.give_back(first.encode())
    assert host.segments() == []


def test_an_established_connection_does_not_move(host: Host) -> None:
    peer = Peer(host)
    slot = peer.accept()
    info = host.info(slot)
    lost = Segment(src=HERE, dst=THERE, sport=info.lport, dport=info.rport, seq=peer.host_iss,
                   flags=2)  # fmt: skip
    host.give_back(lost.encode())
    assert host.flags(slot) & CONNECTED
    assert host.info(slot).lport == info.lport


def test_a_packet_filter_does_not_see_it(host: Host) -> None:
    """It is no packet from the network; a rule for those must not decide what becomes of it."""
    rules(host, "reject in tcp")
    host.learn(THERE)
    host.connect(THERE, 80)
    first = syn(host)
    host.give_back(first.encode())
    assert syn(host).sport != first.sport


def test_the_network_cannot_send_one(host: Host) -> None:
    """The mark is in the descriptor; the same bytes from the wire come from our own address."""
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    seg = syn(host)
    host.input(seg.encode())
    assert host.segments() == []
    assert (host.state(slot), host.info(slot).lport) == (SYN_SENT, seg.sport)


@pytest.mark.parametrize("length", [0, 10, 20, 30, 39])
def test_a_short_one_is_dropped(host: Host, length: int) -> None:
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    packet = syn(host).encode()
    host.give_back(packet[:length])
    assert host.state(slot) == SYN_SENT
    assert host.segments() == []
    assert decode(packet).sport == host.info(slot).lport


# ---- the nic asks whether a tuple is still in use ----


def another(port: int, rport: int) -> bytes:
    """A SYN of another replica."""
    return Segment(src=HERE, dst=THERE, sport=port, dport=rport, seq=77, flags=2).encode()


def test_whether_a_tuple_is_in_use(host: Host) -> None:
    """From connect() to the end of TIME_WAIT; the peer hears nothing of it."""
    host.learn(THERE)
    assert host.ask(another(5000, 80)) == 0
    slot = host.connect(THERE, 80, lport=5000)
    first = syn(host)
    assert host.ask(another(5000, 80)) == 1
    assert (host.ask(another(5001, 80)), host.ask(another(5000, 81))) == (0, 0)
    peer = Peer(host, port=5000, rport=80, host_iss=first.seq)
    peer.send("SA", 0, 1)
    peer.recv()
    assert host.ask(another(5000, 80)) == 1
    host.close(slot)
    peer.recv()
    peer.send("FA", 1, 2)
    peer.recv()
    assert host.ask(another(5000, 80)) == 1, "TIME_WAIT"
    host.advance(120 * S)
    assert host.ask(another(5000, 80)) == 0
    assert host.segments() == []


def test_half_open_is_in_use(host: Host) -> None:
    host.listen(80)
    host.input(Segment(src=THERE, dst=HERE, sport=4000, dport=80, seq=1, flags=2).encode())
    assert [seg.letters for seg in host.segments()] == ["SA"]
    assert host.ask(another(80, 4000)) == 1


def test_a_question_changes_nothing(host: Host) -> None:
    """Not even if the SYN is, number and all, the one that this replica has sent."""
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    first = syn(host)
    assert host.ask(first.encode()) == 1
    assert (host.state(slot), host.info(slot).lport) == (SYN_SENT, first.sport)
    rules(host, "drop in tcp", "drop out tcp")
    assert host.ask(first.encode()) == 1, "a packet filter does not see it"


@pytest.mark.parametrize("length", [0, 10, 20, 30, 39])
def test_a_short_question_has_no_answer(host: Host, length: int) -> None:
    assert host.ask(another(5000, 80)[:length]) == -1
