"""The sender when segments are lost: RFC 6298, 5681, 6582, 6675, 3042, 3522, 2018, 9438, 9937.

What RFC 8985 adds is in test_rack.py; with SACK a tail is probed after two round trips.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.stack.host import (
    LIKE_LINUX,
    MS,
    OPT_CONGESTION,
    OPT_MAXSEG,
    OPT_SNDBUF,
    OPT_USER_TIMEOUT,
    THERE,
    Host,
    Peer,
    S,
)  # fmt: skip
from tests.stack.packet import Options, Segment

Make = Callable[..., Host]
MSS = 1000
PLAIN = Options(mss=MSS)
SACK = Options(mss=MSS, sack_ok=True)
RTT = 100 * MS
PTO = 2 * RTT + 4 * MS  # RFC 8985 7.2, with the slack of a wheel of 1 ms


def server(host: Host, options: Options = PLAIN, rtt_us: int = 0,
           words: dict[int, int] | None = None) -> tuple[Peer, int]:  # fmt: skip
    """Accepted connection whose handshake took `rtt_us`."""
    listener = host.listen(80, options=words)
    peer = Peer(host)
    answer = peer.syn(options)
    peer.ts = answer.options.ts is not None
    host.advance(rtt_us)
    peer.send("A", 1, 1)
    return peer, host.accept(listener)


def spans(got: list[Segment]) -> list[tuple[int, int]]:
    """Payload of each segment as [first, end) in segments of MSS bytes."""
    return [((s.seq - 1) // MSS, (s.seq - 1 + len(s.data)) // MSS) for s in got]


def burst(host: Host, peer: Peer, slot: int, segments: int) -> list[tuple[int, int]]:
    assert host.write(slot, bytes(segments * MSS)) == segments * MSS
    return spans(peer.recv())


def edge(segment: int) -> int:
    """Sequence number of the first byte of a segment."""
    return 1 + segment * MSS


# ---- RFC 6298 ----


def test_rto_from_the_first_sample(host: Host) -> None:
    """2.2: SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 * RTTVAR: 300 ms for R = 100 ms."""
    _, slot = server(host, rtt_us=100 * MS)
    info = host.info(slot)
    assert (info.srtt_us, info.rto_us) == (100 * MS, 300 * MS)


def test_rto_from_more_samples(host: Host) -> None:
    """2.3 with alpha 1/8, beta 1/4. R' = 200 ms: RTTVAR = 3/4 * 50 + 1/4 * 100 = 62.5,
    SRTT = 7/8 * 100 + 1/8 * 200 = 112.5, RTO = 112.5 + 250 ms."""
    peer, slot = server(host, rtt_us=100 * MS)
    host.write(slot, b"x")
    host.advance(200 * MS)
    peer.send("A", 1, 2)
    info = host.info(slot)
    assert (info.srtt_us, info.rto_us) == (112_500, 362_500)


def test_rto_has_a_floor(host: Host) -> None:
    """200 ms above SRTT, Linux's tcp_rto_min (RFC 6298 2.4 says 1 s)."""
    peer, slot = server(host, rtt_us=100)
    for _ in range(20):
        host.write(slot, b"x")
        host.advance(100)
        peer.send("A", 1, 1 + int(host.info(slot).snd_nxt) - 1)
    assert host.info(slot).srtt_us == pytest.approx(100, abs=10)
    assert host.info(slot).rto_us == pytest.approx(200_100, abs=10)


def test_timeout_backs_off_and_gives_up(host: Host) -> None:
    """5.4-5.6: the first segment again, RTO doubled up to 120 s; tcp_retries2 = 15."""
    peer, slot = server(host, rtt_us=100 * MS)
    burst(host, peer, slot, 3)
    start = host.now
    host.advance(20 * 60 * S)
    got = peer.recv()
    assert {s.letters for s in got} == {"A", "RA"}
    again = [s for s in got if s.letters == "A"]
    assert spans(again) == [(0, 1)] * 15
    gaps = [
        b - a for a, b in zip([start, *(s.at for s in again)], (s.at for s in again), strict=False)
    ]
    for i, gap in enumerate(gaps):
        want = min(300 * MS << i, 120 * S)
        assert want <= gap <= want + 2 * MS
    assert host.error(slot) == errno.ETIMEDOUT
    assert got[-1].letters == "RA"
    assert host.blocks == []


def test_ack_of_new_data_restarts_the_timer(host: Host) -> None:
    """5.3: with data still out, the timer runs for RTO from that ACK."""
    peer, slot = server(host, rtt_us=100 * MS)
    burst(host, peer, slot, 2)
    host.advance(250 * MS)
    peer.send("A", 1, edge(1))
    rto = int(host.info(slot).rto_us)
    start = host.now
    host.advance(rto - MS)
    peer.none()
    host.advance(3 * MS)
    seg = peer.one()
    assert spans([seg]) == [(1, 2)]
    assert 0 <= seg.at - start - rto <= 1 * MS


def test_everything_acknowledged_stops_the_timer(host: Host) -> None:
    """5.2."""
    peer, slot = server(host)
    burst(host, peer, slot, 2)
    peer.send("A", 1, edge(2))
    host.advance(3600 * S)
    peer.none()
    assert host.info(slot).rto == 0


def test_retransmitted_segments_give_no_sample(host: Host) -> None:
    """3 (Karn): without timestamps the ACK of a retransmission says nothing."""
    peer, slot = server(host, rtt_us=100 * MS)
    burst(host, peer, slot, 1)
    host.advance(2 * S)
    assert len(peer.recv()) == 3 - 1 + 1 - 1  # 300 ms, 900 ms
    peer.send("A", 1, edge(1))
    assert host.info(slot).srtt_us == 100 * MS


def test_timestamps_tell_even_of_retransmissions(host: Host) -> None:
    """RFC 7323 4."""
    peer, slot = server(host, LIKE_LINUX, rtt_us=100 * MS)
    host.write(slot, b"x")
    peer.recv()
    host.advance(310 * MS)
    again = peer.one()
    assert again.options.ts is not None
    host.advance(20 * MS)
    peer.send("A", 1, 2, ts=(peer.clock(), again.options.ts[0]))
    waited = host.now - again.at
    assert host.info(slot).srtt_us == pytest.approx(100 * MS * 7 / 8 + waited / 8, abs=MS)


def test_rto_is_three_seconds_after_a_lost_syn(host: Host) -> None:
    """5.7: "the RTO MUST be re-initialized to 3 seconds when data transmission begins"."""
    host.learn(THERE)
    peer = Peer(host)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    host.advance(1100 * MS)
    peer.recv()
    peer.send("SA", 0, 1)
    peer.recv()
    assert host.info(slot).rto_us == 3 * S


def test_rto_is_three_seconds_after_a_lost_syn_ack(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    host.advance(1100 * MS)
    peer.recv()
    peer.send("A", 1, 1)
    assert host.info(host.accept(listener)).rto_us == 3 * S


def test_user_timeout(host: Host) -> None:
    """tcp(7) TCP_USER_TIMEOUT: milliseconds that data may stay unacknowledged."""
    peer, slot = server(host, rtt_us=100 * MS, words={OPT_USER_TIMEOUT: 5000})
    burst(host, peer, slot, 1)
    host.advance(4500 * MS)
    assert host.error(slot) == 0
    host.advance(5 * S)
    assert host.error(slot) == errno.ETIMEDOUT


def test_back_off_does_not_wrap(host: Host) -> None:
    """A user timeout of 20 days: more timeouts than fit a byte, all 120 s apart (RFC 6298 2.5)."""
    peer, slot = server(host, rtt_us=100 * MS, words={OPT_USER_TIMEOUT: 20 * 86400 * 1000})
    burst(host, peer, slot, 1)
    host.advance(300 * 120 * S)
    at = [s.at for s in peer.recv()]
    assert len(at) > 260
    assert {round((b - a) / S) for a, b in zip(at[20:], at[21:], strict=False)} == {120}


def test_user_timeout_keeps_no_orphan(host: Host) -> None:
    peer, slot = server(host, rtt_us=100 * MS, words={OPT_USER_TIMEOUT: 20 * 86400 * 1000})
    burst(host, peer, slot, 1)
    host.close(slot)
    host.advance(3600 * S)
    assert host.blocks == []


# ---- window after a timeout ----


def test_slow_start_after_a_timeout(host: Host) -> None:
    """RFC 5681 3.1: loss window of one segment, then two for each acknowledged one."""
    peer, slot = server(host, SACK, rtt_us=100 * MS, words={OPT_CONGESTION: 1})
    assert len(burst(host, peer, slot, 10)) == 10
    host.advance(PTO)
    assert spans(peer.recv()) == [(9, 10)]
    host.advance(301 * MS)
    assert spans(peer.recv()) == [(0, 1)]
    assert host.info(slot).cwnd == MSS
    assert host.info(slot).ssthresh == 5 * MSS  # equation 4: FlightSize / 2
    peer.send("A", 1, edge(1))
    assert spans(peer.recv()) == [(1, 2), (2, 3)]
    peer.send("A", 1, edge(3))
    assert spans(peer.recv()) == [(3, 4), (4, 5), (5, 6), (6, 7)]


def test_second_timeout_does_not_halve_again(host: Host) -> None:
    """RFC 5681 3.1: "ssthresh is held constant"."""
    peer, slot = server(host, rtt_us=100 * MS, words={OPT_CONGESTION: 1})
    burst(host, peer, slot, 10)
    host.advance(2 * S)
    assert host.info(slot).rto >= 2
    assert host.info(slot).ssthresh == 5 * MSS


def test_timeout_that_was_spurious_is_undone(host: Host) -> None:
    """RFC 3522 (Eifel): the echo is older than the retransmission, so the original arrived."""
    peer, slot = server(host, Options(mss=MSS + 12, sack_ok=True, ts=(0, 0)), rtt_us=100 * MS)
    host.write(slot, bytes(10 * MSS))
    first = peer.recv()
    host.advance(PTO + 301 * MS)
    assert spans(peer.recv()) == [(9, 10), (0, 1)]
    assert host.info(slot).cwnd == MSS
    assert first[0].options.ts is not None
    peer.send("A", 1, edge(1), ts=(peer.clock(), first[0].options.ts[0]))
    info = host.info(slot)
    assert info.recovery == 0
    assert info.cwnd >= 10 * MSS
    assert peer.recv() == []  # nothing is sent twice


def test_timeout_that_was_real_is_not_undone(host: Host) -> None:
    peer, slot = server(host, Options(mss=MSS + 12, sack_ok=True, ts=(0, 0)), rtt_us=100 * MS)
    host.write(slot, bytes(10 * MSS))
    peer.recv()
    host.advance(PTO + 301 * MS)
    _, again = peer.recv()
    assert again.options.ts is not None
    peer.send("A", 1, edge(1), ts=(peer.clock(), again.options.ts[0]))
    assert host.info(slot).cwnd <= 2 * MSS


def test_lost_segment_after_an_undone_timeout_is_sent_by_fast_retransmit(host: Host) -> None:
    peer, slot = server(host, Options(mss=MSS + 12, sack_ok=True, ts=(0, 0)), rtt_us=100 * MS)
    host.write(slot, bytes(10 * MSS))
    first = peer.recv()
    host.advance(PTO + 301 * MS)
    peer.recv()
    assert first[0].options.ts is not None
    echo = first[0].options.ts[0]
    peer.send("A", 1, edge(1), ts=(peer.clock(), echo))
    for end in (3, 4, 5):
        sack = Options(sack=((edge(2), edge(end)),))
        peer.send("A", 1, edge(1), options=sack, ts=(peer.clock(), echo))
    assert spans(peer.recv()) == [(1, 2)]


# ---- fast retransmit without SACK: RFC 5681 3.2, 6582 ----


def test_third_duplicate_ack_retransmits(host: Host) -> None:
    peer, slot = server(host)
    burst(host, peer, slot, 10)
    for _ in range(2):
        peer.send("A", 1, 1)
    peer.none()
    peer.send("A", 1, 1)
    assert spans(peer.recv()) == [(0, 1)]
    assert host.info(slot).fast_retransmits == 1
    peer.send("A", 1, edge(10))
    assert host.info(slot).recovery == 0
    host.advance(10 * S)
    peer.none()


@pytest.mark.parametrize(
    ("window", "data", "letters"),
    [(65534, b"", "A"), (65535, b"text", "A"), (65535, b"", "FA")],
    ids=["window update", "carries data", "carries a FIN"],
)
def test_what_is_no_duplicate(host: Host, window: int, data: bytes, letters: str) -> None:
    """RFC 5681 2: a duplicate has no data, no FIN, the same window."""
    peer, slot = server(host)
    burst(host, peer, slot, 10)
    for i in range(5):
        peer.send(
            letters, 1 + i * len(data), 1, data, window=window - i if window < 65535 else window
        )
    assert all(s.data == b"" for s in peer.recv())
    assert host.info(slot).fast_retransmits == 0


def test_duplicates_with_nothing_outstanding_mean_nothing(host: Host) -> None:
    peer, slot = server(host)
    for _ in range(10):
        peer.send("A", 1, 1)
    host.write(slot, bytes(MSS))
    assert len(peer.recv()) == 1
    assert host.info(slot).fast_retransmits == 0


def test_limited_transmit(host: Host) -> None:
    """RFC 3042: one new segment for each of the first two duplicates; cwnd does not grow."""
    peer, slot = server(host)
    host.write(slot, bytes(20 * MSS))
    assert len(peer.recv()) == 10
    peer.send("A", 1, 1)
    assert spans(peer.recv()) == [(10, 11)]
    peer.send("A", 1, 1)
    assert spans(peer.recv()) == [(11, 12)]
    peer.send("A", 1, 1)
    assert spans(peer.recv())[0] == (0, 1)
    assert host.info(slot).cwnd <= 10 * MSS


def test_partial_ack_retransmits_the_next_hole(host: Host) -> None:
    """RFC 6582 3.2 step 3: NewReno stays in recovery until all of it is acknowledged."""
    peer, slot = server(host, words={OPT_CONGESTION: 1})
    burst(host, peer, slot, 10)  # 0 and 4 are lost
    for _ in range(8):
        peer.send("A", 1, 1)
    assert spans(peer.recv()) == [(0, 1)]
    peer.send("A", 1, edge(4))
    assert spans(peer.recv())[0] == (4, 5)
    assert host.info(slot).recovery == 1
    peer.send("A", 1, edge(10))
    assert host.info(slot).recovery == 0
    assert host.info(slot).cwnd <= 5 * MSS
    assert host.info(slot).fast_retransmits == 1


def test_reno_halves(host: Host) -> None:
    """RFC 5681 equation 4: ssthresh = FlightSize / 2."""
    peer, slot = server(host, words={OPT_CONGESTION: 1})
    burst(host, peer, slot, 10)
    for _ in range(3):
        peer.send("A", 1, 1)
    assert host.info(slot).ssthresh == 5 * MSS


def test_cubic_keeps_seven_tenths(host: Host) -> None:
    """RFC 9438 4.6: beta_cubic = 0.7."""
    peer, slot = server(host)
    burst(host, peer, slot, 10)
    for _ in range(3):
        peer.send("A", 1, 1)
    assert host.info(slot).ssthresh == 7 * MSS


def test_duplicates_after_a_timeout_start_no_new_recovery(host: Host) -> None:
    """RFC 6582 3.2 step 2 and 4: what the retransmissions themselves cause."""
    peer, slot = server(host, rtt_us=100 * MS)
    burst(host, peer, slot, 10)
    host.advance(301 * MS)
    peer.recv()
    peer.send("A", 1, edge(3))
    for _ in range(5):
        peer.send("A", 1, edge(3))
    assert host.info(slot).fast_retransmits == 0


# ---- SACK: RFC 2018, 6675 ----


def sack(peer: Peer, ack: int, *blocks: tuple[int, int]) -> None:
    """Numbers in segments; the newest block first."""
    edges = tuple((edge(a), edge(b)) for a, b in blocks)
    peer.send("A", 1, edge(ack), options=Options(sack=edges))


def test_three_sacked_segments_start_recovery(host: Host) -> None:
    peer, slot = server(host, SACK, RTT)
    burst(host, peer, slot, 10)
    host.advance(RTT)
    sack(peer, 0, (1, 2))
    sack(peer, 0, (1, 3))
    peer.none()
    sack(peer, 0, (1, 4))
    assert spans(peer.recv())[0] == (0, 1)


def test_one_ack_that_sacks_much_is_enough(host: Host) -> None:
    """RFC 6675 5 step 2: IsLost(HighACK + 1) after more than 2 SMSS above it."""
    peer, slot = server(host, SACK, RTT)
    burst(host, peer, slot, 10)
    host.advance(RTT)
    sack(peer, 0, (1, 5))
    assert spans(peer.recv())[0] == (0, 1)


def test_bare_duplicates_without_sack_information_do_not_count(host: Host) -> None:
    """RFC 6675 2: a duplicate ACK reports octets not reported before."""
    peer, slot = server(host, SACK)
    burst(host, peer, slot, 10)
    for _ in range(8):
        peer.send("A", 1, 1)
    sack(peer, 0, (1, 2))
    for _ in range(8):
        sack(peer, 0, (1, 2))
    peer.none()


def test_only_holes_are_retransmitted(host: Host) -> None:
    """0, 3 and 4 are lost of 10. RFC 6675 NextSeg rule 1, each once."""
    peer, slot = server(host, SACK, RTT)
    burst(host, peer, slot, 10)
    host.advance(RTT)
    again = []
    for blocks in ([(1, 2)], [(1, 3)], [(5, 6), (1, 3)], [(5, 7), (1, 3)], [(5, 8), (1, 3)],
                   [(5, 9), (1, 3)], [(5, 10), (1, 3)]):  # fmt: skip
        sack(peer, 0, *blocks)
        again += spans(peer.recv())
    assert again == [(0, 1), (3, 4), (4, 5)]
    sack(peer, 3, (5, 10))
    sack(peer, 4, (5, 10))
    peer.none()
    assert host.info(slot).recovery == 1
    peer.send("A", 1, edge(10))
    assert host.info(slot).recovery == 0
    assert host.info(slot).retransmits == 3
    assert host.info(slot).rto == 0


def test_new_data_is_sent_in_recovery_when_pipe_allows(host: Host) -> None:
    """NextSeg rule 2."""
    peer, slot = server(host, SACK, RTT)
    host.write(slot, bytes(30 * MSS))
    assert len(peer.recv()) == 10
    host.advance(RTT)
    for end in range(2, 10):
        sack(peer, 0, (1, end))
    sack(peer, 0, (1, 10))
    got = spans(peer.recv())
    assert (0, 1) in got
    assert [s for s in got if s[0] >= 10]
    in_flight = {s for s in got}
    assert len(in_flight) == len(got)


def test_pipe_bounds_what_is_sent_in_recovery(host: Host) -> None:
    """RFC 6675 5 (C): never more than cwnd in flight, which was cut to 0.7."""
    peer, slot = server(host, SACK, RTT)
    host.write(slot, bytes(100 * MSS))
    assert len(peer.recv()) == 10
    host.advance(RTT)
    sack(peer, 0, (1, 4))  # 4 .. 9 are in flight still, 0 is lost
    got = spans(peer.recv())
    assert got[0] == (0, 1)
    assert host.info(slot).cwnd == 7 * MSS
    assert len(got) + 6 <= 7


def test_timeout_keeps_the_scoreboard(host: Host) -> None:
    """Linux and RFC 6675 5.1: SACKed data is not sent again after a timeout."""
    peer, slot = server(host, SACK, rtt_us=100 * MS)
    burst(host, peer, slot, 10)
    host.advance(RTT)
    sack(peer, 0, (1, 2))
    sack(peer, 0, (5, 6), (1, 2))
    host.advance(30 * MS)  # min_RTT / 4 for reordering
    assert spans(peer.recv())[0] == (0, 1)
    host.advance(int(host.info(slot).rto_us) + 2 * MS)
    assert spans(peer.recv())[-1] == (0, 1)
    assert host.info(slot).rto == 1
    sack(peer, 2, (5, 6))
    got = spans(peer.recv())
    sack(peer, 4, (5, 6))
    got += spans(peer.recv())
    assert (5, 6) not in got
    assert got[:3] == [(2, 3), (3, 4), (4, 5)]


def test_reneging_is_survived(host: Host) -> None:
    """RFC 2018 8: after a timeout what was SACKed at SND.UNA but not acknowledged is sent."""
    peer, slot = server(host, SACK, rtt_us=100 * MS)
    burst(host, peer, slot, 4)
    sack(peer, 0, (1, 4))
    peer.recv()
    peer.send("A", 1, edge(1))  # only the retransmission: 1 .. 3 were thrown away
    host.advance(10 * S)
    got = spans(peer.recv())
    assert (1, 2) in got
    peer.send("A", 1, edge(2))
    host.advance(10 * S)
    assert (2, 3) in spans(peer.recv())
    peer.send("A", 1, edge(4))
    host.advance(100 * S)
    peer.none()


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(((5001, 1001),), id="backwards"),
        pytest.param(((1001, 1001),), id="empty"),
        pytest.param(((1001, 1 << 30),), id="beyond what was sent"),
        pytest.param(((-5000, -1000),), id="before everything"),
        pytest.param(((20001, 30001),), id="not sent yet"),
    ],
)
def test_impossible_sack_blocks_are_ignored(
    host: Host, blocks: tuple[tuple[int, int], ...]
) -> None:
    peer, slot = server(host, SACK)
    burst(host, peer, slot, 10)
    for _ in range(5):
        peer.send("A", 1, 1, options=Options(sack=blocks))
    peer.none()
    assert host.info(slot).fast_retransmits == 0


def test_sack_blocks_before_the_stream_began_are_ignored(host: Host) -> None:
    """With an ACK from before our SYN: numbers below zero compare as such, and pipe stays right."""
    peer, slot = server(host, SACK)
    host.write(slot, bytes(20 * MSS))
    assert len(peer.recv()) == 10
    peer.send("A", 1, -100, options=Options(sack=((-90, -50), (-40, -30))))
    peer.none()


def test_maxseg_set_later_only_lowers(host: Host) -> None:
    """tcp(7) TCP_MAXSEG; the timestamps' share was deducted already."""
    peer, slot = server(host, Options(mss=88, ts=(0, 0)))
    host.option(slot, OPT_MAXSEG, 70)
    host.write(slot, bytes(1000))
    assert max(len(s.data) for s in peer.recv()) == 76


def test_many_sack_blocks_do_not_break_the_sender(make: Make) -> None:
    """More intervals than are remembered: some are forgotten, the stream still arrives."""
    host = make()
    peer, slot = server(host, SACK, RTT)
    acked = 0
    while host.info(slot).snd_nxt - 1 - acked < 200 * MSS and acked < 10000 * MSS:
        host.write(slot, bytes(host.room(slot)))
        acked = acked + MSS
        peer.send("A", 1, 1 + acked)
    first = acked // MSS
    last = int(host.info(slot).snd_nxt - 1) // MSS
    peer.recv()
    host.advance(RTT)
    for i in range(first + 1, last - 1, 2):
        sack(peer, first, (i, i + 1))
    got = spans(peer.recv())
    assert (first, first + 1) in got
    peer.send("A", 1, int(host.info(slot).snd_nxt))
    assert host.info(slot).recovery == 0


# ---- the FIN ----


def test_lost_fin_is_sent_again(host: Host) -> None:
    peer, slot = server(host, rtt_us=100 * MS)
    host.write(slot, b"bye")
    peer.send("A", 1, 4)
    peer.recv()
    host.shutdown(slot)
    assert peer.one().letters == "FA"
    host.advance(int(host.info(slot).rto_us) + MS)
    seg = peer.one()
    assert (seg.letters, seg.seq) == ("FA", 4)
    peer.send("A", 1, 5)
    host.advance(100 * S)
    peer.none()


def test_lost_data_in_front_of_a_fin(host: Host) -> None:
    peer, slot = server(host, SACK, rtt_us=100 * MS)
    host.write(slot, bytes(5 * MSS))
    host.shutdown(slot)
    peer.recv()
    host.advance(RTT)
    peer.send("A", 1, 1, options=Options(sack=((edge(1), edge(5) + 1),)))
    seg = peer.one()
    assert (seg.letters, seg.seq, len(seg.data)) == ("A", 1, MSS)
    peer.send("A", 1, edge(5) + 1)
    peer.none()
    assert host.info(slot).snd_una == edge(5) + 1


def test_orphan_gives_up_sooner(host: Host) -> None:
    """tcp(7) tcp_orphan_retries: 8 instead of 15."""
    peer, slot = server(host, rtt_us=100 * MS)
    host.write(slot, b"never acknowledged")
    host.close(slot)
    host.advance(20 * 60 * S)
    assert host.blocks == []
    assert len([s for s in peer.recv() if s.letters == "FA"]) <= 10


# ---- no room below ----


def test_full_transmit_queue_loses_nothing(host: Host) -> None:
    peer, slot = server(host)
    host.lib.host_block_tx(host.h, 1)
    host.write(slot, bytes(5 * MSS))
    host.shutdown(slot)
    peer.none()
    host.lib.host_block_tx(host.h, 0)
    host.lib.host_drain(host.h)
    got = peer.recv()
    assert sum(len(s.data) for s in got) == 5 * MSS
    assert got[-1].letters == "FA"


def test_send_buffer_limit_is_kept(host: Host) -> None:
    _, slot = server(host, words={OPT_SNDBUF: 8192})
    assert host.write(slot, bytes(100000)) == 4096
    assert host.write(slot, b"x") == 0


# ---- path MTU: RFC 1191, 5927 ----


def frag_needed(host: Host, peer: Peer, seq: int, mtu: int) -> None:
    host.lib.host_icmp(host.h, host.config.addr, peer.port, peer.addr, peer.rport,
                       (peer.host_iss + seq) % 2**32, 3, 4, mtu)  # fmt: skip


def test_path_mtu_shrinks_segments_and_sends_again(host: Host) -> None:
    peer, slot = server(host, Options(mss=1460))
    host.write(slot, bytes(1460 * 4))
    assert {len(s.data) for s in peer.recv()} == {1460}
    frag_needed(host, peer, 1, 1000)
    again = [(seg.seq, len(seg.data)) for seg in peer.recv()]
    assert again[0] == (1, 960)
    assert max(size for _, size in again) == 960
    assert sum(size for _, size in again) == 1460 * 4
    peer.send("A", 1, 1 + 1460 * 4)
    host.write(slot, bytes(2000))
    assert [len(s.data) for s in peer.recv()] == [960, 960, 80]


@pytest.mark.parametrize(("seq", "mtu"), [(0, 1000), (20000, 1000), (1, 1500), (1, 9000)])
def test_path_mtu_of_something_else_is_ignored(host: Host, seq: int, mtu: int) -> None:
    """RFC 5927 4: about nothing in flight, or not smaller."""
    peer, slot = server(host, Options(mss=1460))
    host.write(slot, bytes(1460 * 4))
    peer.recv()
    frag_needed(host, peer, seq, mtu)
    peer.none()


@pytest.mark.parametrize("mtu", [0, 1, 68, 300])
def test_path_mtu_has_a_floor(host: Host, mtu: int) -> None:
    """RFC 5927 7: an attacker must not make us send tiny segments."""
    peer, slot = server(host, Options(mss=1460))
    host.write(slot, bytes(1460 * 4))
    peer.recv()
    frag_needed(host, peer, 1, mtu)
    assert len(peer.recv()[0].data) >= 512
