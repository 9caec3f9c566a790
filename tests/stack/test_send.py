"""The sender without loss: Nagle, CORK, windows, probes, cwnd (RFC 9293, 5681, 9438)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.stack.host import (
    CONNECTED,
    CORK,
    HOUR,
    KEEPALIVE,
    MORE,
    MS,
    NODELAY,
    OPT_CONGESTION,
    OPT_FLAGS,
    OPT_KEEPCNT,
    OPT_KEEPIDLE,
    OPT_KEEPINTVL,
    OPT_RCVBUF,
    OPT_SNDBUF,
    OPT_USER_TIMEOUT,
    PUSHES,
    WRITABLE,
    Host,
    Peer,
    S,
)  # fmt: skip
from tests.stack.packet import Options, Segment

Make = Callable[..., Host]
MSS = 1000
PLAIN = Options(mss=MSS)


def server(host: Host, words: dict[int, int] | None = None, *, rtt_us: int = 100 * MS,
           options: Options = PLAIN, window: int = 65535) -> tuple[Peer, int]:  # fmt: skip
    """Accepted connection; with the default RTT its RTO is 300 ms (RFC 6298 2.2)."""
    listener = host.listen(80, options=words)
    peer = Peer(host, window=window)
    peer.syn(options)
    host.advance(rtt_us)
    peer.send("A", 1, 1)
    return peer, host.accept(listener)


def sizes(got: list[Segment]) -> list[int]:
    return [len(s.data) for s in got]


# ---- Nagle: RFC 9293 3.7.4, Minshall's variant as in Linux ----


def test_first_small_segment_goes_out_at_once(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, b"a")
    seg = peer.one()
    assert (seg.data, seg.push) == (b"a", True)


def test_second_small_segment_waits_for_the_ack(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, b"a")
    peer.recv()
    host.write(slot, b"b")
    host.write(slot, b"c")
    peer.none()
    peer.send("A", 1, 2)
    assert peer.one().data == b"bc"


def test_full_segments_do_not_wait(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, b"a")
    peer.recv()
    host.write(slot, bytes(2 * MSS + 1))
    assert sizes(peer.recv()) == [MSS, MSS]
    peer.send("A", 1, 2)
    assert sizes(peer.recv()) == [1]


def test_tail_of_a_large_write_does_not_wait_for_full_segments(host: Host) -> None:
    """Minshall: only an unacknowledged small segment holds the next small one."""
    peer, slot = server(host)
    host.write(slot, bytes(2 * MSS + 1))
    assert sizes(peer.recv()) == [MSS, MSS, 1]


def test_nodelay_sends_everything(host: Host) -> None:
    peer, slot = server(host, {OPT_FLAGS: NODELAY})
    for _ in range(5):
        host.write(slot, b"x")
    assert sizes(peer.recv()) == [1] * 5


def test_setting_nodelay_flushes(host: Host) -> None:
    """tcp(7): "setting this option forces an explicit flush of pending output"."""
    peer, slot = server(host)
    host.write(slot, b"a")
    host.write(slot, b"b")
    peer.recv()
    host.option(slot, OPT_FLAGS, NODELAY)
    assert peer.one().data == b"b"


def test_half_of_the_largest_window_does_not_wait(host: Host) -> None:
    """RFC 9293 3.8.6.2.1 (3): on lo a segment of full size may be more than ever fits a window."""
    peer, slot = server(host, window=800)
    host.write(slot, b"a")
    peer.recv()
    host.write(slot, bytes(399))
    peer.none()
    host.write(slot, bytes(1))
    assert sizes(peer.recv()) == [400]


@pytest.mark.parametrize("flag", [CORK, MORE], ids=["CORK", "MORE"])
def test_setting_nodelay_flushes_what_cork_holds(host: Host, flag: int) -> None:
    """tcp(7): "setting this option forces an explicit flush of pending output, even if TCP_CORK is
    currently set"; of what is pending then, once for each call."""
    peer, slot = server(host)
    host.option(slot, OPT_FLAGS, flag)
    for times in (1, 2):
        host.write(slot, b"held")
        peer.none()
        host.option(slot, OPT_FLAGS, flag | NODELAY | times * PUSHES)
        assert peer.one().data == b"held"
    host.option(slot, OPT_FLAGS, flag | NODELAY | 3 * PUSHES)
    host.write(slot, b"nothing was pending")
    peer.none()


def test_a_flush_is_of_all_that_is_queued(host: Host) -> None:
    """The window lets go of the held tail later."""
    peer, slot = server(host, window=2 * MSS)
    host.option(slot, OPT_FLAGS, CORK)
    host.write(slot, bytes(3 * MSS + 5))
    assert sizes(peer.recv()) == [MSS, MSS]
    host.option(slot, OPT_FLAGS, CORK | PUSHES)
    peer.send("A", 1, 1 + 2 * MSS)
    assert sizes(peer.recv()) == [MSS, 5]
    host.write(slot, b"held")
    peer.none()


def test_nagle_is_for_networks(host: Host) -> None:
    """On lo the ACK that it waits for may be 40 ms late."""
    client, slot = host.pair()
    host.write(client, b"ask")
    host.write(slot, b"answer: it is a conversation now")
    host.read(slot)
    host.read(client)
    host.write(client, b"request of ")
    host.write(client, b"two writes")
    assert host.read(slot) == b"request of two writes"


def test_small_window_is_used_at_once_on_lo(host: Host) -> None:
    """SO_RCVBUF made it smaller than half of the largest: no probe, 200 ms late, for each piece."""
    client, slot = host.pair()
    host.option(slot, OPT_RCVBUF, 8192)
    start = host.now
    left = got = 400_000
    while got:
        left -= host.write(client, bytes(left))
        got -= len(piece := host.read(slot))
        assert piece, f"nothing comes, {got} are left"
    assert host.now == start


@pytest.mark.parametrize("flags", [0, CORK])
def test_what_fills_the_send_buffer_does_not_wait(host: Host, flags: int) -> None:
    """A writer that waits for room (a third of the buffer) cannot make the segment any fuller."""
    peer, slot = server(host, {OPT_SNDBUF: 4096, OPT_FLAGS: flags}, options=Options(mss=1460))
    if not flags:
        host.write(slot, b"a")
        assert peer.one().data == b"a"
    host.write(slot, bytes(1300))
    peer.none()
    host.write(slot, bytes(66))
    assert sizes(peer.recv()) == [1366]


def test_fin_takes_the_held_tail_along(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, b"a")
    host.write(slot, b"b")
    peer.recv()
    host.shutdown(slot)
    seg = peer.one()
    assert (seg.letters, seg.data) == ("FA", b"b")


@pytest.mark.parametrize("flag", [CORK, MORE, CORK | NODELAY], ids=["CORK", "MORE", "CORK+NODELAY"])
def test_cork_holds_the_tail_for_200_ms(host: Host, flag: int) -> None:
    """tcp(7) TCP_CORK: "a 200 millisecond ceiling on the time for which output is corked"."""
    peer, slot = server(host)
    host.option(slot, OPT_FLAGS, flag)
    start = host.now
    host.write(slot, bytes(MSS + 5))
    assert sizes(peer.recv()) == [MSS]
    host.advance(S // 4)
    (seg,) = (s for s in peer.recv() if len(s.data) == 5)
    assert 200 * MS <= seg.at - start <= 201 * MS


def test_uncork_sends_the_tail(host: Host) -> None:
    peer, slot = server(host)
    host.option(slot, OPT_FLAGS, CORK)
    host.write(slot, b"head")
    host.write(slot, b"body")
    peer.none()
    host.option(slot, OPT_FLAGS, 0)
    assert peer.one().data == b"headbody"


def test_large_writes_are_cut_into_full_segments(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, bytes(10 * MSS))
    got = peer.recv()
    assert sizes(got) == [MSS] * 10
    assert [s.push for s in got] == [False] * 9 + [True]


# ---- window ----


def test_window_is_never_exceeded(host: Host) -> None:
    peer, slot = server(host, window=3500)
    host.write(slot, bytes(20 * MSS))
    assert sum(sizes(peer.recv())) == 3000
    peer.send("A", 1, 1 + 3000)
    assert sum(sizes(peer.recv())) == 3000


def test_piece_of_half_the_largest_window_is_worth_sending(host: Host) -> None:
    """RFC 9293 3.8.6.2.1 (3) with Fs = 1/2: a peer whose buffer is smaller than a segment."""
    peer, slot = server(host, window=600)
    host.write(slot, bytes(5 * MSS))
    assert sizes(peer.recv()) == [600]
    peer.send("A", 1, 601, window=300)
    assert sizes(peer.recv()) == [300]
    peer.send("A", 1, 901, window=299)
    peer.none()


def test_shrunk_window_is_survived(host: Host) -> None:
    """RFC 9293 3.8.6 (SHLD-15 to 17): no new data; what is out may be retransmitted."""
    peer, slot = server(host)
    host.write(slot, bytes(5 * MSS))
    peer.recv()
    peer.send("A", 1, 1 + MSS, window=1000)
    host.write(slot, bytes(5 * MSS))
    peer.none()
    host.advance(2 * S)
    assert {s.seq for s in peer.recv()} == {1 + MSS}
    peer.send("A", 1, 1 + 5 * MSS)
    assert host.info(slot).snd_una == 1 + 5 * MSS
    assert sum(sizes(peer.recv())) > 0


def test_old_segment_does_not_change_the_window(host: Host) -> None:
    """RFC 9293 3.10.7.4: SND.WL1, SND.WL2."""
    peer, slot = server(host, window=2000)
    peer.send("A", 1, 1, b"new", window=2000)
    peer.send("A", 1, 1, b"", window=65535)  # older sequence number, arrived late
    host.write(slot, bytes(10 * MSS))
    assert sum(sizes(peer.recv())) == 2000


# ---- shut window: RFC 9293 3.8.6.1 ----


def test_shut_window_is_probed_with_back_off(host: Host) -> None:
    """First after RTO, then exponentially; the probe is an old number, so it must be answered."""
    peer, slot = server(host, window=0)
    start = host.now
    host.write(slot, b"waiting")
    peer.none()
    at = []
    for i in range(6):
        host.advance(300 * MS * 2**i + 2 * MS)
        seg = peer.one()
        assert (seg.letters, seg.seq, seg.data) == ("A", 0, b"")
        at.append(seg.at)
        peer.send("A", 1, 1, window=0)
    gaps = [b - a for a, b in zip([start, *at[:-1]], at, strict=True)]
    for i, gap in enumerate(gaps):
        assert 300 * MS * 2**i <= gap <= 300 * MS * 2**i + 3 * MS
    peer.send("A", 1, 1, window=1000)
    assert peer.one().data == b"waiting"


def test_answered_probes_never_time_out(host: Host) -> None:
    """RFC 9293 3.8.6.1 (MUST-37): as long as the peer answers, the connection stays."""
    peer, slot = server(host, window=0)
    host.write(slot, b"waiting")
    for _ in range(60):
        host.advance(125 * S)
        assert peer.recv()
        peer.send("A", 1, 1, window=0)
    assert host.flags(slot) & CONNECTED
    assert host.error(slot) == 0


def test_unanswered_probes_time_out(host: Host) -> None:
    peer, slot = server(host, window=0)
    host.write(slot, b"waiting")
    host.advance(HOUR)
    assert host.error(slot) == errno.ETIMEDOUT
    assert peer.recv()[-1].letters == "RA"


def test_orphan_with_a_shut_window_is_not_kept_alive(host: Host) -> None:
    """Sockstress (CVE-2008-4609): a peer must not hold memory of a closed socket for ever."""
    peer, slot = server(host, window=0)
    host.write(slot, b"waiting")
    host.close(slot)
    for _ in range(400):
        host.advance(S)
        if peer.recv():
            peer.send("A", 1, 1, window=0)
    assert host.blocks == []


def test_probe_finds_a_window_whose_update_was_lost(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, bytes(MSS))
    peer.recv()
    peer.send("A", 1, 1 + MSS, window=0)
    host.write(slot, b"more")
    host.advance(2 * S)
    assert {s.seq for s in peer.recv()} == {MSS}
    peer.send("A", 1, 1 + MSS, window=5000)
    assert peer.one().data == b"more"


def test_segment_sent_after_a_shut_window_is_retransmitted(host: Host) -> None:
    """The window opens on a data segment (predicted path): the persist timer must become RTO."""
    peer, slot = server(host, window=0)
    host.write(slot, b"waiting")
    peer.none()
    peer.send("A", 1, 1, b"text", window=5000)
    assert peer.one().data == b"waiting"
    host.advance(2 * S)  # it was lost
    again = peer.recv()
    assert again
    assert {(s.seq, s.data) for s in again} == {(1, b"waiting")}


def test_small_window_is_used_in_the_end(host: Host) -> None:
    """RFC 9293 3.8.6.2.1 (4): the override timeout; else both ends wait for each other."""
    peer, slot = server(host)
    host.write(slot, bytes(10 * MSS))
    peer.recv()
    peer.send("A", 1, 1 + 10 * MSS, window=500)
    host.write(slot, bytes(5 * MSS))
    peer.none()
    host.advance(int(host.info(slot).rto_us) + MS)
    seg = peer.one()
    assert (len(seg.data), seg.seq) == (500, 1 + 10 * MSS)
    peer.send("A", 1, 1 + 10 * MSS + 500, window=5000)
    assert sum(sizes(peer.recv())) == 4500


def test_user_timeout_ends_a_shut_window(host: Host) -> None:
    """tcp(7) TCP_USER_TIMEOUT."""
    peer, slot = server(host, {OPT_USER_TIMEOUT: 3000}, window=0)
    host.write(slot, b"waiting")
    host.advance(20 * S)
    assert host.error(slot) == errno.ETIMEDOUT


def test_user_timeout_does_not_hurry_an_orphan(host: Host) -> None:
    """A long one: the orphan is probed as often as any other, then it ends."""
    peer, slot = server(host, {OPT_USER_TIMEOUT: 24 * 3600 * 1000}, window=0)
    host.write(slot, b"waiting")
    host.close(slot)
    host.advance(5 * S)
    assert len(peer.recv()) >= 4
    assert len(host.blocks) == 1
    host.advance(HOUR)
    assert host.blocks == []


# ---- keepalive: RFC 9293 3.8.4, tcp(7) ----


def alive(host: Host, **more: int) -> tuple[Peer, int]:
    return server(host, {OPT_FLAGS: KEEPALIVE, OPT_KEEPIDLE: 10, OPT_KEEPINTVL: 2, OPT_KEEPCNT: 3})


def test_keepalive_probes_and_gives_up(host: Host) -> None:
    peer, slot = alive(host)
    start = host.now
    host.advance(30 * S)
    got = peer.recv()
    assert [s.letters for s in got] == ["A", "A", "A", "RA"]
    assert [(s.at - start) // S for s in got] == [10, 12, 14, 16]
    assert {(s.seq, s.data) for s in got[:3]} == {(0, b"")}
    assert host.error(slot) == errno.ETIMEDOUT


def test_answered_keepalive_starts_again(host: Host) -> None:
    peer, slot = alive(host)
    for _ in range(10):
        host.advance(10 * S + 2 * MS)
        assert peer.one().seq == 0
        peer.send("A", 1, 1)
    assert host.error(slot) == 0


def test_traffic_puts_keepalive_off(host: Host) -> None:
    peer, slot = alive(host)
    for i in range(20):
        host.advance(9 * S)
        assert all(s.seq == 1 for s in peer.recv())
        peer.send("A", 1 + i, 1, b"x")
    assert host.read(slot) == b"x" * 20


def test_keepalive_is_off_by_default(host: Host) -> None:
    peer, slot = server(host)
    host.advance(100 * HOUR)
    peer.none()
    assert host.flags(slot) & CONNECTED


def test_keepalive_switched_on_later(host: Host) -> None:
    peer, slot = server(host)
    host.option(slot, OPT_KEEPIDLE, 5)
    host.option(slot, OPT_FLAGS, KEEPALIVE)
    host.advance(6 * S)
    assert peer.one().seq == 0


def test_keepalive_probe_of_the_peer_is_answered(host: Host) -> None:
    """RFC 9293 3.8.4: SEG.SEQ = SND.NXT - 1, with or without a byte of rubbish."""
    peer, slot = server(host)
    for rubbish in (b"", b"\0"):
        peer.send("A", 0, 1, rubbish)
        seg = peer.one()
        assert (seg.letters, seg.ack) == ("A", 1)
    assert host.readable(slot) == 0


# ---- congestion window ----


@pytest.mark.parametrize(
    ("mss", "segments"),
    [(500, 10), (1000, 10), (1460, 10), (536, 10)],
)
def test_initial_window(host: Host, mss: int, segments: int) -> None:
    """RFC 6928 2: min(10 * MSS, max(2 * MSS, 14600))."""
    peer, slot = server(host, options=Options(mss=mss))
    host.write(slot, bytes(30000))
    assert len(peer.recv()) == segments


def test_slow_start_doubles(host: Host) -> None:
    peer, slot = server(host)
    host.write(slot, bytes(65536))
    sent = len(peer.recv())
    peer.send("A", 1, 1 + sent * MSS)
    assert len(peer.recv()) == 2 * sent


def test_congestion_avoidance_of_reno_adds_one_segment_per_window(host: Host) -> None:
    """RFC 5681 3.1 equation 3."""
    peer, slot = server(host, {OPT_CONGESTION: 1})
    host.write(slot, bytes(65536))
    peer.recv()
    for _ in range(3):
        peer.send("A", 1, 1)
    una = int(host.info(slot).snd_nxt)
    assert una == 1 + 12 * MSS  # limited transmit sent two more
    peer.send("A", 1, una)  # recovery over: cwnd = ssthresh = 6
    peer.recv()
    windows = [int(host.info(slot).cwnd) // MSS]
    for _ in range(6):
        host.write(slot, bytes(host.room(slot)))
        una = int(host.info(slot).snd_nxt)
        host.advance(100 * MS)
        peer.send("A", 1, una)
        peer.recv()
        windows.append(int(host.info(slot).cwnd) // MSS)
    assert windows == [6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("part", [0.25, 0.5, 1.0, 1.5])
def test_cubic_follows_its_curve(host: Host, part: float) -> None:
    """RFC 9438 4.2: W(t) = C * (t - K)^3 + W_max, C = 0.4, K = cubic_root(W_max * 0.3 / C)."""
    peer, slot = server(host, options=Options(mss=MSS, wscale=4))
    for _ in range(5):  # slow start to 320 segments
        host.write(slot, bytes(host.room(slot)))
        host.advance(100 * MS)
        peer.recv()
        peer.send("A", 1, int(host.info(slot).snd_nxt))
    host.write(slot, bytes(host.room(slot)))
    peer.recv()
    for _ in range(3):
        peer.send("A", 1, int(host.info(slot).snd_una))
    w_max = int(host.info(slot).snd_nxt - host.info(slot).snd_una) / MSS
    peer.send("A", 1, int(host.info(slot).snd_nxt))
    assert host.info(slot).cwnd / MSS == pytest.approx(0.7 * w_max, abs=2)
    start, k = host.now, (w_max * 0.3 / 0.4) ** (1 / 3)
    while host.now - start < part * k * S:
        host.write(slot, bytes(host.room(slot)))
        host.advance(100 * MS)
        peer.recv()
        peer.send("A", 1, int(host.info(slot).snd_nxt))
    t = (host.now - start) / S
    assert host.info(slot).cwnd / MSS == pytest.approx(0.4 * (t - k) ** 3 + w_max, rel=0.03)


def test_window_does_not_grow_while_it_is_not_used(host: Host) -> None:
    """RFC 7661 4: an application-limited sender learns nothing about the path."""
    peer, slot = server(host, {OPT_FLAGS: NODELAY})
    for i in range(100):
        host.write(slot, b"x")
        peer.send("A", 1, 2 + i)
    assert host.info(slot).cwnd == 10 * MSS


def test_idle_connection_starts_from_the_initial_window(host: Host) -> None:
    """RFC 5681 4.1: no transmission for an RTO."""
    peer, slot = server(host)
    for _ in range(4):
        host.write(slot, bytes(host.room(slot)))
        peer.recv()
        peer.send("A", 1, int(host.info(slot).snd_nxt))
    peer.recv()
    peer.send("A", 1, int(host.info(slot).snd_nxt))
    assert host.info(slot).cwnd > 20 * MSS
    host.advance(10 * S)
    host.write(slot, bytes(40 * MSS))
    assert len(peer.recv()) == 10


def test_writer_is_told_of_room(host: Host) -> None:
    """SOCK_WRITABLE is due when much was acknowledged."""
    peer, slot = server(host)
    host.write(slot, bytes(host.room(slot)))
    assert host.room(slot) == 0
    host.info(slot)
    for _ in range(20):
        peer.recv()
        peer.send("A", 1, int(host.info(slot).snd_nxt))
        info = host.info(slot)
        if info.snd_una - 1 == 65536:
            break
    assert host.room(slot) >= 65536


def test_writer_is_told_of_a_larger_buffer(host: Host) -> None:
    """socket(7), SO_SNDBUF: Linux wakes whoever waits for room (sock_setsockopt)."""
    _, slot = server(host, {OPT_SNDBUF: 2 * 4096})
    host.write(slot, bytes(4096))
    assert host.room(slot) == 0
    host.info(slot)
    host.option(slot, OPT_SNDBUF, 2 * 16384)
    assert host.room(slot) == 12288
    assert host.info(slot).notified & WRITABLE
    host.option(slot, OPT_SNDBUF, 2 * 8192)
    assert not host.info(slot).notified & WRITABLE
