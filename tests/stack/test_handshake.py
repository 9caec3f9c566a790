"""Opening: options, numbers, retransmission of SYNs, backlogs (RFC 9293, 7323, 2018, 6528)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from tests.stack.host import (
    CONNECTED,
    CONNECTING,
    ESTABLISHED,
    HERE,
    HOUR,
    LIKE_LINUX,
    MS,
    OPT_DEFER_ACCEPT,
    OPT_MAXSEG,
    OPT_RCVBUF,
    OPT_SYNCNT,
    OPT_TOS,
    OPT_TTL,
    READABLE,
    SYN_RCVD,
    SYN_SENT,
    THERE,
    Host,
    Peer,
    S,
)  # fmt: skip
from tests.stack.packet import Options

Make = Callable[..., Host]


@pytest.mark.parametrize(("sack", "ts", "ws"), list(product([False, True], repeat=3)))
def test_syn_ack_offers_only_what_the_syn_offered(
    host: Host, sack: bool, ts: bool, ws: bool
) -> None:
    """RFC 7323 1.3 and 3.2, RFC 2018 2: an option is sent in a SYN-ACK only if the SYN had it."""
    host.listen(80)
    peer = Peer(host)
    offered = Options(mss=1460, wscale=7 if ws else None, sack_ok=sack, ts=(0, 0) if ts else None)
    answer = peer.syn(offered)
    assert answer.ack == 1
    assert answer.window == 65535  # never scaled in a SYN (RFC 7323 2.2)
    got = answer.options
    assert got.mss == 1460  # 1500 - 40 (RFC 6691)
    assert (got.sack_ok, got.ts is not None, got.wscale is not None) == (sack, ts, ws)
    if got.ts:
        assert got.ts[1] == peer.clock()


def test_our_syn_offers_everything(host: Host) -> None:
    """The shift is the smallest that can tell 1 MiB: 65535 << 4 is 1 MiB - 16."""
    host.learn(THERE)
    host.connect(THERE, 80)
    (syn,) = host.segments()
    assert (syn.letters, syn.ack, syn.window) == ("S", 0, 65535)
    assert syn.options.mss == 1460
    assert syn.options.sack_ok
    assert syn.options.wscale == 4
    assert syn.options.ts is not None
    assert syn.options.ts[1] == 0


def test_small_buffers_need_no_shift(make: Make) -> None:
    host = make(rcvbuf=65535)
    host.learn(THERE)
    host.connect(THERE, 80)
    assert host.segments()[0].options.wscale == 0


@pytest.mark.parametrize(("sack", "ts", "ws"), list(product([False, True], repeat=3)))
def test_active_open_uses_only_what_the_syn_ack_has(
    host: Host, sack: bool, ts: bool, ws: bool
) -> None:
    peer = Peer(host)
    slot = peer.accept(
        syn=Options(1460, wscale=3 if ws else None, sack_ok=sack, ts=(0, 0) if ts else None)
    )
    assert host.flags(slot) & (CONNECTED | CONNECTING) == CONNECTED
    host.write(slot, b"x")
    seg = peer.one()
    assert (seg.options.ts is not None) == ts
    assert (seg.options.wscale, seg.options.sack_ok, seg.options.mss) == (None, False, None)
    assert seg.window == (65536 >> 4 if ws else 65535)
    peer.send("A", 101, 2, b"later")  # a hole
    assert peer.one().options.sack == (((101, 106),) if sack else ())


@pytest.mark.parametrize(
    ("offered", "timestamps", "size"),
    [
        pytest.param(None, False, 536, id="no option: RFC 9293 3.7.1 default"),
        pytest.param(1460, False, 1460, id="ethernet"),
        pytest.param(1460, True, 1448, id="timestamps come off (RFC 6691)"),
        pytest.param(1000, False, 1000, id="peer's limit"),
        pytest.param(9000, False, 1460, id="our mtu"),
        pytest.param(1, False, 88, id="not less than 88 (CVE-2019-11479)"),
        pytest.param(0, False, 536, id="zero is as good as absent"),
    ],
)
def test_segments_are_as_large_as_both_allow(
    host: Host, offered: int | None, timestamps: bool, size: int
) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    slot = peer.open(listener, Options(mss=offered, ts=(0, 0) if timestamps else None))
    host.write(slot, bytes(20000))
    sizes = {len(seg.data) for seg in peer.recv()}
    assert max(sizes) == size


def test_maxseg_option_is_told_and_obeyed(host: Host) -> None:
    listener = host.listen(80, options={OPT_MAXSEG: 700})
    peer = Peer(host)
    answer = peer.syn(LIKE_LINUX)
    assert answer.options.mss == 700
    peer.ts = True
    peer.send("A", 1, 1)
    slot = host.accept(listener)
    host.write(slot, bytes(5000))
    assert max(len(seg.data) for seg in peer.recv()) == 700 - 12


def test_tos_and_ttl_of_the_listener_are_inherited(host: Host) -> None:
    listener = host.listen(80, options={OPT_TOS: 0x10, OPT_TTL: 9})
    peer = Peer(host)
    slot = peer.open(listener)
    host.write(slot, b"x")
    seg = peer.one()
    assert (seg.tos, seg.ttl) == (0x10, 9)


def test_window_told_in_the_syn_ack_is_what_will_be_accepted(host: Host) -> None:
    """RFC 9293 3.8.6: a window must not shrink; the SYN-ACK promises what the buffer holds."""
    listener = host.listen(80, options={OPT_RCVBUF: 8192})
    peer = Peer(host)
    answer = peer.syn()
    assert answer.window == 4096
    peer.send("A", 1, 1)
    slot = host.accept(listener)
    for at in range(0, answer.window, 512):
        peer.send("A", 1 + at, 1, bytes(512))
    assert host.readable(slot) == answer.window


def test_peers_shift_is_capped_at_14(host: Host) -> None:
    """RFC 7323 2.3: a larger one is used as 14."""
    listener = host.listen(80)
    peer = Peer(host)
    slot = peer.open(listener, Options(mss=1460, wscale=200))
    peer.send("A", 1, 1, b"x", window=1)
    peer.recv()
    host.write(slot, bytes(20000))
    peer.recv()
    assert host.info(slot).snd_nxt - host.info(slot).snd_una <= 1 << 14
    assert host.info(slot).snd_nxt - host.info(slot).snd_una > 1 << 13


def test_receive_window_of_almost_four_mebibytes(host: Host) -> None:
    """Window scaling, RFC 7323 2: everything inside the told window is taken, unread."""
    listener = host.listen(80, options={OPT_RCVBUF: 16 << 20})
    peer = Peer(host)
    slot = peer.open(listener, Options(mss=1460, wscale=0, sack_ok=True))
    peer.send("A", 1, 1, b"x")
    window = peer.one().window << 6
    assert (4 << 20) - 8192 < window <= 4 << 20
    at = 2
    while at < 2 + window:
        n = min(60000, 2 + window - at)
        peer.send("A", at, 1, bytes(n))
        at += n
    host.advance(S)  # the last one is not full-sized, so its ACK is delayed
    last = peer.recv()[-1]
    assert (last.ack, last.window) == (at, 0)
    assert host.readable(slot) == window + 1
    assert host.read(slot, window + 1) == b"x" + bytes(window)
    assert peer.recv()[-1].window << 6 == (4 << 20) - 4096


def test_send_window_of_a_mebibyte_is_used(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host, window=65535)
    slot = peer.open(listener, Options(mss=1460, wscale=4))
    sent = acked = 0
    flight = 0
    while acked < 20 << 20 and flight < 1000000:
        sent += host.write(slot, bytes(host.room(slot)))
        peer.recv()
        info = host.info(slot)
        flight = info.snd_nxt - info.snd_una
        acked = info.snd_nxt - 1
        host.advance(10 * MS)
        peer.send("A", 1, acked + 1)
    assert flight >= 1000000


# ---- initial sequence numbers ----


def test_isn_runs_at_4_microseconds_and_depends_on_tuple_and_secret(make: Make) -> None:
    """RFC 6528 3: ISN = M + F(localip, localport, remoteip, remoteport, secretkey)."""
    host = make()

    def isn(of: Host, port: int = 80, raddr: int = THERE, rport: int = 5) -> int:
        return int(of.lib.host_isn(of.h, HERE, port, raddr, rport))

    first = isn(host)
    others = {isn(host, port=81), isn(host, raddr=THERE + 1), isn(host, rport=6)}
    assert len(others | {first}) == 4
    host.advance(4000)
    assert (isn(host) - first) % 2**32 == 1000
    assert isn(make(seed=2)) != first
    assert isn(make(seed=1)) == first


def test_isn_on_the_wire_is_that_number(host: Host) -> None:
    host.listen(80)
    peer = Peer(host)
    assert peer.syn().seq == 0
    assert peer.host_iss == host.lib.host_isn(host.h, HERE, 80, THERE, peer.rport)


# ---- retransmission of SYNs: RFC 6298 5.5 with 1 s (2.1) ----


def times(host: Host, peer: Peer | None, until: int) -> list[int]:
    """Milliseconds at which segments left, from now on; the timer may be 1 ms late."""
    start = host.now
    host.advance(until)
    got = peer.recv() if peer else host.segments()
    return [(seg.at - start) // MS for seg in got]


def near(got: list[int], want: list[int]) -> bool:
    return len(got) == len(want) and all(
        0 <= a - b <= 1 + i for i, (a, b) in enumerate(zip(got, want, strict=True))
    )


@pytest.mark.parametrize(
    ("retries", "want"),
    [(0, [1000, 3000, 7000, 15000, 31000, 63000]), (2, [1000, 3000])],
    ids=["tcp_syn_retries 6", "TCP_SYNCNT 2"],
)
def test_syn_is_sent_again_at_doubling_intervals(host: Host, retries: int, want: list[int]) -> None:
    host.learn(THERE)
    slot = host.connect(THERE, 80, options={OPT_SYNCNT: retries})
    (first,) = host.segments()
    start = host.now
    host.advance(200 * S)
    again = host.segments()
    assert near([(seg.at - start) // MS for seg in again], want)
    assert {(seg.letters, seg.seq, seg.options.mss) for seg in again} == {("S", first.seq, 1460)}
    assert host.error(slot) == errno.ETIMEDOUT
    assert host.blocks == []


def test_syn_ack_is_sent_again_five_times(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    assert near(times(host, peer, 62 * S), [1000, 3000, 7000, 15000, 31000])
    assert host.info(listener).half_open == 1
    host.advance(2 * S)
    assert host.info(listener).half_open == 0


def test_retransmitted_syn_is_answered_again(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    first = peer.syn()
    peer.send("S", 0, options=peer.options)
    again = peer.one()
    assert (again.letters, again.seq, again.ack) == ("SA", first.seq, 1)
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


# ---- simultaneous open: RFC 9293 3.5, figure 8 ----


def test_simultaneous_open_with_an_ack(host: Host) -> None:
    peer = Peer(host)
    host.learn(THERE)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    peer.send("S", 0, options=Options(mss=1460))
    answer = peer.one()
    assert (answer.letters, answer.seq, answer.ack) == ("SA", 0, 1)
    assert host.state(slot) == SYN_RCVD
    peer.send("A", 1, 1)
    assert host.state(slot) == ESTABLISHED
    assert host.flags(slot) & CONNECTED
    host.write(slot, b"both called")
    assert peer.one().data == b"both called"


def test_simultaneous_open_samples_the_round_trip(host: Host) -> None:
    """RFC 6298 2.2 from the SYN; idle time afterwards is no part of any sample."""
    peer = Peer(host)
    host.learn(THERE)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    peer.send("S", 0)
    host.advance(100 * MS)
    peer.send("A", 1, 1)
    assert host.info(slot).srtt_us == 100 * MS
    host.advance(60 * S)
    host.write(slot, b"x")
    host.advance(100 * MS)
    peer.send("A", 1, 2)
    assert host.info(slot).srtt_us == 100 * MS


def test_simultaneous_open_of_two_stacks(make: Make) -> None:
    a, b = make(addr=HERE), make(addr=THERE, seed=2)
    a.learn(THERE)
    b.learn(HERE)
    x = a.connect(THERE, 2000, lport=1000)
    y = b.connect(HERE, 1000, lport=2000)
    for _ in range(6):
        crossing = a.packets(), b.packets()
        for packet in crossing[0]:
            b.input(packet)
        for packet in crossing[1]:
            a.input(packet)
    assert (a.state(x), b.state(y)) == (ESTABLISHED, ESTABLISHED)
    a.write(x, b"hello")
    for packet in a.packets():
        b.input(packet)
    assert b.read(y) == b"hello"


def test_syn_ack_of_a_simultaneous_open_is_retransmitted(host: Host) -> None:
    peer = Peer(host)
    host.learn(THERE)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    peer.send("S", 0)
    peer.recv()
    assert near(times(host, peer, 4 * S), [1000, 3000])
    host.advance(200 * S)
    assert host.error(slot) == errno.ETIMEDOUT


def test_connection_to_itself(host: Host) -> None:
    """Linux: connect() to one's own port is a simultaneous open with oneself."""
    slot = host.connect(0x7F000001, 5555, lport=5555, laddr=0x7F000001)
    assert host.state(slot) == ESTABLISHED
    host.write(slot, b"echo")
    assert host.read(slot) == b"echo"
    host.close(slot)
    host.advance(S)
    assert (host.blocks, host.time_waits) == ([], 0)


# ---- what opens nothing ----


@pytest.mark.parametrize("letters", ["SF", "", "F", "P", "U"])
def test_segments_that_a_listener_ignores(host: Host, letters: str) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.send(letters, 0)
    peer.none()
    assert host.info(listener).half_open == 0


def test_land_attack_is_ignored(host: Host) -> None:
    """A SYN from our own address and port; IP drops it before TCP would (RFC 1122 3.2.1.3)."""
    listener = host.listen(80)
    peer = Peer(host, addr=HERE, rport=80)
    peer.send("S", 0)
    assert host.segments() == []
    assert host.info(listener).half_open == 0


def test_third_segment_with_a_wrong_acknowledgement_is_reset(host: Host) -> None:
    """RFC 9293 3.10.7.4 step 5 for SYN-RECEIVED: <SEQ=SEG.ACK><CTL=RST>; the connection stays."""
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    for wrong in (0, 2, 1 << 31):
        peer.send("A", 1, wrong)
        seg = peer.one()
        assert (seg.letters, seg.seq) == ("R", wrong)
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


def test_data_on_the_third_segment_is_delivered(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    peer.send("PA", 1, 1, b"hello")
    slot = host.accept(listener)
    assert host.read(slot) == b"hello"
    assert peer.one().ack == 6


def test_connection_is_whole_when_it_is_queued(host: Host) -> None:
    """A program on another core may accept and write before the handshake's unit of work ends."""
    listener = host.listen(80)
    peer = Peer(host)
    slot = peer.open(listener)
    info = host.info(slot)
    assert info.pushed_limit == host.room(slot) > 0
    assert info.pushed_state == ESTABLISHED


def test_fin_on_the_third_segment(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    peer.send("FA", 1, 1, b"bye")
    slot = host.accept(listener)
    assert host.read(slot) == b"bye"
    assert peer.recv()[-1].ack == 5


def test_lost_third_segment_is_made_up_by_data(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    peer.send(
        "A", 6, 1, b"second"
    )  # nothing of the first segment yet: still completes the handshake
    slot = host.accept(listener)
    assert slot > 0
    assert host.readable(slot) == 0
    peer.send("A", 1, 1, b"first")
    assert host.read(slot) == b"firstsecond"


def test_text_on_a_syn_ack_is_delivered(host: Host) -> None:
    """RFC 9293 3.10.7.3, fourth step: "if there are other controls or text in the segment"."""
    peer = Peer(host)
    host.learn(THERE)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    peer.send("SA", 0, 1, b"early")
    assert host.read(slot) == b"early"
    assert peer.recv()[-1].ack == 6


def test_defer_accept_waits_for_data(host: Host) -> None:
    """tcp(7) TCP_DEFER_ACCEPT."""
    listener = host.listen(80, options={OPT_DEFER_ACCEPT: 5})
    peer = Peer(host)
    peer.syn()
    peer.send("A", 1, 1)
    assert host.accept(listener) == -errno.EAGAIN
    peer.send("A", 1, 1, b"GET")
    assert host.read(host.accept(listener)) == b"GET"


def test_defer_accept_ends(host: Host) -> None:
    """When the time is over the SYN-ACK goes out again and the answer completes the connection."""
    listener = host.listen(80, options={OPT_DEFER_ACCEPT: 2})
    peer = Peer(host)
    peer.syn()
    peer.send("A", 1, 1)
    host.advance(8 * S)
    assert "SA" in [seg.letters for seg in peer.recv()]
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


DEATH_OUTSIDE, DEATH_FAULT = 1, 2  # enum neat_death


def test_a_handshake_outlives_any_number_of_kills(host: Host) -> None:
    """Each successor sends the SYN-ACK again, and that is none of the peer's tries."""
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    for life in range(20):
        assert host.reborn(DEATH_OUTSIDE) == 1, life
        host.advance(1 * MS)
        assert [seg.letters for seg in peer.recv()] == ["SA"], life
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


def test_tries_go_on_from_where_the_predecessor_was(host: Host) -> None:
    """With a kill between any two the SYN-ACK is not sent for ever."""
    host.listen(80)
    peer = Peer(host)
    peer.syn()
    tries = 0
    while host.reborn(DEATH_OUTSIDE) and tries < 100:
        host.advance(3 * S)
        tries += len(peer.recv())
    assert 5 <= tries < 20


def test_a_handshake_that_may_be_what_crashes_replicas_ends(host: Host) -> None:
    host.listen(80)
    Peer(host).syn()
    lives = 0
    while host.reborn(DEATH_FAULT) and lives < 100:
        host.advance(1 * MS)
        lives += 1
    assert lives == 6


# ---- backlogs ----


def test_full_accept_queue_drops_syns_until_someone_accepts(host: Host) -> None:
    """listen(2), Linux: backlog + 1 connections wait; further SYNs are dropped, not refused."""
    listener = host.listen(80, backlog=2)
    peers = [Peer(host, rport=1000 + i) for i in range(4)]
    for peer in peers[:3]:
        peer.syn()
        peer.send("A", 1, 1)
        peer.none()
    late = peers[3]
    late.send("S", 0)
    late.none()
    assert host.drops()["TCP_BACKLOG"] == 1
    assert host.accept(listener) > 0
    late.syn()
    late.send("A", 1, 1)
    assert [host.accept(listener) > 0 for _ in range(4)] == [True, True, True, False]


def test_who_sleeps_in_accept_hears_that_a_syn_found_the_queue_full(host: Host) -> None:
    """The head that says so may have been overwritten, and only accept() can put it right."""
    listener = host.listen(80, backlog=0)
    first = Peer(host, rport=1000)
    first.syn()
    first.send("A", 1, 1)
    assert host.info(listener).notified == READABLE
    assert host.info(listener).notified == 0
    Peer(host, rport=1001).send("S", 0)
    assert host.drops()["TCP_BACKLOG"] == 1
    assert host.info(listener).notified == READABLE


def test_and_that_the_end_of_a_handshake_did(host: Host) -> None:
    """A backlog of all that the queue can hold: the SYN before it found room."""
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    host.lib.host_accept_fail(host.h, 1)
    peer.send("A", 1, 1)
    assert host.drops()["TCP_BACKLOG"] == 1
    assert host.info(listener).notified == READABLE


def test_handshake_completes_later_when_the_queue_filled_meanwhile(host: Host) -> None:
    """Linux drops the final ACK; the client believes it is connected; the SYN-ACK comes again."""
    listener = host.listen(80, backlog=0)
    peers = [Peer(host, rport=1000 + i) for i in range(2)]
    peers[0].syn()
    peers[0].send("A", 1, 1)
    second = peers[1]
    host.advance(1)
    assert host.accept(listener) > 0
    second.syn()
    host.lib.host_accept_fail(host.h, 1)
    second.send("A", 1, 1)
    second.none()
    assert host.accept(listener) == -errno.EAGAIN
    host.advance(1500 * MS)
    assert second.one().letters == "SA"
    second.send("A", 1, 1, b"still here")
    slot = host.accept(listener)
    assert host.read(slot) == b"still here"


def test_syn_flood_leaves_connections_alone_and_ends(make: Make) -> None:
    """Half-open slots are bounded: 17 of 32, so that others find some; they empty by themselves."""
    host = make(backlog=32)
    listener = host.listen(80, backlog=4000)
    old = Peer(host, rport=9)
    slot = old.open(listener)
    for i in range(200):
        Peer(host, addr=THERE + 10 + i % 100, rport=20000 + i).send("S", 0)
    assert host.info(listener).half_open == 17
    assert host.drops()["TCP_MEMORY"] == 183
    old.recv()
    old.send("A", 1, 1, b"unharmed")
    assert host.read(slot) == b"unharmed"
    host.advance(64 * S)
    assert host.info(listener).half_open == 0
    fresh = Peer(host, rport=10)
    fresh.open(listener)
    assert len(host.blocks) == 2


def test_no_control_block_left(make: Make) -> None:
    """As with a full queue: the handshake waits; nothing is reset."""
    host = make(connections=4)  # of which the second application to come would get one
    listener = host.listen(80)
    first, second, third = (Peer(host, rport=i) for i in (1, 2, 3))
    slot = first.open(listener)
    third.syn()
    host.connect(THERE, 98)
    third.send("A", 1, 1)
    third.none()
    assert host.connect(THERE, 99) == -errno.ENOBUFS
    host.abort(slot)
    host.close(slot)
    host.advance(1500 * MS)
    assert third.one().letters == "SA"
    third.send("A", 1, 1)
    assert host.accept(listener) > 0


def test_unlisten_forgets_half_open_connections(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    host.unlisten(listener)
    peer.send("A", 1, 1)
    assert peer.one().letters == "R"
    again = host.listen(80)
    assert host.info(again).half_open == 0


def test_most_specific_listener_wins(host: Host) -> None:
    anywhere = host.listen(80)
    here = host.listen(80, addr=HERE)
    Peer(host).syn()
    peer = Peer(host, rport=7)
    peer.syn()
    peer.send("A", 1, 1)
    assert host.accept(anywhere) == -errno.EAGAIN
    assert host.accept(here) > 0


def test_reuseport_group_spreads(host: Host) -> None:
    group = [host.listen(80, backlog=1000) for _ in range(2)]
    for i in range(64):
        peer = Peer(host, rport=2000 + i)
        peer.syn()
        peer.send("A", 1, 1)
    counts = []
    for listener in group:
        counts.append(0)
        while host.accept(listener) > 0:
            counts[-1] += 1
    assert sum(counts) == 64
    assert min(counts) > 0


# ---- connect ----


def test_connect_to_nowhere(make: Make) -> None:
    assert make(addr=0).connect(THERE, 80) == -errno.ENETUNREACH
    assert make().connect(0x08080808, 80) == -errno.ENETUNREACH


def test_connect_twice_from_the_same_port(host: Host) -> None:
    """Linux says EADDRNOTAVAIL for a tuple in use."""
    assert host.connect(THERE, 80, lport=1234) > 0
    assert host.connect(THERE, 80, lport=1234) == -errno.EADDRNOTAVAIL
    assert host.connect(THERE, 81, lport=1234) > 0


def exhausted(host: Host, first: int, last: int) -> list[int]:
    """Slots of connections to THERE, port 80, that have all the ports there are."""
    host.learn(THERE)
    host.ports(first, last)
    slots = [host.connect(THERE, 80) for _ in range(last - first + 1)]
    assert all(slot > 0 for slot in slots)
    assert sorted(s.sport for s in host.segments()) == list(range(first, last + 1))
    assert host.connect(THERE, 80) == -errno.EADDRNOTAVAIL
    return slots


def test_no_port_left_is_found_out_once(host: Host) -> None:
    """A walk through all of them takes a millisecond, and a program may ask again at once."""
    exhausted(host, 40000, 40002)
    asked = host.ports(40000, 40002)
    for _ in range(50):
        assert host.connect(THERE, 80) == -errno.EADDRNOTAVAIL
    assert host.ports(40000, 40002) == asked


def test_ports_are_exhausted_for_one_remote_end_only(host: Host) -> None:
    exhausted(host, 40000, 40002)
    assert host.connect(THERE, 81) > 0
    assert host.connect(THERE + 1, 80) > 0
    assert host.connect(THERE, 80) == -errno.EADDRNOTAVAIL


def test_a_port_that_is_free_again_is_found(host: Host) -> None:
    slots = exhausted(host, 40000, 40002)
    for _ in range(2):
        host.abort(slots.pop(0))
        slots.append(host.connect(THERE, 80))
        assert slots[-1] > 0
        assert host.connect(THERE, 80) == -errno.EADDRNOTAVAIL
    host.ports(40000, 40003)  # bind() there was undone
    assert host.connect(THERE, 80) > 0
    assert host.connect(THERE, 80) == -errno.EADDRNOTAVAIL


def test_a_port_that_was_in_time_wait_is_found(make: Make) -> None:
    host = make(time_wait_ms=2000)
    host.ports(40000, 40000)
    peer = Peer(host)
    slot = peer.accept()
    host.close(slot)
    assert peer.one().letters == "FA"
    peer.send("FA", 1, 2)
    assert peer.one().letters == "A"
    assert host.time_waits == 1
    assert host.connect(THERE, peer.rport) == -errno.EADDRNOTAVAIL
    host.advance(3 * S)
    assert host.connect(THERE, peer.rport) > 0


def test_a_port_of_a_listener_that_is_closed_is_found(host: Host) -> None:
    listener = host.listen(40003)
    exhausted(host, 40000, 40002)
    host.ports(40000, 40003)
    assert host.connect(THERE, 80) == -errno.EADDRNOTAVAIL
    host.unlisten(listener)
    assert host.connect(THERE, 80) > 0


def test_chosen_ports_are_in_the_ephemeral_range_and_differ(host: Host) -> None:
    """ip(7) ip_local_port_range 32768-60999; RFC 6056: not in sequence."""
    host.learn(THERE)
    for _ in range(50):
        assert host.connect(THERE, 80) > 0
    ports = [seg.sport for seg in host.segments()]
    assert len(set(ports)) == 50
    assert all(32768 <= port <= 60999 for port in ports)
    assert ports != sorted(ports)


def test_close_while_connecting_sends_nothing(host: Host) -> None:
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    assert host.state(slot) == SYN_SENT
    host.segments()
    host.close(slot)
    assert host.segments() == []
    assert host.blocks == []
    host.advance(HOUR)
    assert host.segments() == []


def test_data_and_shutdown_before_the_connection_is_made(host: Host) -> None:
    """What is written while connecting goes out after the handshake, FIN included."""
    host.learn(THERE)
    peer = Peer(host)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    host.write(slot, b"eager")
    host.shutdown(slot)
    peer.none()
    peer.send("SA", 0, 1, options=replace(LIKE_LINUX, ts=None))
    got = peer.recv()
    assert b"".join(seg.data for seg in got) == b"eager"
    assert (got[-1].letters, got[-1].seq + len(got[-1].data)) == ("FA", 6)
