"""A connection from its first segment to its last, in both roles."""

from __future__ import annotations

from tests.stack.host import CLOSE_WAIT, CONNECTED, ESTABLISHED, FIN_WAIT_2, RX_EOF, Host, Peer


def test_passive_open_data_and_close_by_the_peer_first(host: Host) -> None:
    listener = host.listen(80)
    peer = Peer(host)
    slot = peer.open(listener)
    assert host.flags(slot) & CONNECTED
    peer.send("PA", 1, 1, b"request")
    assert peer.one().ack == 8
    assert host.read(slot) == b"request"
    assert host.write(slot, b"answer!") == 7
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack, seg.data) == ("A", 1, 8, b"answer!")
    peer.send("FA", 8, 8)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("A", 8, 9)
    assert host.state(slot) == CLOSE_WAIT
    assert host.flags(slot) & RX_EOF
    host.close(slot)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("FA", 8, 9)
    peer.send("A", 9, 9)
    peer.none()
    assert (host.blocks, host.time_waits) == ([], 0)


def test_active_open_data_and_close_by_us_first(host: Host) -> None:
    peer = Peer(host, rport=7)
    slot = peer.accept()
    assert host.state(slot) == ESTABLISHED
    host.write(slot, b"ping")
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack, seg.data) == ("A", 1, 1, b"ping")
    peer.send("PA", 1, 5, b"pong")
    assert host.read(slot) == b"pong"
    peer.none()  # it spoke first, so the ACK waits for the next request to ride on
    host.close(slot)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("FA", 5, 5)
    peer.send("A", 5, 6)
    peer.none()
    assert host.blocks == [FIN_WAIT_2]
    peer.send("FA", 5, 6)
    seg = peer.one()
    assert (seg.letters, seg.seq, seg.ack) == ("A", 6, 6)
    assert (host.blocks, host.time_waits) == ([], 1)
    host.advance(60_001_000)
    assert host.time_waits == 0


def test_both_ends_on_lo(host: Host) -> None:
    listener = host.listen(80)
    client = host.connect(0x7F000001, 80)
    server = host.accept(listener)
    host.write(client, b"x" * 1000)
    assert host.read(server) == b"x" * 1000
    host.write(server, b"y" * 1000)
    assert host.read(client) == b"y" * 1000
    host.close(client)
    host.close(server)
    host.advance(100_000)
    assert (host.blocks, host.time_waits) == ([], 0)
    assert host.packets() == []
