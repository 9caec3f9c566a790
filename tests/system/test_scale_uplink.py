"""Replicas come and go while kernel peers exchange bytes with them over a TAP device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ..churn import CHURN, Churn
from ..long import TIMES
from ..waiting import wait_until
from .programs import free_port
from .test_uplink import OURS, PEER, Net, uplinked

CYCLES = 2 * TIMES
# Upper 0.1 % point of chi-square with 3 degrees of freedom (any table).
CHI_SQUARE_3 = 16.27


@pytest.fixture(params=["single", "multi"])
def net(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Net]:
    # A short TIME_WAIT: a draining replica waits for it.
    options = ("--replicas-max", "4", "--time-wait-ms", "500", "--components", request.param)
    with uplinked(tmp_path_factory.mktemp("scale"), 1, *options) as made:
        yield made


@pytest.fixture(params=["kernel clients", "kernel server"])
def churn(net: Net, request: pytest.FixtureRequest) -> Iterator[Churn]:
    worlds, at = (net.neat, net.peer), OURS
    if request.param == "kernel server":
        worlds, at = (net.peer, net.neat), PEER
    made = Churn(*worlds, free_port(), bind=at, address=at, log=net.instance.log)
    yield made
    made.close()


def status(net: Net) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(net.instance.cli("status", "--json").stdout)
    return found


def gone(net: Net, count: int) -> None:
    wait_until(lambda: len(status(net)["replicas"]) == count, f"only {count} are left", 60)


def kill_nic(net: Net) -> None:
    old = status(net)["nic"]["pid"]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: status(net)["nic"]["pid"] not in (old, None), "a new nic")


def test_no_peer_notices_scale_events(net: Net, churn: Churn) -> None:
    for _ in range(CYCLES):
        net.instance.cli("scale", "4")
        churn.goes_on(1000)
        net.instance.cli("scale", "1")
        churn.goes_on()
        gone(net, 1)
        churn.goes_on()


def test_the_nic_dies_while_replicas_drain(net: Net, churn: Churn) -> None:
    """Only the table it left behind says whose the connections of draining replicas are."""
    for _ in range(CYCLES):
        net.instance.cli("scale", "4")
        churn.goes_on(500)
        net.instance.cli("scale", "1")
        kill_nic(net)
        churn.goes_on()
        gone(net, 1)
        kill_nic(net)
        churn.goes_on()


HOLD = """
import socket, sys
def more(n):
    for _ in range(n):
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
        held.append((s, b"%d" % s.getsockname()[1]))
        s.sendall(held[-1][1].ljust(5))
held = []
more(1000)
print("held", flush=True)
sys.stdin.readline()
more(1000)
assert all(s.recv(5) == port.ljust(5) for s, port in held)
assert len({port for _, port in held}) == 2000
"""
ECHO = """
import select, socket
at = socket.create_server(("", 0), backlog=4096)
print(at.getsockname()[1], flush=True)
poll, peers = select.epoll(), {}
poll.register(at, select.EPOLLIN)
while True:
    for fd, _ in poll.poll():
        if fd == at.fileno():
            peer, (_, port) = at.accept()
            peers[peer.fileno()] = peer, b"%d" % port
            poll.register(peer, select.EPOLLIN)
        else:
            peer, port = peers[fd]
            if said := peer.recv(5):
                peer.sendall(port.ljust(5) if said == port.ljust(5) else b"wrong")
            else:
                poll.unregister(fd)
                peer.close()
"""


def test_connect_finds_a_port_though_buckets_moved_away_from_their_connections(net: Net) -> None:
    """1000 connections stay, half the buckets move, 500 draw from these: 18 meet a port in use."""
    server = net.peer.start(sys.executable, "-c", ECHO, stdout=subprocess.PIPE)
    assert server.stdout
    port = server.stdout.readline().strip()
    client = net.neat.start(
        sys.executable, "-c", HOLD, PEER, port, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdout
    assert client.stdout.readline() == "held\n"
    net.instance.cli("scale", "2")
    client.communicate("go on\n", timeout=100)
    server.kill()
    server.communicate()
    assert client.returncode == 0


CONNECT = """
import random, socket, sys
# The kernel's own source ports come in sequences, on which a linear hash is even or not at all.
for port in random.Random(1).sample(range(10000, 60000), 1000):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20, ("", port))
    s.sendall(b"x")
    assert s.recv(1) == b"x"
    s.close()
"""


def test_new_connections_from_the_wire_are_equally_likely_on_all_replicas(net: Net) -> None:
    port = free_port()
    at = replace(net.neat, env={**net.neat.env, "CHURN_ADDRESS": OURS})
    server = at.start(sys.executable, CHURN, "serve", str(port), "events", stdout=subprocess.PIPE)
    assert server.stdout and server.stdout.readline() == "ready\n"
    net.instance.cli("scale", "4")
    net.peer.run(sys.executable, "-c", CONNECT, OURS, str(port), timeout=120)

    def counts() -> list[int]:
        return [r["accepted"] for r in status(net)["replicas"]]

    wait_until(lambda: sum(counts()) == 1000, "counters are published when replicas sleep")
    found = counts()
    server.kill()
    server.wait()
    assert sum((n - 250) ** 2 / 250 for n in found) < CHI_SQUARE_3, found


RESETS = """
import socket, struct, sys
at = socket.create_server(("", 0), backlog=4096)
print(at.getsockname()[1], flush=True)
held = [at.accept()[0] for _ in range(200)]
print("held", flush=True)
sys.stdin.readline()
for s in held:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
sys.stdin.readline()
"""
RESET = """
import socket, sys
held = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(200)]
resets = 0
for s in held:
    try: s.recv(1)
    except ConnectionResetError: resets += 1
print(resets)
"""


def test_resets_leave_before_their_replica_ends(net: Net) -> None:
    """Nobody repeats a reset: a peer that misses it waits for ever."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = net.neat.start(sys.executable, "-c", RESETS, **pipes)
    assert server.stdout and server.stdin
    port = server.stdout.readline().strip()
    net.instance.cli("scale", "4")
    client = net.peer.start(sys.executable, "-c", RESET, OURS, port, **pipes)
    assert server.stdout.readline() == "held\n"
    net.instance.cli("scale", "1")
    server.stdin.write("reset\n")
    server.stdin.flush()
    assert client.communicate(timeout=60)[0] == "200\n"
    gone(net, 1)
    server.communicate("end\n")
