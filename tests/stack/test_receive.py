"""The receiver: reassembly, acknowledgements, window, PAWS (RFC 9293, 2018, 2883, 5681, 7323)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stack.host import (
    CLOSE_WAIT,
    ESTABLISHED,
    FIN_WAIT_1,
    HUP,
    LIKE_LINUX,
    MS,
    OPT_FLAGS,
    OPT_RCVBUF,
    QUICKACKS,
    RX_EOF,
    Host,
    Peer,
    S,
    autotuned,
)  # fmt: skip
from tests.stack.packet import ACK, Options, Segment

Make = Callable[..., Host]
MSS = 1000
PLAIN = Options(mss=MSS)
SACK = Options(mss=MSS, sack_ok=True)
TEXT = bytes(range(1, 251)) * 400


def server(
    host: Host, options: Options = SACK, words: dict[int, int] | None = None
) -> tuple[Peer, int]:
    peer = Peer(host)
    slot = peer.open(host.listen(80, options=words), options)
    return peer, slot


def give(peer: Peer, start: int, end: int, letters: str = "A") -> None:
    """Bytes [start, end) of TEXT; the first is byte 0."""
    peer.send(letters, 1 + start, 1, TEXT[start:end])


# ---- order ----


@pytest.mark.parametrize("order", list(permutations(range(4))))
@pytest.mark.parametrize("options", [SACK, PLAIN, LIKE_LINUX], ids=["sack", "plain", "ts"])
def test_any_order_gives_the_same_stream(
    host: Host, order: tuple[int, ...], options: Options
) -> None:
    peer, slot = server(host, options)
    for i in order:
        give(peer, i * 100, i * 100 + 100)
    assert host.read(slot) == TEXT[:400]
    assert peer.recv()[-1].ack == 401


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        pytest.param([(0, 100), (0, 100)], 100, id="duplicate"),
        pytest.param([(0, 100), (50, 150)], 150, id="front overlaps"),
        pytest.param([(100, 200), (0, 150)], 200, id="back overlaps what is held"),
        pytest.param([(100, 200), (0, 100)], 200, id="fills exactly"),
        pytest.param([(100, 200), (0, 300)], 300, id="covers what is held"),
        pytest.param([(100, 200), (150, 250), (0, 100)], 250, id="held ones overlap"),
        pytest.param([(100, 200), (50, 250), (0, 60)], 250, id="held one inside the new one"),
        pytest.param([(100, 300), (150, 200), (0, 100)], 300, id="new one inside the held"),
        pytest.param([(100, 200), (300, 400), (150, 350), (0, 100)], 400, id="joins two"),
        pytest.param([(300, 400), (200, 300), (100, 200), (0, 100)], 400, id="backwards"),
        pytest.param([(0, 100), (20, 80)], 100, id="old middle"),
        pytest.param([(20, 40), (60, 200), (0, 100)], 200, id="covers one and touches the next"),
        pytest.param(
            [(20, 40), (60, 80), (100, 200), (0, 100)], 200, id="covers two, meets the third"
        ),
        pytest.param([(100, 200), (100, 200), (0, 100)], 200, id="held twice"),
    ],
)
def test_overlaps(host: Host, pieces: list[tuple[int, int]], length: int) -> None:
    peer, slot = server(host)
    for start, end in pieces:
        give(peer, start, end)
    assert host.read(slot) == TEXT[:length]
    host.advance(50 * MS)
    assert peer.recv()[-1].ack == 1 + length


def test_first_copy_of_a_byte_in_order_wins(host: Host) -> None:
    """What the application may have read cannot change."""
    peer, slot = server(host)
    peer.send("A", 1, 1, b"aaaa")
    peer.send("A", 1, 1, b"bbbbcccc")
    assert host.read(slot) == b"aaaacccc"


def test_more_holes_than_are_remembered(host: Host) -> None:
    """SACK is advisory: an interval too many is dropped, and arrives again."""
    peer, slot = server(host)
    for i in range(1, 140, 2):
        give(peer, i * 10, i * 10 + 10)
    assert host.drops()["TCP_MEMORY"] == 70 - 61
    for i in range(140):
        give(peer, i * 10, i * 10 + 10)
    assert host.read(slot) == TEXT[:1400]


def test_holes_are_shared_by_connections(make: Make) -> None:
    """64 sets of intervals here; the 65th connection with a hole falls back to in-order only."""
    host = make(connections=300, backlog=300)
    listener = host.listen(80, backlog=300)
    peers = [Peer(host, rport=100 + i) for i in range(70)]
    slots = [peer.open(listener) for peer in peers]
    for peer in peers:
        give(peer, 10, 20)
    assert host.drops()["TCP_MEMORY"] == 6
    for peer in peers:
        give(peer, 0, 10)
        give(peer, 10, 20)
    assert [host.read(slot) for slot in slots] == [TEXT[:20]] * 70
    give(peers[69], 30, 40)
    assert host.drops()["TCP_MEMORY"] == 6


def test_slot_ring_grows_with_data_out_of_order(host: Host) -> None:
    """2 KiB small ring to the large one while a hole exists."""
    peer, slot = server(host)
    give(peer, 0, 500)
    give(peer, 1000, 1500)
    give(peer, 30000, 31000)
    give(peer, 500, 1000)
    assert host.read(slot, 700) == TEXT[:700]
    for at in range(1500, 30000, 950):
        give(peer, at, min(at + 950, 30000))
    assert host.read(slot) == TEXT[700:31000]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 1400)), min_size=1, max_size=60),
    reads=st.lists(st.integers(1, 4000), max_size=10),
)
def test_random_pieces_against_a_bytearray(
    make_many: Make, pieces: list[tuple[int, int]], reads: list[int]
) -> None:
    host = make_many()
    peer, slot = server(host)
    held, got, next_read = bytearray(8000), b"", iter(reads)
    for start, length in pieces:
        give(peer, start, start + length)
        held[start : start + length] = b"\1" * length
        if (most := next(next_read, None)) is not None:
            got += host.read(slot, most)
    got += host.read(slot)
    prefix = held.find(0)
    assert got == TEXT[:prefix]
    host.advance(50 * MS)
    assert peer.recv()[-1].ack == 1 + prefix
    host.free()


# ---- SACK blocks: RFC 2018 4 ----


def test_sack_blocks_report_the_newest_first_then_repeat(host: Host) -> None:
    peer, _ = server(host)
    got = []
    for start in (2000, 6000, 4000):
        give(peer, start, start + 1000)
        seg = peer.one()
        assert seg.ack == 1
        got.append(seg.options.sack)
    assert got == [
        ((2001, 3001),),
        ((6001, 7001), (2001, 3001)),
        ((4001, 5001), (6001, 7001), (2001, 3001)),
    ]
    give(peer, 3000, 4000)  # joins two of them
    assert peer.one().options.sack == ((2001, 5001), (6001, 7001))


def test_three_blocks_fit_beside_timestamps_four_without(host: Host) -> None:
    """RFC 2018 3."""
    listener = host.listen(80)
    with_ts = Peer(host)
    with_ts.open(listener, LIKE_LINUX)
    for i in range(1, 6):
        give(with_ts, i * 2000, i * 2000 + 100)
    last = with_ts.recv()[-1].options
    assert last.sack == tuple((i * 2000 + 1, i * 2000 + 101) for i in (5, 4, 3))
    without = Peer(host, rport=5)
    without.open(listener, SACK)
    for i in range(1, 6):
        give(without, i * 2000, i * 2000 + 100)
    last = without.recv()[-1].options
    assert last.sack == tuple((i * 2000 + 1, i * 2000 + 101) for i in (5, 4, 3, 2))


def test_no_sack_blocks_unless_negotiated(host: Host) -> None:
    peer, _ = server(host, PLAIN)
    give(peer, 2000, 3000)
    seg = peer.one()
    assert (seg.ack, seg.options.sack) == (1, ())


def test_duplicate_is_reported_in_the_first_block(host: Host) -> None:
    """RFC 2883 4.1: below the cumulative ACK."""
    peer, _ = server(host)
    give(peer, 0, 1000)
    peer.recv()
    give(peer, 0, 1000)
    seg = peer.one()
    assert (seg.ack, seg.options.sack) == (1001, ((1, 1001),))


def test_duplicate_of_a_held_segment_is_reported(host: Host) -> None:
    """RFC 2883 4.1.2: the duplicate, then the block that contains it."""
    peer, _ = server(host)
    give(peer, 2000, 4000)
    peer.recv()
    give(peer, 3000, 3500)
    assert peer.one().options.sack == ((3001, 3501), (2001, 4001))


def test_partly_duplicate_segment(host: Host) -> None:
    """RFC 2883 4.2.3: only the part received before."""
    peer, _ = server(host)
    give(peer, 0, 1000)
    peer.recv()
    give(peer, 500, 1500)
    seg = peer.one()
    assert (seg.ack, seg.options.sack) == (1501, ((501, 1001),))


# ---- when an ACK is sent: RFC 9293 3.8.6.3, RFC 5681 4.2 ----


def settle(host: Host, peer: Peer, size: int = MSS) -> int:
    """Use up the quick ACKs of a young connection; returns the next byte."""
    for i in range(16):
        give(peer, i * size, i * size + size)
    host.advance(S)
    peer.recv()
    return 16 * size


def test_young_connection_acknowledges_at_once(host: Host) -> None:
    peer, _ = server(host)
    for i in range(16):
        give(peer, i * MSS, i * MSS + MSS)
        assert peer.one().ack == 1 + (i + 1) * MSS


def test_second_full_segment_is_acknowledged_at_once(host: Host) -> None:
    peer, _ = server(host)
    at = settle(host, peer)
    for _ in range(3):
        give(peer, at, at + MSS)
        peer.none()
        give(peer, at + MSS, at + 2 * MSS)
        at += 2 * MSS
        assert peer.one().ack == 1 + at


def test_more_than_a_full_segment_is_acknowledged_at_once(host: Host) -> None:
    """As Linux: a header and a body in two writes, whose tail Nagle holds back until the ACK."""
    peer, _ = server(host)
    at = settle(host, peer)
    give(peer, at, at + 10)
    peer.none()
    give(peer, at + 10, at + 10 + MSS)
    assert peer.one().ack == 1 + at + 10 + MSS


def test_one_sided_small_writes_are_acknowledged_at_once(host: Host) -> None:
    """As Linux, whose reader does it: Nagle holds back the next one until the ACK."""
    peer, slot = server(host)
    at = settle(host, peer)
    for _ in range(3):
        give(peer, at, at + 10, "PA")
        at += 10
        assert peer.one().ack == 1 + at
    host.read(slot)
    host.write(slot, b"reply")  # a conversation from now on
    peer.send("A", 1 + at, 6)
    peer.recv()
    give(peer, at, at + 10, "PA")
    peer.none()


def test_quickack_is_an_event(host: Host) -> None:
    """tcp(7), TCP_QUICKACK: "not permanent, it only enables a switch to ... quickack mode"."""
    peer, slot = server(host)
    at = settle(host, peer)
    give(peer, at, at + 10, "PA")
    peer.recv()
    for times in (1, 2):
        host.read(slot)
        host.write(slot, b"reply")
        peer.send("A", 1 + at + 10, 1 + 5 * times)
        peer.recv()
        give(peer, at + 10, at + 20, "PA")
        peer.none()
        host.option(slot, OPT_FLAGS, times * QUICKACKS)
        assert peer.one().ack == 1 + at + 20
        give(peer, at + 20, at + 30, "PA")
        assert peer.one().ack == 1 + at + 30
        at += 20


def test_single_segment_is_acknowledged_after_the_delay(host: Host) -> None:
    peer, _ = server(host)
    at = settle(host, peer)
    start = host.now
    give(peer, at, at + MSS)
    host.advance(S)
    seg = peer.one()
    assert seg.ack == 1 + at + MSS
    assert 40 * MS <= seg.at - start <= 41 * MS


def test_delayed_ack_rides_on_data(host: Host) -> None:
    peer, slot = server(host)
    at = settle(host, peer)
    give(peer, at, at + 10)
    host.read(slot)
    host.write(slot, b"reply")
    seg = peer.one()
    assert (seg.data, seg.ack) == (b"reply", 1 + at + 10)
    host.advance(S)
    assert all(s.data == b"reply" for s in peer.recv())  # retransmissions only


def test_out_of_order_is_acknowledged_at_once(host: Host) -> None:
    peer, _ = server(host)
    at = settle(host, peer)
    give(peer, at + MSS, at + 2 * MSS)
    assert peer.one().ack == 1 + at
    give(peer, at + 2 * MSS, at + 3 * MSS)
    assert peer.one().ack == 1 + at


def test_filled_hole_is_acknowledged_at_once(host: Host) -> None:
    peer, _ = server(host)
    at = settle(host, peer)
    give(peer, at + 10, at + 20)
    peer.recv()
    give(peer, at, at + 5)  # part of it
    assert peer.one().ack == 1 + at + 5
    give(peer, at + 5, at + 10)
    assert peer.one().ack == 1 + at + 20


def test_request_and_reply_need_no_pure_acks(host: Host) -> None:
    """A conversation: two segments for each exchange (paper's and Linux's pingpong)."""
    peer, slot = server(host)
    at, sent = settle(host, peer, 10), 1
    for i in range(20):
        peer.send("PA", 1 + at, sent, b"0123456789")
        at += 10
        assert host.read(slot)[-10:] == b"0123456789"
        if i == 0:
            assert peer.one().data == b""  # nobody knows yet that there will be an answer
        host.write(slot, b"answer")
        assert peer.one().data == b"answer"
        sent += 6


# ---- window ----


def test_window_closes_as_the_buffer_fills_and_opens_when_it_is_read(host: Host) -> None:
    peer, slot = server(host, words={OPT_RCVBUF: 16384})
    seen = []
    for i in range(0, 8192, 512):
        give(peer, i, i + 512)
        seen.append(peer.one().window)
    assert seen[-1] == 0
    edges = [512 * (i + 1) + window for i, window in enumerate(seen)]
    assert edges == sorted(edges)
    host.read(slot)
    assert peer.one().window == 8192


def test_right_edge_never_moves_back_nor_beyond_the_buffer(host: Host) -> None:
    """RFC 9293 3.8.6 (SHLD-14); RFC 7323 2.4: rounding to the scale may not creep on either."""
    peer, slot = server(host, Options(mss=MSS, wscale=0, sack_ok=True), words={OPT_RCVBUF: 2 << 20})
    limit = (2 << 20) // 2
    right = at = 0
    while at < 65536 * 2:
        size = 1 if at % 1000 < 900 else MSS
        peer.send("A", 1 + at, 1, bytes(size))
        at += size
        for seg in peer.recv():
            right = max(right, seg.ack + (seg.window << 4))
        if at > 3000:
            break
    assert right <= 1 + limit
    assert host.readable(slot) == at


def test_small_segments_cannot_push_the_window_open(make: Make) -> None:
    """Each ACK that rounds its window up would grant a few bytes more than the buffer has."""
    host = make(rcvbuf=1 << 20)
    peer, slot = server(host, Options(mss=MSS, wscale=0, sack_ok=True))
    right = at = 0
    for _ in range(65):
        peer.send("A", 1 + at, 1, bytes(1000))
        at += 1000
    for _ in range(2000):
        peer.send("A", 1 + at, 1, b"x")
        at += 1
    host.advance(S)
    for seg in peer.recv():
        right = max(right, seg.ack + (seg.window << 4))
    assert right <= 1 + 65536 + 16
    assert host.readable(slot) <= 65536 + 16


def test_data_beyond_the_window_is_cut(host: Host) -> None:
    """RFC 9293 3.10.7.4: "trim"."""
    peer, slot = server(host, words={OPT_RCVBUF: 8192})
    peer.send("A", 1, 1, TEXT[:5000])
    assert host.read(slot) == TEXT[:4096]
    assert peer.recv()[0].ack == 4097


def test_segment_wholly_beyond_the_window_is_answered_and_dropped(host: Host) -> None:
    peer, slot = server(host, words={OPT_RCVBUF: 8192})
    peer.send("A", 1 + 5000, 1, b"x")
    seg = peer.one()
    assert (seg.letters, seg.ack) == ("A", 1)
    assert host.readable(slot) == 0
    assert host.drops() == {"TCP_WINDOW": 1}


def test_window_probe_is_answered(host: Host) -> None:
    """RFC 9293 3.8.6.1 (MUST-36 for the sender): answered with the current window."""
    peer, _ = server(host, words={OPT_RCVBUF: 8192})
    peer.send("A", 1, 1, TEXT[:4096])
    assert peer.one().window == 0
    peer.send("A", 4097, 1, b"p")  # one byte, as RFC 9293 probes
    seg = peer.one()
    assert (seg.ack, seg.window) == (4097, 0)
    peer.send("A", 4096, 1)  # no byte, an old number: as Linux and we probe
    seg = peer.one()
    assert (seg.ack, seg.window) == (4097, 0)


def test_window_is_not_opened_in_silly_steps(host: Host) -> None:
    """RFC 9293 3.8.6.2.2: not before min(half the buffer, one segment) is free."""
    peer, slot = server(host, words={OPT_RCVBUF: 16384})
    for i in range(0, 8000, 1000):
        give(peer, i, i + 1000)
    give(peer, 8000, 8192)
    peer.recv()
    total = 0
    while total < 8192:
        total += len(host.read(slot, 100))
        for seg in peer.recv():
            assert seg.window >= 1000
            return
    raise AssertionError("the window never opened")


def test_buffer_grows_when_the_application_reads_fast(make: Make) -> None:
    """Autotuning: from 64 KiB towards the ceiling of 1 MiB."""
    assert autotuned(make()) > 1000000


# ---- PAWS: RFC 7323 5 ----


def test_old_timestamp_is_dropped_and_answered(host: Host) -> None:
    """R1."""
    peer, slot = server(host, LIKE_LINUX)
    now = peer.clock()
    peer.send("A", 1, 1, b"ok", ts=(now + 10, 0))
    peer.recv()
    peer.send("A", 3, 1, b"old", ts=(now + 9, 0))
    assert peer.one().ack == 3
    assert host.read(slot) == b"ok"
    assert host.drops() == {"TCP_PAWS": 1}


def test_equal_timestamp_is_fine(host: Host) -> None:
    peer, slot = server(host, LIKE_LINUX)
    now = peer.clock() + 5
    for i in range(3):
        peer.send("A", 1 + i, 1, b"x", ts=(now, 0))
    assert host.read(slot) == b"xxx"


def test_timestamps_wrap(host: Host) -> None:
    peer = Peer(host)
    listener = host.listen(80)
    opts = Options(mss=1460, ts=(0xFFFFFFF0, 0))
    peer.host_iss = 0
    peer.send("S", 0, options=opts, ts=(0xFFFFFFF0, 0))
    answer = peer.one()
    peer.host_iss = answer.seq
    peer.send("A", 1, 1, ts=(0xFFFFFFF1, 0))
    slot = host.accept(listener)
    peer.send("A", 1, 1, b"a", ts=(0xFFFFFFFF, 0))
    peer.send("A", 2, 1, b"b", ts=(5, 0))
    assert host.read(slot) == b"ab"
    assert peer.recv()[-1].options.ts[1] == 5  # type: ignore[index]


def test_old_timestamps_mean_nothing_after_24_days(host: Host) -> None:
    """5.5."""
    peer, slot = server(host, LIKE_LINUX)
    then = peer.clock()
    host.at(host.now + 25 * 86400 * S)
    peer.send("A", 1, 1, b"long silence", ts=(then - 1000, 0))
    assert host.read(slot) == b"long silence"


def test_echo_is_of_the_earliest_unacknowledged_segment(host: Host) -> None:
    """RFC 7323 4.3, case (A): with delayed ACKs the older timestamp is echoed."""
    peer, _ = server(host, LIKE_LINUX)
    at = settle(host, peer)
    now = peer.clock()
    peer.send("A", 1 + at, 1, bytes(MSS), ts=(now + 1, 0))
    peer.send("A", 1 + at + MSS, 1, bytes(MSS), ts=(now + 2, 0))
    seg = peer.one()
    assert seg.options.ts is not None
    assert seg.options.ts[1] == now + 1


def test_echo_ignores_segments_behind_a_hole(host: Host) -> None:
    """4.3, case (B)."""
    peer, _ = server(host, LIKE_LINUX)
    now = peer.clock()
    peer.send("A", 1, 1, bytes(100), ts=(now + 1, 0))
    peer.recv()
    peer.send("A", 201, 1, bytes(100), ts=(now + 2, 0))
    seg = peer.one()
    assert seg.options.ts is not None
    assert seg.options.ts[1] == now + 1
    peer.send("A", 101, 1, bytes(100), ts=(now + 3, 0))
    seg = peer.one()
    assert seg.options.ts is not None
    assert seg.options.ts[1] == now + 3


# ---- FIN ----


def test_fin_before_the_data_in_front_of_it(host: Host) -> None:
    peer, slot = server(host)
    peer.send("FA", 1 + 100, 1)
    assert peer.one().ack == 1
    assert host.state(slot) == ESTABLISHED
    give(peer, 0, 100)
    assert peer.one().ack == 102
    assert host.state(slot) == CLOSE_WAIT
    assert host.read(slot) == TEXT[:100]


def test_fin_with_data_behind_a_hole(host: Host) -> None:
    peer, slot = server(host)
    give(peer, 100, 200, "FA")
    assert peer.one().options.sack in (((101, 201),), ((101, 202),))
    give(peer, 0, 100)
    assert peer.one().ack == 202
    assert host.read(slot) == TEXT[:200]
    assert host.flags(slot) & RX_EOF


def test_fin_is_taken_once(host: Host) -> None:
    peer, slot = server(host)
    for _ in range(3):
        give(peer, 0, 10, "FA")
        assert peer.one().ack == 12
    assert host.state(slot) == CLOSE_WAIT
    assert host.read(slot) == TEXT[:10]


def test_fin_at_a_shut_window(host: Host) -> None:
    """A FIN needs no room in the buffer; Linux takes it."""
    peer, slot = server(host, words={OPT_RCVBUF: 8192})
    peer.send("A", 1, 1, TEXT[:4096])
    peer.recv()
    peer.send("FA", 4097, 1)
    assert peer.one().ack == 4098
    assert host.state(slot) == CLOSE_WAIT


def test_fin_behind_cut_data_is_cut_too(host: Host) -> None:
    peer, slot = server(host, words={OPT_RCVBUF: 8192})
    peer.send("FA", 1, 1, TEXT[:5000])
    assert peer.recv()[-1].ack == 4097
    assert host.state(slot) == ESTABLISHED


def test_data_after_the_fin_is_no_part_of_the_stream(host: Host) -> None:
    peer, slot = server(host)
    give(peer, 0, 10, "FA")
    peer.recv()
    peer.send("A", 12, 1, b"impossible")
    assert host.read(slot) == TEXT[:10]
    assert host.flags(slot) & (RX_EOF | HUP) == RX_EOF


def test_data_and_fin_acknowledge_our_fin_together(host: Host) -> None:
    peer, slot = server(host)
    host.shutdown(slot)
    peer.recv()
    assert host.state(slot) == FIN_WAIT_1
    give(peer, 0, 10)
    peer.send("FA", 11, 2)
    assert peer.recv()[-1].ack == 12
    assert host.read(slot) == TEXT[:10]
    assert host.time_waits == 1


# ---- things that are ignored ----


def test_urgent_data_is_in_line(host: Host) -> None:
    """RFC 6093 6: like SO_OOBINLINE, the byte is part of the stream."""
    peer, slot = server(host)
    peer.send("UA", 1, 1, b"urgent")
    assert host.read(slot) == b"urgent"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(bytes([254, 4, 0, 0]), id="unknown option"),
        pytest.param(bytes([2, 4, 0, 1]), id="MSS outside a SYN"),
        pytest.param(bytes([0, 9, 9, 9]), id="rubbish after the end"),
        pytest.param(bytes([8, 3, 0, 1]), id="timestamp of a wrong length"),
        pytest.param(bytes([5, 4, 0, 0]), id="SACK of a wrong length"),
    ],
)
def test_odd_options_do_no_harm(host: Host, raw: bytes) -> None:
    """RFC 9293 MUST-6, MUST-7."""
    peer, slot = server(host)
    send_raw(peer, raw)
    assert host.read(slot) == b"data"


@pytest.mark.parametrize(
    "raw", [bytes([2, 0, 0, 0]), bytes([2, 1, 0, 0]), bytes([1, 1, 1, 2]), bytes([2, 40, 0, 0])]
)
def test_options_that_leave_the_header_drop_the_segment(host: Host, raw: bytes) -> None:
    peer, slot = server(host)
    send_raw(peer, raw)
    assert host.readable(slot) == 0
    assert host.drops() == {"TCP_OPTIONS": 1}


def send_raw(peer: Peer, raw: bytes) -> None:
    peer.host.input(
        Segment(
            src=peer.addr, dst=peer.host.config.addr, sport=peer.rport, dport=peer.port,
            seq=peer.iss + 1, ack=peer.host_iss + 1, flags=ACK, data=b"data", raw_options=raw,
        ).encode()
    )  # fmt: skip
