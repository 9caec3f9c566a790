"""A successor takes a killed replica's connections over: real processes, nothing is lost."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from ..waiting import wait_until
from .mini import CONNECTED, HUP, LOCALHOST, RX_EOF, App, Replica, pair, succeed
from .test_process import binary, replica

__all__ = ["binary", "replica"]  # fixtures


def reborn(replica: Replica, *apps: App, listeners: dict[App, int], death: int = 1) -> None:
    replica.kill()
    succeed(replica, *apps, listeners=listeners, adopt=True, death=death)


def test_connections_go_on(replica: Replica) -> None:
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    pairs = [pair(app, listener) for _ in range(20)]
    for i, (client, server) in enumerate(pairs):
        client.write(b"before %d" % i)
        server.write(b"and %d" % i)
    reborn(replica, app, listeners={app: listener})
    for i, (client, server) in enumerate(pairs):
        assert server.read(len(b"before %d" % i)) == b"before %d" % i
        assert client.read(len(b"and %d" % i)) == b"and %d" % i
        client.write(b"after")
        assert server.read(5) == b"after"
        server.write(b"yes")
        assert client.read(3) == b"yes"
        assert client.errno == server.errno == 0
    again, fresh = pair(app, listener)
    again.write(b"new")
    assert fresh.read(3) == b"new"


def test_bytes_written_while_no_replica_lives(replica: Replica) -> None:
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    client, server = pair(app, listener)
    replica.kill()
    data = os.urandom(1500)
    client.write(data)
    client.shutdown_write()
    late = app.connect(LOCALHOST, 8080)
    succeed(replica, app, listeners={app: listener}, adopt=True, death=1)
    assert server.read(1500) == data
    wait_until(lambda: server.flags & RX_EOF, "EOF")
    second = app.accept(listener)
    late.write(b"late")
    assert second.read(4) == b"late"


def test_closing_goes_on(replica: Replica) -> None:
    """Half-closed, and closed by one side only, over a death; then every slot is free again."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    (half, half_peer), (shut, shut_peer) = pair(app, listener), pair(app, listener)
    half.shutdown_write()
    wait_until(lambda: half_peer.flags & RX_EOF, "EOF")
    shut.close()
    wait_until(lambda: shut_peer.flags & RX_EOF, "EOF")
    reborn(replica, app, listeners={app: listener})
    half_peer.write(b"still")
    assert half.read(5) == b"still"
    half_peer.close()
    wait_until(lambda: half.flags & HUP, "both closed")
    half.close()
    shut_peer.close()
    everything = (half, half_peer, shut, shut_peer)
    wait_until(lambda: all(c.flags == 0 for c in everything), "all slots free")


def test_unaccepted_connections_are_accepted_later(replica: Replica) -> None:
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    clients = [app.connect(LOCALHOST, 8080) for _ in range(5)]
    wait_until(lambda: all(c.flags & CONNECTED for c in clients), "connected")
    first = app.accept(listener)
    reborn(replica, app, listeners={app: listener})
    servers = [first, *(app.accept(listener) for _ in clients[1:])]
    assert len({server.slot for server in servers}) == len(clients)
    for client in clients:
        client.write(b"x")
    for server in servers:
        assert server.read(1) == b"x"


def test_application_of_a_dead_process_counts_as_closed(replica: Replica) -> None:
    """Its segment is not replayed: its peers learn that it is gone."""
    server_app, client_app = App(replica, 1), App(replica, 2)
    listener = server_app.listen(8080)
    replica.go()
    _, server = pair(server_app, listener, client_app)
    reborn(replica, server_app, listeners={server_app: listener})
    wait_until(lambda: server.flags & RX_EOF, "the peer is gone")


@pytest.mark.parametrize("death", [1, 2, 3])
def test_kills_under_load(replica: Replica, death: int) -> None:
    """Bytes both ways over many kills at any instant: each byte once, in order."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    pairs = [pair(app, listener) for _ in range(8)]
    rng = random.Random(death)
    sent = {id(c): bytearray() for p in pairs for c in p}
    for _ in range(25):
        for client, server in pairs:
            for end in (client, server):
                data = rng.randbytes(rng.randrange(1, 1000))
                room = 2048 - (end.words.tx_tail.v - end.pub.tx_una.v)
                if room >= len(data):
                    end.write(data)
                    sent[id(end)] += data
        # A fault is blamed on the unit of work that ran: more than two in a row end its connection.
        reborn(replica, app, listeners={app: listener}, death=1 if death == 1 or _ % 10 else death)
        for client, server in pairs:
            for source, sink in ((client, server), (server, client)):
                data = bytes(sent[id(source)])
                assert sink.read(len(data)) == data
                sent[id(source)].clear()
    assert all(c.errno == 0 and c.flags & CONNECTED for p in pairs for c in p)


def test_arena_of_another_layout_means_stateless(replica: Replica) -> None:
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    client, server = pair(app, listener)
    os.pwrite(replica.arena, b"\0\0\0\0", 4)
    reborn(replica, app, listeners={app: listener})
    assert client.errno and server.errno
    again, fresh = pair(app, listener)
    again.write(b"new")
    assert fresh.read(3) == b"new"


def test_corrupted_block_costs_one_connection(replica: Replica, tmp_path: Path) -> None:
    """A flipped bit in class E or I is found by its seal; the others go on."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    (bad, bad_peer), (good, good_peer) = pair(app, listener), pair(app, listener)
    wait_until(lambda: replica.status.at.awake.v == 0, "asleep, so no unit of work runs")
    replica.kill()
    # Control blocks of 512 bytes follow the header line; the first is the first client's.
    word = os.pread(replica.arena, 1, 64 + 8)
    os.pwrite(replica.arena, bytes([word[0] ^ 2]), 64 + 8)
    succeed(replica, app, listeners={app: listener}, adopt=True, death=1)
    wait_until(lambda: bad.errno or bad_peer.errno, "the damaged connection ends")
    good.write(b"fine")
    assert good_peer.read(4) == b"fine"
    assert good.errno == good_peer.errno == 0
