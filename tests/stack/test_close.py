"""The end of a connection: half close, orphans, TIME_WAIT (RFC 9293 3.6, 1337, 6191, tcp(7))."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.stack.host import (
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    HERE,
    HOUR,
    HUP,
    LAST_ACK,
    LIKE_LINUX,
    LOCALHOST,
    MS,
    OPT_LINGER2,
    RX_EOF,
    THERE,
    TX_SHUT,
    Host,
    Peer,
    S,
)  # fmt: skip
from tests.stack.packet import Options

Make = Callable[..., Host]


def server(
    host: Host, options: Options | None = None, words: dict[int, int] | None = None
) -> tuple[Peer, int]:
    peer = Peer(host)
    slot = peer.open(host.listen(80, options=words), options)
    return peer, slot


def test_half_close_by_us(host: Host) -> None:
    """RFC 9293 3.6 case 1: after our FIN the peer may still send."""
    peer, slot = server(host)
    host.shutdown(slot)
    seg = peer.one()
    assert (seg.letters, seg.seq) == ("FA", 1)
    assert host.state(slot) == FIN_WAIT_1
    assert host.flags(slot) & TX_SHUT
    peer.send("A", 1, 2)
    assert host.state(slot) == FIN_WAIT_2
    for i in range(5):
        peer.send("A", 1 + i, 2, b"x")
    assert host.read(slot) == b"xxxxx"
    host.advance(HOUR)
    assert host.state(slot) == FIN_WAIT_2  # the application still has it
    peer.recv()
    peer.send("FA", 6, 2)
    assert peer.one().ack == 7
    assert host.flags(slot) & (RX_EOF | HUP) == RX_EOF | HUP
    assert host.time_waits == 1


def test_half_close_by_the_peer(host: Host) -> None:
    """Case 2."""
    peer, slot = server(host)
    peer.send("FA", 1, 1)
    peer.recv()
    assert host.state(slot) == CLOSE_WAIT
    assert host.flags(slot) & (RX_EOF | HUP) == RX_EOF
    host.write(slot, b"still talking")
    assert peer.one().data == b"still talking"
    peer.send("A", 2, 14)
    host.advance(HOUR)
    assert host.state(slot) == CLOSE_WAIT
    host.shutdown(slot)
    assert peer.one().letters == "FA"
    assert host.state(slot) == LAST_ACK
    peer.send("A", 2, 15)
    assert host.blocks == []
    assert host.time_waits == 0
    assert host.error(slot) == 0


def test_simultaneous_close(host: Host) -> None:
    """Case 3: FIN-WAIT-1, CLOSING, TIME-WAIT."""
    peer, slot = server(host)
    host.shutdown(slot)
    peer.recv()
    peer.send("FA", 1, 1)
    assert peer.one().ack == 2
    assert host.state(slot) == CLOSING
    peer.send("A", 2, 2)
    assert host.blocks == []
    assert host.time_waits == 1


def test_fin_that_acknowledges_ours(host: Host) -> None:
    peer, slot = server(host)
    host.shutdown(slot)
    peer.recv()
    peer.send("FA", 1, 2)
    assert peer.one().ack == 2
    assert host.time_waits == 1


def test_close_delivers_what_was_written(host: Host) -> None:
    """close() returns at once; the data goes out as windows allow, then the FIN."""
    peer, slot = server(host, Options(mss=1000))
    data = bytes(range(256)) * 200
    assert host.write(slot, data) == len(data)
    host.close(slot)
    got, end = b"", 0
    for _ in range(100):
        for seg in peer.recv():
            assert seg.seq == 1 + len(got)
            got += seg.data
            end = seg.seq + len(seg.data) + (seg.letters == "FA")
        peer.send("A", 1, end)
        if got == data:
            break
    assert got == data
    assert end == len(data) + 2
    assert host.blocks == [FIN_WAIT_2]


def test_shutdown_read_changes_nothing_on_the_wire(host: Host) -> None:
    peer, slot = server(host)
    host.shutdown(slot, 1)
    peer.none()
    peer.send("A", 1, 1, b"x")
    assert peer.one().ack == 2
    assert host.state(slot) == ESTABLISHED


def test_nothing_is_written_after_shutdown(host: Host) -> None:
    peer, slot = server(host)
    host.shutdown(slot)
    peer.recv()
    host.write(slot, b"too late")
    host.advance(S)
    assert all(s.data == b"" for s in peer.recv())


# ---- FIN-WAIT-2 of an orphan ----


@pytest.mark.parametrize(("linger2", "seconds"), [(0, 60), (6, 5), (1, 0)])
def test_orphan_in_fin_wait_2_ends_by_itself(host: Host, linger2: int, seconds: int) -> None:
    """tcp(7) tcp_fin_timeout, TCP_LINGER2 (stored + 1)."""
    peer, slot = server(host, words={OPT_LINGER2: linger2})
    host.close(slot)
    peer.send("A", 1, 2)
    if seconds:
        host.advance(seconds * S - 10 * MS)
        assert host.blocks == [FIN_WAIT_2]
    host.advance(20 * MS)
    assert host.blocks == []


def test_closing_in_fin_wait_2_starts_the_timeout(host: Host) -> None:
    peer, slot = server(host)
    host.shutdown(slot)
    peer.send("A", 1, 2)
    host.advance(HOUR)
    host.close(slot)
    assert host.blocks == [FIN_WAIT_2]
    host.advance(61 * S)
    assert host.blocks == []


def test_late_fin_for_an_orphan_goes_to_time_wait(host: Host) -> None:
    peer, slot = server(host)
    host.close(slot)
    peer.recv()
    peer.send("A", 1, 2)
    peer.send("FA", 1, 2)
    assert peer.one().ack == 2
    assert (host.blocks, host.time_waits) == ([], 1)


# ---- TIME-WAIT ----


def waiting(host: Host, options: Options | None = None, port: int = 80) -> tuple[Peer, int]:
    """A connection of ours in TIME-WAIT; returns the peer and the listener."""
    listener = host.listen(port)
    peer = Peer(host, port=port)
    slot = peer.open(listener, options)
    host.close(slot)
    peer.send("FA", 1, 2)
    peer.recv()
    assert (host.blocks, host.time_waits) == ([], 1)
    return peer, listener


def test_time_wait_lasts_as_configured(make: Make) -> None:
    host = make(time_wait_ms=5000)
    waiting(host)
    host.advance(5 * S - MS)
    assert host.time_waits == 1
    host.advance(2 * MS)
    assert host.time_waits == 0


def test_time_waits_end_in_turn(make: Make) -> None:
    host = make(time_wait_ms=5000)
    listener = host.listen(80)
    for i in range(10):
        peer = Peer(host, rport=100 + i)
        host.close(peer.open(listener))
        peer.send("FA", 1, 2)
        host.advance(S // 10)
    left = []
    host.advance(4 * S - 50 * MS)
    for _ in range(11):
        left.append(host.time_waits)
        host.advance(S // 10)
    assert left == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_retransmitted_fin_is_acknowledged_and_restarts_the_wait(make: Make) -> None:
    """RFC 9293 3.10.7.4 eighth: "restart the 2 MSL time-wait timeout"."""
    host = make(time_wait_ms=5000)
    peer, _ = waiting(host)
    host.advance(4 * S)
    peer.send("FA", 1, 2)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("A", 2, 2)
    host.advance(4 * S)
    assert host.time_waits == 1
    host.advance(1100 * MS)
    assert host.time_waits == 0


def test_no_assassination(host: Host) -> None:
    """RFC 1337: a RST does not end TIME-WAIT; old data is answered by an ACK."""
    peer, _ = waiting(host)
    for seq in (0, 1, 2, 3):
        peer.send("R", seq)
    peer.none()
    peer.send("A", 1, 2, b"old")
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("A", 2, 2)
    peer.send("R", 2)
    assert host.time_waits == 1


def test_ack_in_time_wait_is_not_answered(host: Host) -> None:
    """Else two ends in TIME-WAIT would answer each other for ever."""
    peer, _ = waiting(host)
    peer.send("A", 2, 2)
    peer.none()


def test_new_syn_with_a_greater_number_reopens(host: Host) -> None:
    """RFC 9293 3.10.7.4 (MAY-2), RFC 6191 without timestamps."""
    peer, listener = waiting(host)
    again = Peer(host, iss=peer.iss + 1000)
    assert again.open(listener) > 0
    assert host.time_waits == 0


@pytest.mark.parametrize("step", [0, 1, -1000, (1 << 31) + 3])
def test_syn_with_an_old_number_is_acknowledged(host: Host, step: int) -> None:
    peer, _ = waiting(host)
    host_iss = peer.host_iss
    again = Peer(host, iss=peer.iss + step, host_iss=0)
    again.send("S", 0)
    seg = again.one()
    assert seg.letters == "A"
    assert (seg.seq - host_iss) % 2**32 == 2
    assert host.time_waits == 1


def test_syn_with_a_newer_timestamp_reopens_whatever_its_number(host: Host) -> None:
    """RFC 6191 2."""
    peer, listener = waiting(host, LIKE_LINUX)
    host.advance(10 * MS)
    again = Peer(host, iss=peer.iss - 100000)
    assert again.open(listener, LIKE_LINUX) > 0
    assert host.time_waits == 0


def test_syn_with_an_older_timestamp_does_not(host: Host) -> None:
    peer, _ = waiting(host, LIKE_LINUX)
    again = Peer(host, iss=peer.iss + 100000)
    again.send("S", 0, ts=(peer.clock() - 5000, 0))
    assert again.one().letters == "A"
    assert host.time_waits == 1


def test_isn_of_a_reopened_tuple_is_beyond_the_old_one(host: Host) -> None:
    """RFC 6528: same tuple, later clock."""
    peer, listener = waiting(host)
    host.advance(S)
    again = Peer(host, iss=peer.iss + 1000)
    again.open(listener)
    assert 0 < (again.host_iss - peer.host_iss) % 2**32 < 1 << 31


def called(host: Host, timestamps: bool) -> Peer:
    """A connection that the host opened and closed first, now in TIME-WAIT."""
    peer = Peer(host)
    slot = peer.accept(syn=LIKE_LINUX if timestamps else Options(mss=1460))
    host.close(slot)
    peer.send("FA", 1, 2)
    peer.recv()
    assert host.time_waits == 1
    return peer


def test_connect_reuses_time_wait_after_a_second_with_timestamps(host: Host) -> None:
    """RFC 6191, Linux tcp_tw_reuse."""
    peer = called(host, timestamps=True)
    assert host.connect(THERE, peer.rport, lport=peer.port) == -errno.EADDRNOTAVAIL
    host.advance(1100 * MS)
    assert host.connect(THERE, peer.rport, lport=peer.port) > 0
    assert host.time_waits == 0


def test_connect_does_not_reuse_time_wait_without_timestamps(host: Host) -> None:
    peer = called(host, timestamps=False)
    host.advance(30 * S)
    assert host.connect(THERE, peer.rport, lport=peer.port) == -errno.EADDRNOTAVAIL
    host.advance(31 * S)
    assert host.connect(THERE, peer.rport, lport=peer.port) > 0


def test_timestamps_of_a_reused_tuple_go_on(host: Host) -> None:
    """RFC 7323 5.8: or the peer's PAWS would drop the new connection."""
    peer = called(host, timestamps=True)
    host.advance(2 * S)
    first = Peer(host, rport=peer.rport)
    host.connect(THERE, peer.rport, lport=peer.port)
    syn = first.host.segments()[-1]
    old = host.lib.host_isn(host.h, HERE, peer.port, THERE, peer.rport)
    assert syn.options.ts is not None
    assert syn.seq == old


def test_full_time_wait_table_gives_up_the_oldest(make: Make) -> None:
    """1024 slots at least; then the one that has waited longest goes."""
    host = make(connections=64)
    listener = host.listen(80)
    for i in range(1030):
        peer = Peer(host, rport=100 + i)
        host.close(peer.open(listener))
        peer.send("FA", 1, 2)
        peer.recv()
    assert host.time_waits == 1024
    assert host.blocks == []
    newest = Peer(host, rport=100 + 1029, host_iss=0)
    newest.send("FA", 1, 2)
    assert newest.one().letters == "A"


def test_no_time_wait_when_configured_away(make: Make) -> None:
    host = make(time_wait_ms=0)
    peer, slot = server(host)
    host.close(slot)
    peer.recv()
    peer.send("FA", 1, 2)
    assert peer.one().ack == 2
    assert (host.blocks, host.time_waits) == ([], 0)


# ---- lo: both ends here ----


@pytest.mark.parametrize("first", [0, 1])
def test_local_connections_leave_nothing_behind(host: Host, first: int) -> None:
    """Contract L7: no TIME-WAIT between ends that are both closed and both here."""
    ends = host.pair()
    host.write(ends[0], b"x" * 5000)
    host.read(ends[1])
    host.close(ends[first])
    host.close(ends[1 - first])
    assert (host.blocks, host.time_waits) == ([], 0)


def test_many_local_connections_from_one_port(host: Host) -> None:
    """The tuple is free at once."""
    listener = host.listen(80)
    for _ in range(20):
        client = host.connect(LOCALHOST, 80, lport=4000)
        assert client > 0
        end = host.accept(listener)
        host.close(client)
        host.close(end)
    assert (host.blocks, host.time_waits) == ([], 0)


def test_local_time_wait_while_the_other_end_is_open(host: Host) -> None:
    client, end = host.pair()
    host.close(client)
    assert sorted(host.blocks) == [FIN_WAIT_2, CLOSE_WAIT]
    host.write(end, b"nobody reads this")
    assert host.error(end) == errno.EPIPE
    host.close(end)
    host.advance(30 * MS)  # the writer's block waits for the queue of lo to forget its ring
    assert (host.blocks, host.time_waits) == ([], 0)


def test_unread_local_data_resets_the_writer(host: Host) -> None:
    client, end = host.pair()
    host.write(client, b"x")
    host.close(end)
    assert host.error(client) == errno.ECONNRESET
    host.close(client)
    assert (host.blocks, host.time_waits) == ([], 0)


def test_half_close_on_lo(host: Host) -> None:
    client, end = host.pair()
    host.shutdown(client)
    assert host.flags(end) & RX_EOF
    host.write(end, b"answer")
    assert host.read(client) == b"answer"
    host.close(end)
    assert host.flags(client) & (RX_EOF | HUP) == RX_EOF | HUP
    host.close(client)
    assert (host.blocks, host.time_waits) == ([], 0)


def test_abort_with_local_data_on_its_way(host: Host) -> None:
    """The ring stays until the queue of lo no longer refers to it."""
    client, end = host.pair()
    host.write(client, bytes(65536))
    assert host.readable(end) > 0
    host.write(client, bytes(host.room(client)))
    host.abort(client)
    host.abort(end)
    host.close(client)
    host.close(end)
    host.advance(S)
    assert (host.blocks, host.time_waits) == ([], 0)
