"""RACK-TLP (RFC 8985) and PRR (RFC 9937): loss by time instead of by counting, probes for tails.

A round trip is 100 ms, so: min_RTT / 4 = 25 ms for reordering, PTO = 2 * SRTT = 200 ms and 2 ms of
slack, RTO = 300 ms (RFC 6298 2.2). CUBIC's ssthresh is 7 of 10 segments (RFC 9438 4.6).
"""

from __future__ import annotations

import pytest

from tests.stack.host import CORK, LOCALHOST, MS, NODELAY, OPT_FLAGS, Host, Peer
from tests.stack.packet import Options
from tests.stack.test_loss import MSS, PTO, RTT, SACK, burst, edge, sack, server, spans

LATE = 3 * MS  # what timers may be late: a wheel of 1 ms, slack of two


def sender(host: Host, segments: int) -> tuple[Peer, int]:
    """Ten segments are on their way for a round trip, the rest of `segments` waits."""
    peer, slot = server(host, SACK, RTT)
    assert host.write(slot, bytes(segments * MSS)) == segments * MSS
    assert spans(peer.recv()) == [(i, i + 1) for i in range(min(segments, 10))]
    host.advance(RTT)
    return peer, slot


# ---- 6.2: reordering and loss ----


def test_a_late_segment_is_not_sent_again(host: Host) -> None:
    """Step 4: within a quarter of the smallest round trip it is only reordered."""
    peer, slot = sender(host, 10)
    sack(peer, 0, (1, 2))
    host.advance(20 * MS)
    peer.none()
    peer.send("A", 1, edge(2))
    assert host.info(slot).fast_retransmits == 0
    assert host.info(slot).cwnd >= 10 * MSS


def test_one_sacked_segment_is_enough_after_the_reordering_window(host: Host) -> None:
    """Step 5: where three duplicates would never come."""
    peer, slot = sender(host, 2)
    start = host.now
    sack(peer, 0, (1, 2))
    peer.none()
    host.advance(25 * MS + LATE)
    seg = peer.one()
    assert spans([seg]) == [(0, 1)]
    assert 25 * MS <= seg.at - start <= 25 * MS + LATE
    assert (host.info(slot).fast_retransmits, host.info(slot).rto) == (1, 0)
    peer.send("A", 1, edge(2))
    assert host.info(slot).recovery == 0


def test_reordering_seen_before_keeps_the_window_in_spite_of_many_sacks(host: Host) -> None:
    """Steps 3 and 4: after an original filled a hole, DupThresh alone proves nothing."""
    peer, slot = sender(host, 20)
    sack(peer, 0, (1, 2))
    peer.send("A", 1, edge(2))  # 0 was late: sent once, below what was SACKed
    peer.recv()
    sack(peer, 2, (3, 7))
    assert (2, 3) not in spans(peer.recv())
    host.advance(25 * MS + LATE)
    assert (2, 3) in spans(peer.recv())
    assert host.info(slot).fast_retransmits == 1


def test_a_duplicate_report_widens_the_window(host: Host) -> None:
    """Step 4: reo_wnd_mult 2, 50 ms, after a DSACK (RFC 2883) for a retransmission."""
    peer, slot = sender(host, 30)
    sack(peer, 0, (1, 2))
    host.advance(25 * MS + LATE)
    assert (0, 1) in spans(peer.recv())
    peer.send("A", 1, edge(10))  # the original was 28 ms late; 10 went out by limited transmit
    peer.send("A", 1, edge(10), options=Options(sack=((edge(0), edge(1)),)))
    host.advance(RTT - 25 * MS)
    peer.send("A", 1, edge(11))
    first = 11
    assert spans(peer.recv())[0] == (first, first + 1)
    host.advance(25 * MS)
    sack(peer, first, (first + 1, first + 2))
    peer.recv()
    host.advance(40 * MS)
    assert (first, first + 1) not in spans(peer.recv())
    host.advance(10 * MS + LATE)
    assert (first, first + 1) in spans(peer.recv())
    assert host.info(slot).rto == 0


def test_a_lost_retransmission_is_found_by_what_was_sent_after_it(host: Host) -> None:
    """Counting cannot: only the RTO would."""
    peer, slot = sender(host, 40)
    for end in range(2, 11):
        sack(peer, 0, (1, end))
        host.advance(MS)
    got = spans(peer.recv())
    assert got.count((0, 1)) == 1
    assert got[-1][0] > 10  # sent after the retransmission
    host.advance(RTT)
    sack(peer, 0, (1, got[-1][1]))
    assert (0, 1) in spans(peer.recv())
    assert host.info(slot).rto == 0


def test_a_timeout_does_not_doubt_what_was_just_sent(host: Host) -> None:
    """6.3: only the first segment and what is older than a round trip is lost. An ACK that comes
    sooner than any round trip took is of the originals (6.2 step 2)."""
    peer, slot = sender(host, 1)
    peer.send("A", 1, edge(1))  # min_RTT is known
    burst(host, peer, slot, 4)
    host.advance(PTO)
    assert spans(peer.recv()) == [(4, 5)]
    host.advance(int(host.info(slot).rto_us) - 50 * MS)
    assert burst(host, peer, slot, 1) == [(5, 6)]
    host.advance(50 * MS + LATE)
    assert spans(peer.recv()) == [(1, 2)]
    assert host.info(slot).rto == 1
    peer.send("A", 1, edge(2))
    assert spans(peer.recv()) == [(2, 3)]  # cwnd 2, and 5 is in flight
    peer.send("A", 1, edge(5))
    peer.none()


def test_undone_recovery_forgets_what_it_took_for_lost(host: Host) -> None:
    peer, slot = server(host, Options(mss=MSS + 12, sack_ok=True, ts=(0, 0)), RTT)
    host.write(slot, bytes(10 * MSS))
    first = peer.recv()
    host.advance(RTT)
    assert first[0].options.ts is not None
    echo = first[0].options.ts[0]
    peer.send("A", 1, 1, options=Options(sack=((edge(5), edge(10)),)), ts=(peer.clock(), echo))
    host.advance(MS)
    assert spans(peer.recv())[0] == (0, 1)
    peer.send("A", 1, edge(3), options=Options(sack=((edge(5), edge(10)),)),
              ts=(peer.clock(), echo))  # fmt: skip
    assert host.info(slot).recovery == 0
    peer.none()


# ---- 7: tail loss probes ----


def test_a_lost_tail_is_repaired_without_a_timeout(host: Host) -> None:
    """7.3: the last segment again; its SACK says what else is missing, 200 ms before an RTO."""
    peer, slot = sender(host, 3)
    start = host.now
    peer.send("A", 1, edge(1))
    host.advance(PTO)
    probe = peer.one()
    assert spans([probe]) == [(2, 3)]
    assert 2 * RTT <= probe.at - start <= 2 * RTT + 2 * LATE
    host.advance(RTT)
    sack(peer, 1, (2, 3))
    assert spans(peer.recv()) == [(1, 2)]
    peer.send("A", 1, edge(3))
    info = host.info(slot)
    assert (info.tlp, info.rto, info.recovery) == (1, 0, 0)


def test_a_lone_segment_waits_for_a_delayed_ack(host: Host) -> None:
    """7.2: 2 * SRTT + 200 ms, but not longer than the RTO, and only one probe before it."""
    peer, slot = server(host, SACK, RTT)
    start = host.now
    burst(host, peer, slot, 1)
    host.advance(2000 * MS)
    got = peer.recv()
    assert [round((s.at - start) / (10 * MS)) for s in got] == [30, 60, 120]
    info = host.info(slot)
    assert (info.tlp, info.rto) == (1, 2)


def test_new_data_is_the_better_probe(host: Host) -> None:
    """7.3: one segment beyond cwnd."""
    peer, slot = server(host, SACK, RTT)
    assert len(burst(host, peer, slot, 20)) == 10
    host.advance(PTO)
    assert spans(peer.recv()) == [(10, 11)]
    assert host.info(slot).tlp == 1


def test_what_nagle_holds_back_is_a_probe_what_cork_holds_back_is_not(host: Host) -> None:
    peer, slot = server(host, SACK, RTT)
    host.write(slot, b"a" * 10)
    host.write(slot, b"b" * 20)
    assert [len(s.data) for s in peer.recv()] == [10]
    host.advance(302 * MS)
    assert [len(s.data) for s in peer.recv()] == [20]
    peer.send("A", 1, 31)
    host.option(slot, OPT_FLAGS, CORK)
    host.write(slot, bytes(2 * MSS + 5))
    assert len(peer.recv()) == 2
    host.advance(195 * MS)
    peer.none()


@pytest.mark.parametrize(
    ("answers", "reduced"),
    [
        pytest.param([(3, None), (3, (2, 3))], False, id="DSACK: a duplicate"),
        pytest.param([(3, None), (3, None)], False, id="bare duplicate ACK"),
        pytest.param([(3, None)], True, id="neither"),
    ],
)
def test_the_probe_hides_no_loss_from_congestion_control(
    host: Host, answers: list[tuple[int, tuple[int, int] | None]], reduced: bool
) -> None:
    """7.4: if the probe repaired a loss, cwnd pays; known when later data is acknowledged."""
    peer, slot = server(host, SACK, RTT)
    burst(host, peer, slot, 3)
    host.advance(PTO)
    assert spans(peer.recv()) == [(2, 3)]
    for ack, dsack in answers:
        blocks = ((edge(dsack[0]), edge(dsack[1])),) if dsack else ()
        peer.send("A", 1, edge(ack), options=Options(sack=blocks))
    assert burst(host, peer, slot, 1) == [(3, 4)]
    peer.send("A", 1, edge(4))
    assert (host.info(slot).ssthresh < 10 * MSS) == reduced
    host.write(slot, bytes(MSS))
    host.advance(400 * MS)
    assert host.info(slot).tlp == 2  # the first one is settled


def test_no_probe_without_sack(host: Host) -> None:
    """7.1."""
    peer, slot = server(host, Options(mss=MSS), RTT)
    burst(host, peer, slot, 3)
    host.advance(PTO)
    peer.none()
    host.advance(100 * MS)
    assert spans(peer.recv()) == [(0, 1)]
    assert host.info(slot).tlp == 0


def test_no_probe_while_something_is_known_to_be_missing(host: Host) -> None:
    """7.2: then RACK's own timer runs."""
    peer, slot = sender(host, 2)
    sack(peer, 0, (1, 2))
    host.advance(25 * MS + LATE)
    assert spans(peer.recv()) == [(0, 1)]
    host.advance(290 * MS)
    peer.none()
    assert host.info(slot).tlp == 0


def test_lo_loses_nothing_and_is_not_probed(host: Host) -> None:
    listener = host.listen(80)
    client = host.connect(LOCALHOST, 80)
    server_slot = host.accept(listener)
    host.write(client, bytes(3 * MSS))
    assert len(host.read(server_slot, 5 * MSS)) == 3 * MSS
    assert host.info(client).tlp == 0
    assert host.deadline > host.now + 10 * MS


# ---- records ----


def test_more_pieces_than_records(host: Host) -> None:
    """Neighbours merge; what is lost is found all the same, and nothing else is sent again."""
    peer, slot = server(host, SACK, RTT, words={OPT_FLAGS: NODELAY})
    done = 1
    while host.info(slot).cwnd < 40 * MSS:
        host.write(slot, bytes(40 * MSS))
        done = int(host.info(slot).snd_nxt)
        peer.send("A", 1, done)
    peer.send("A", 1, int(host.info(slot).snd_nxt))
    peer.recv()
    host.advance(RTT)
    done = int(host.info(slot).snd_nxt)
    for _ in range(300):
        assert host.write(slot, bytes(100)) == 100
        host.advance(MS // 4)
    assert len(peer.recv()) == 300
    host.advance(RTT)
    blocks = ((done + 15000, done + 30000), (done + 5100, done + 14900), (done + 100, done + 5000))
    peer.send("A", 1, done, options=Options(sack=blocks))
    got = sorted((s.seq - done, len(s.data)) for s in peer.recv())
    assert got == [(0, 100), (5000, 100), (14900, 100)]
    peer.send("A", 1, done + 30000)
    assert host.info(slot).recovery == 0


# ---- RFC 9937 ----


def test_proportional_rate_reduction(host: Host) -> None:
    """Segment 0 of ten is lost; the third SACK tells (12 sent, 2 SACKed before: RecoverFS 10).

    ssthresh 7. SACK 3: pipe 8, allowed 0.7, the retransmission is forced. 4: pipe 8, 1.4 - 1. 5:
    pipe 7 = ssthresh. From then on pipe stays at 7: one for each.
    """
    peer, slot = sender(host, 40)
    sent = []
    for end in range(2, 11):
        sack(peer, 0, (1, end))
        sent.append(spans(peer.recv()))
    assert host.info(slot).ssthresh == 7 * MSS
    assert sent == [
        [(10, 11)], [(11, 12)], [(0, 1)], [], [], [(12, 13)], [(13, 14)], [(14, 15)], [(15, 16)],
    ]  # fmt: skip
    peer.send("A", 1, edge(12))
    assert (host.info(slot).recovery, host.info(slot).cwnd) == (0, 7 * MSS)


def test_reduction_when_almost_everything_is_lost(host: Host) -> None:
    """The slow start part, pipe far below ssthresh: two for one while una moves, none lost."""
    peer, slot = sender(host, 10)
    sack(peer, 0, (9, 10))
    host.advance(25 * MS + LATE)
    assert spans(peer.recv()) == [(0, 1)]  # 8 more are lost: no burst
    host.advance(RTT)
    sack(peer, 1, (9, 10))
    assert len(spans(peer.recv())) in (1, 2)
    assert host.info(slot).rto == 0
