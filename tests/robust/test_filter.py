"""`neatsock filter` end to end: rules act on real programs, and outlive replicas and neatd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from neatsock.instance import InstanceError, ask

from .rig import Rig, wait_until

SERVER = """
import socket
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
print(a.getsockname()[1], flush=True)
while True:
    s, _ = a.accept(); s.sendall(b"hello"); s.close()
"""
# 20 connections: each replica is met, but for a chance of 2 ** -19.
CLIENT = """
import errno, socket, sys
for _ in range(20):
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as s:
            print(s.recv(5, socket.MSG_WAITALL).decode())
    except OSError as err:
        print(errno.errorcode[err.errno])
"""


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("filter"), 2)
    yield made
    made.down()


@pytest.fixture
def port(own: Rig) -> Iterator[int]:
    server = own.world.start(sys.executable, "-c", SERVER, stdout=subprocess.PIPE)
    assert server.stdout
    yield int(server.stdout.readline())
    server.kill()
    server.wait()


def outcomes(rig: Rig, port: int) -> set[str]:
    return set(rig.world.run(sys.executable, "-c", CLIENT, str(port)).stdout.split())


def change(rig: Rig, *words: str) -> None:
    done = rig.cli("filter", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def listed(rig: Rig) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = json.loads(rig.cli("filter", "list", "--json").stdout)
    return rules


def test_rules_outlive_replicas_and_neatd(own: Rig, port: int) -> None:
    assert outcomes(own, port) == {"hello"}
    change(own, "add", f"reject in tcp to port {port}")
    assert outcomes(own, port) == {"ECONNREFUSED"}
    for replica, epoch in enumerate(own.epochs()):
        os.kill(own.pids()[f"replica{replica}"], signal.SIGKILL)
        own.ready(replica, epoch + 1)
    assert outcomes(own, port) == {"ECONNREFUSED"}
    neatd = own.pids()["neatd"]
    os.kill(neatd, signal.SIGKILL)
    wait_until(lambda: own.status() and own.pids()["neatd"] != neatd, "neatd is back")
    assert [r["rule"] for r in listed(own)] == [f"reject in tcp to port {port}"]
    assert outcomes(own, port) == {"ECONNREFUSED"}
    change(own, "flush")
    assert outcomes(own, port) == {"hello"}
    assert listed(own) == []


def test_order_numbers_and_counters(own: Rig, port: int) -> None:
    change(own, "add", "reject", "in", "tcp", "to", "port", str(port))
    change(own, "add", "--at", "1", "pass", "in", "tcp")
    assert outcomes(own, port) == {"hello"}

    def counted() -> bool:
        """Replicas publish their counters when they go to sleep."""
        first, second = listed(own)
        return first["packets"] >= 20 and first["bytes"] > 800 and second["packets"] == 0

    wait_until(counted, "the first rule has met 20 connections, the second nothing")
    change(own, "delete", "1")
    assert [r["number"] for r in listed(own)] == [1]
    assert outcomes(own, port) == {"ECONNREFUSED"}
    text = own.cli("filter", "list").stdout
    assert text.split()[0] == "1" and text.endswith(f"reject in tcp to port {port}\n")


def test_a_command_is_obeyed_once(own: Rig) -> None:
    """A new neatd may meet a command again that its predecessor had carried out."""
    command = {"cmd": "filter", "do": "add", "id": 7, "rule": "drop in udp"}
    for _ in range(2):
        ask(own.path, command)
    assert len(listed(own)) == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("add", "drop in sctp"), 2, "'sctp' is not expected here"),
        (("add", "--at", "5", "drop in"), 1, "a rule can be number 1 to 1, not 5"),
        (("add", "--replica", "16", "drop in"), 1, "no replica 16"),
        (("add", "--replica", "-1", "drop in"), 1, "no replica -1"),
        (("add", "--replica", "all", "drop in"), 2, "invalid int value: 'all'"),
        (("delete", "1"), 1, "there is no rule 1"),
        (("list", "--name", "nobody"), 1, "not up"),
    ],
)
def test_errors(rig1: Rig, words: tuple[str, ...], code: int, text: str) -> None:
    done = rig1.cli("filter", *words)
    assert done.returncode == code and done.stdout == ""
    assert text in done.stderr and "Traceback" not in done.stderr


def test_no_more_than_256_rules(rig1: Rig) -> None:
    try:
        for number in range(256):
            ask(rig1.path, {"cmd": "filter", "do": "add", "id": number + 1, "rule": "pass in udp"})
        with pytest.raises(InstanceError, match="256 rules already"):
            ask(rig1.path, {"cmd": "filter", "do": "add", "id": 999, "rule": "drop in"})
    finally:
        change(rig1, "flush")


# ---- rules of one replica, replicas that come and go ----


# Connects all the time; each outcome once.
ALWAYS = """
import errno, socket, sys
seen = set()
while True:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10).close()
        outcome = "connected"
    except OSError as err:
        outcome = errno.errorcode[err.errno]
    if outcome not in seen:
        print(outcome, flush=True)
    seen.add(outcome)
"""


def ready(rig: Rig, replica: int) -> bool:
    return any(
        r["index"] == replica and r["state"] == "ready" for r in rig.status().get("replicas", [])
    )


def test_rules_of_one_replica(own: Rig, port: int) -> None:
    """Connections of the other one are not touched; its successors obey it, too."""
    change(own, "add", "--replica", "1", f"reject in tcp to port {port}")
    assert outcomes(own, port) == {"hello", "ECONNREFUSED"}
    (rule,) = listed(own)
    assert rule["replicas"] == [1]
    # What is listed behind the numbers is what add takes.
    text = own.cli("filter", "list").stdout
    assert text.endswith(f"bytes  --replica 1 reject in tcp to port {port}\n")
    os.kill(own.pids()["replica1"], signal.SIGKILL)
    own.ready(1, 2)
    assert outcomes(own, port) == {"hello", "ECONNREFUSED"}
    change(own, "add", "--replica", "0", f"reject in tcp to port {port}")
    assert outcomes(own, port) == {"ECONNREFUSED"}
    change(own, "delete", "1")
    assert outcomes(own, port) == {"hello", "ECONNREFUSED"}
    change(own, "add", "--replica", "1", "--replica", "0", f"reject in tcp to port {port}")
    assert listed(own)[1]["replicas"] == [0, 1]
    assert outcomes(own, port) == {"ECONNREFUSED"}


def test_replicas_that_come_have_the_rules_first(own: Rig, port: int) -> None:
    """Scaled up, upgraded, and scaled up by a neatd that took over: no packet slips through."""
    change(own, "add", f"reject in tcp to port {port}")
    change(own, "add", "--replica", "3", "pass in udp")
    program = own.world.start(sys.executable, "-c", ALWAYS, str(port), stdout=subprocess.PIPE)
    assert program.stdout and program.stdout.readline() == "ECONNREFUSED\n"
    try:
        assert own.cli("scale", "3").returncode == 0
        wait_until(lambda: ready(own, 2), "replica 2 is ready")
        neatd = own.pids()["neatd"]
        os.kill(neatd, signal.SIGKILL)
        wait_until(lambda: own.status() and own.pids()["neatd"] != neatd, "neatd is back")
        assert own.cli("scale", "4").returncode == 0
        wait_until(lambda: ready(own, 3), "replica 3 is ready")
        assert own.cli("upgrade").returncode == 0
        assert outcomes(own, port) == {"ECONNREFUSED"}
    finally:
        program.kill()
    assert program.stdout.read() == ""
    assert [r["replicas"] for r in listed(own)] == [None, [3]]
