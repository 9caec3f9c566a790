"""Resets and what is answered by a challenge (RFC 9293 3.10.7, RFC 5961)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.stack.host import (
    CLOSE_WAIT,
    DEAD,
    ERROR,
    ESTABLISHED,
    FIN_WAIT_2,
    HERE,
    HUP,
    LIKE_LINUX,
    LINGER,
    MS,
    OPT_FLAGS,
    OPT_LINGER,
    RX_EOF,
    THERE,
    Host,
    Peer,
    S,
)  # fmt: skip
from tests.stack.packet import Options

Make = Callable[..., Host]


def connected(host: Host, options: Options | None = None) -> tuple[Peer, int]:
    peer = Peer(host)
    slot = peer.open(host.listen(80), options)
    return peer, slot


def is_challenge(peer: Peer, seq: int, ack: int) -> bool:
    got = peer.one()
    return (got.letters, got.seq, got.ack, got.data) == ("A", seq, ack, b"")


# ---- no connection: 3.10.7.1 ----


@pytest.mark.parametrize(
    ("letters", "ack", "data", "want"),
    [
        pytest.param("S", None, b"", ("RA", 0, 1), id="SYN: ack is seq + 1"),
        pytest.param("S", None, b"abc", ("RA", 0, 4), id="SYN with text"),
        pytest.param("F", None, b"abc", ("RA", 0, 4), id="FIN with text, no ACK"),
        pytest.param("A", 77, b"", ("R", 77, 0), id="ACK: seq is its ack"),
        pytest.param("PA", 77, b"abc", ("R", 77, 0), id="text"),
        pytest.param("FA", 77, b"", ("R", 77, 0), id="FIN"),
        pytest.param("SA", 77, b"", ("R", 77, 0), id="SYN-ACK"),
    ],
)
def test_segment_for_nobody_is_reset(
    host: Host, letters: str, ack: int | None, data: bytes, want: tuple[str, int, int]
) -> None:
    peer = Peer(host, port=81)
    peer.send(letters, 0, ack, data)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == want
    assert host.drops() == {"TCP_NO_SOCKET": 1}


def test_reset_for_nobody_is_not_answered(host: Host) -> None:
    peer = Peer(host, port=81)
    peer.send("R", 0)
    peer.send("RA", 0, 1)
    peer.none()


def test_resets_are_bounded_per_second(host: Host) -> None:
    """A scan must not make us an amplifier; RFC 5961 7 for the kind of limit."""
    for i in range(2000):
        Peer(host, port=81, rport=1 + i).send("S", 0)
    sent = len(host.packets())
    assert 500 <= sent < 1500
    host.advance(S)
    Peer(host, port=81).send("S", 0)
    assert len(host.packets()) == 1


# ---- LISTEN: 3.10.7.2 ----


def test_ack_to_a_listener_is_reset(host: Host) -> None:
    host.listen(80)
    peer = Peer(host)
    for letters in ("A", "SA", "FA"):
        peer.send(letters, 5, 1234, b"")
        seg = peer.one()
        assert (seg.letters, seg.seq) == ("R", 1234)


def test_reset_to_a_listener_is_ignored(host: Host) -> None:
    host.listen(80)
    peer = Peer(host)
    peer.send("R", 0)
    peer.send("RA", 0, 1)
    peer.none()


# ---- SYN-SENT: 3.10.7.3 ----


def calling(host: Host) -> tuple[Peer, int]:
    host.learn(THERE)
    peer = Peer(host)
    slot = host.connect(THERE, peer.rport)
    (syn,) = host.segments()
    peer.port, peer.host_iss = syn.sport, syn.seq
    return peer, slot


@pytest.mark.parametrize("letters", ["A", "SA", "FA"])
@pytest.mark.parametrize("ack", [0, 2, 1 << 30])
def test_unacceptable_ack_while_calling_is_reset(host: Host, letters: str, ack: int) -> None:
    peer, slot = calling(host)
    peer.send(letters, 0, ack)
    seg = peer.one()
    assert (seg.letters, seg.seq) == ("R", ack)
    peer.send("SA", 0, 1)
    assert host.state(slot) == ESTABLISHED


def test_refused(host: Host) -> None:
    peer, slot = calling(host)
    peer.send("RA", 0, 1)
    peer.none()
    assert host.error(slot) == errno.ECONNREFUSED
    assert host.flags(slot) & (ERROR | HUP | DEAD) == ERROR | HUP | DEAD
    assert host.blocks == []


@pytest.mark.parametrize(("letters", "ack"), [("R", None), ("RA", 0), ("RA", 2), ("RA", 1 << 31)])
def test_reset_that_acknowledges_nothing_of_ours_is_ignored(
    host: Host, letters: str, ack: int | None
) -> None:
    peer, slot = calling(host)
    peer.send(letters, 0, ack)
    peer.none()
    peer.send("SA", 0, 1)
    assert host.state(slot) == ESTABLISHED


def test_ack_without_syn_while_calling_is_ignored(host: Host) -> None:
    """Fifth step: neither SYN nor RST: drop."""
    peer, slot = calling(host)
    peer.send("A", 0, 1)
    peer.none()
    peer.send("SA", 0, 1)
    assert host.state(slot) == ESTABLISHED


def test_refused_on_lo(host: Host) -> None:
    slot = host.connect(0x7F000001, 80)
    assert host.error(slot) == errno.ECONNREFUSED


# ---- SYN-RECEIVED ----


def test_reset_of_a_half_open_connection(host: Host) -> None:
    """Passive open: back to LISTEN (RFC 9293 3.10.7.4 second); only at RCV.NXT (RFC 5961 3.2)."""
    listener = host.listen(80)
    peer = Peer(host)
    peer.syn()
    for wrong in (0, 2, 65536, 1 << 31):
        peer.send("R", wrong)
        assert host.info(listener).half_open == 1
    peer.recv()
    peer.send("R", 1)
    peer.none()
    assert host.info(listener).half_open == 0
    peer.syn()
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


def test_another_syn_on_a_half_open_connection_does_not_replace_it(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    first = peer.syn()
    peer.send("S", 1000)
    answer = peer.one()
    assert (answer.letters, answer.seq, answer.ack) == ("SA", first.seq, 1)
    peer.send("A", 1, 1)
    assert host.accept(listener) > 0


# ---- synchronised: RFC 5961 3.2 ----


def test_reset_at_the_expected_number(host: Host) -> None:
    peer, slot = connected(host)
    peer.send("R", 1)
    peer.none()
    assert host.error(slot) == errno.ECONNRESET
    assert host.flags(slot) & (RX_EOF | HUP | DEAD) == RX_EOF | HUP | DEAD
    assert host.blocks == []


@pytest.mark.parametrize("seq", [2, 100, 65535])
def test_reset_elsewhere_in_the_window_is_challenged(host: Host, seq: int) -> None:
    peer, slot = connected(host)
    peer.send("R", seq)
    assert is_challenge(peer, 1, 1)
    assert host.state(slot) == ESTABLISHED
    peer.send("R", 1)  # what a peer that really lost the connection answers
    assert host.error(slot) == errno.ECONNRESET


@pytest.mark.parametrize("seq", [0, -1000, 65538, 1 << 31])
def test_reset_outside_the_window_is_ignored(host: Host, seq: int) -> None:
    peer, slot = connected(host)
    peer.send("R", seq)
    peer.none()
    assert host.state(slot) == ESTABLISHED


@pytest.mark.parametrize("letters", ["S", "SA"])
@pytest.mark.parametrize("seq", [0, 1, 100, -5000, 1 << 30])
def test_syn_is_challenged_wherever_it_is(host: Host, letters: str, seq: int) -> None:
    """RFC 5961 4.2."""
    peer, slot = connected(host)
    peer.send(letters, seq, 1 if "A" in letters else None)
    assert is_challenge(peer, 1, 1)
    assert host.state(slot) == ESTABLISHED


@pytest.mark.parametrize("ack", [2, 1000, -70000, 1 << 31])
def test_ack_out_of_range_is_challenged(host: Host, ack: int) -> None:
    """RFC 5961 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT; else the text is not taken."""
    peer, slot = connected(host)
    peer.send("A", 1, ack, b"injected")
    assert is_challenge(peer, 1, 1)
    assert host.readable(slot) == 0


def test_old_ack_in_range_is_harmless(host: Host) -> None:
    peer, slot = connected(host)
    host.write(slot, bytes(100))
    peer.recv()
    peer.send("A", 1, 101)
    peer.send("A", 1, 51, b"text")
    assert host.read(slot) == b"text"
    assert host.info(slot).snd_una == 101


def test_challenges_of_one_connection_are_bounded(host: Host) -> None:
    """RFC 5961 7: one in 500 ms here."""
    peer, _ = connected(host)
    for i in range(10):
        peer.send("R", 100 + i)
    assert len(peer.recv()) == 1
    host.advance(499 * MS)
    peer.send("R", 100)
    peer.none()
    host.advance(MS)
    peer.send("R", 100)
    assert len(peer.recv()) == 1


def test_segment_without_ack_is_dropped(host: Host) -> None:
    """3.10.7.4 fifth: "if the ACK bit is off, drop the segment"."""
    peer, slot = connected(host)
    peer.send("", 1, None, b"text")
    peer.send("F", 1)
    peer.none()
    assert host.readable(slot) == 0
    assert host.state(slot) == ESTABLISHED


def test_reset_in_close_wait_is_epipe(host: Host) -> None:
    """Linux tcp_reset()."""
    peer, slot = connected(host)
    peer.send("FA", 1, 1)
    peer.recv()
    assert host.state(slot) == CLOSE_WAIT
    peer.send("R", 2)
    assert host.error(slot) == errno.EPIPE


def test_what_was_received_before_a_reset_stays_readable(host: Host) -> None:
    peer, slot = connected(host)
    peer.send("A", 1, 1, b"last words")
    peer.send("R", 11)
    assert host.error(slot) == errno.ECONNRESET
    assert host.read(slot) == b"last words"


def test_reset_with_an_old_timestamp_counts(host: Host) -> None:
    """RFC 7323 5.2: PAWS does not apply to RST."""
    peer, slot = connected(host, LIKE_LINUX)
    peer.send("R", 1, ts=(peer.clock() - 1000, 0))
    assert host.error(slot) == errno.ECONNRESET


# ---- resets of ours ----


def test_close_with_unread_data_resets(host: Host) -> None:
    """RFC 1122 4.2.2.13, RFC 2525 2.17."""
    peer, slot = connected(host)
    peer.send("A", 1, 1, b"unread")
    peer.recv()
    host.close(slot)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("RA", 1, 7)
    assert host.blocks == []


def test_close_with_linger_zero_resets(host: Host) -> None:
    """socket(7) SO_LINGER; queued data is discarded."""
    peer, slot = connected(host)
    host.option(slot, OPT_LINGER, 0)
    host.option(slot, OPT_FLAGS, LINGER)
    host.write(slot, b"queued")
    peer.recv()
    host.close(slot)
    seg = peer.one()
    assert (seg.letters, seg.seq) == ("RA", 7)
    assert host.blocks == []


def test_abort_resets(host: Host) -> None:
    peer, slot = connected(host)
    host.abort(slot)
    assert peer.one().letters == "RA"
    assert host.error(slot) == errno.ECONNRESET


def test_data_after_close_resets(host: Host) -> None:
    """RFC 1122 4.2.2.13: "send a RST to show that data was lost"."""
    peer, slot = connected(host)
    host.close(slot)
    peer.recv()
    peer.send("A", 1, 2)
    assert host.blocks == [FIN_WAIT_2]
    peer.send("A", 1, 2, b"more")
    assert peer.one().letters == "RA"
    assert host.blocks == []


def test_unread_data_after_shutdown_write_is_still_received(host: Host) -> None:
    peer, slot = connected(host)
    host.shutdown(slot)
    peer.recv()
    peer.send("A", 1, 2, b"half open")
    assert host.read(slot) == b"half open"


def test_reset_answers_on_lo(make: Make) -> None:
    """The far end of a local connection learns of an abort at once."""
    host = make()
    listener = host.listen(80)
    client = host.connect(HERE, 80)
    server = host.accept(listener)
    host.abort(server)
    assert host.error(client) == errno.ECONNRESET
    assert host.blocks == []
