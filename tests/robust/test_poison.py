"""Poison: a packet, or a timer, that crashes whichever replica comes to it (issue 3, item 1).

Both builds of the replica are given an illegal instruction where only one connection of the test
comes along. First fault: its successor goes on; second: the quarantine build; third: exactly that
connection is reset. The others notice nothing, and what is of use to a developer is kept.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.elf import file_offset, functions
from neatsock.instance import native

from .rig import Rig, wait_until

UD2 = bytes.fromhex("0f0b")

# A connection within one program, and what its ends see of each other.
PREFIX = """
import socket, sys
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
client = socket.create_connection(listener.getsockname())
server = listener.accept()[0]
for end in client, server:
    end.settimeout(20)
client.sendall(b"x")
assert server.recv(1) == b"x"
print("open", flush=True)
sys.stdin.readline()
"""
POISON = {
    # Of all programs here only this one ends its direction: its FIN is the packet.
    "tcp_fin_received": PREFIX
    + """
client.shutdown(socket.SHUT_WR)
for end in server, client:
    try:
        print("read", end.recv(1), flush=True)
    except OSError as err:
        print(type(err).__name__, flush=True)
""",
    # Nobody reads what it sends, until its window is shut: the persist timer is the poison.
    "tcp_send_probe": PREFIX
    + """
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
client.settimeout(20)
try:
    while True:
        client.sendall(bytes(100000))
except OSError as err:
    print(type(err).__name__, flush=True)
""",
}
# The bystanders of rig.py reconnect; these two stay as they are.
LASTING = """
import socket
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
pairs = []
for _ in range(8):
    client = socket.create_connection(listener.getsockname())
    pairs.append((client, listener.accept()[0]))
print("ready", flush=True)
n = 0
while True:
    for pair in pairs:
        for one, other in (pair, pair[::-1]):
            one.settimeout(20)
            other.settimeout(20)
            one.sendall(b"%09d" % n)
            assert other.recv(9, socket.MSG_WAITALL) == b"%09d" % n
    n += 1
    print(n, flush=True)
"""


@pytest.fixture
def poisoned(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    """An instance of one replica in which the function request.param is an illegal instruction."""
    builds = tmp_path / "native"
    shutil.copytree(native("neat-replica").parent, builds)
    for name in ("neat-replica", "neat-replica-quarantine"):
        path = builds / name
        at = file_offset(path, functions(path)[request.param][0])
        with path.open("r+b") as file:
            file.seek(at)
            file.write(UD2)
    monkeypatch.setenv("NEATSOCK_NATIVE", str(builds))
    rig = Rig(tmp_path / "rig", 1, NEATSOCK_NATIVE=str(builds))
    yield rig
    rig.down()


def start(rig: Rig, program: str) -> subprocess.Popen[str]:
    return rig.world.start(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize("poisoned", list(POISON), indirect=True)
def test_only_the_poisoned_connection_ends(poisoned: Rig, request: pytest.FixtureRequest) -> None:
    which = request.node.callspec.params["poisoned"]
    lasting = start(poisoned, LASTING)
    victim = start(poisoned, POISON[which])
    try:
        assert line(lasting) == "ready" and line(victim) == "open"
        assert int(line(lasting)) > 0
        assert victim.stdin
        victim.stdin.write("go\n")
        victim.stdin.flush()
        assert line(victim) == "ConnectionResetError", poisoned.log()[-3000:]
        before = int(line(lasting))
        wait_until(lambda: int(line(lasting)) > before + 20, "the others go on")
        status = wait_until(
            lambda: (s := poisoned.status()) and s["replicas"][0]["state"] == "ready" and s, "ready"
        )
        # The end of the programs may be poison, too.
        log, kept = poisoned.log(), sorted((poisoned.directory / "evidence").iterdir())
    finally:
        for process in (lasting, victim):
            process.kill()
            process.wait()
    replica = status["replicas"][0]
    assert (replica["strikes"], replica["restarts"]) == (3, 3), log[-3000:]
    assert replica["build"] == "quarantine" and not replica["fell_back"]
    resets = re.findall(r"epoch (\d) took over .*; (\d+) were reset", log)
    assert resets == [("2", "0"), ("3", "0"), ("4", "1")]
    starts = re.findall(r"replica 0 (goes on in the standby|started.*), pid", log)
    expected = ["started (quarantine build)"] * 2
    assert "quarantine" not in starts[1] and starts[2:] == expected, log[-5000:]
    assert len(kept) == 3
    assert "signal 4" in kept[-1].read_text()


DATAGRAM = """
import socket, sys
def bound():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    s.settimeout(20)
    return s
picky, other, sender = bound(), bound(), bound()
picky.connect(other.getsockname())
sender.sendto(b"before", other.getsockname())
assert other.recv(10) == b"before"
print("open", flush=True)
sys.stdin.readline()
sender.sendto(b"poison", picky.getsockname())  # port unreachable: it hears only the other
sender.sendto(b"after", other.getsockname())
print(other.recv(10).decode(), flush=True)
"""


@pytest.mark.parametrize("poisoned", ["icmp_error"], indirect=True)
def test_a_poisonous_datagram_is_dropped(poisoned: Rig) -> None:
    """As with a command that names no connection: tried once more, then not again."""
    lasting = start(poisoned, LASTING)
    victim = start(poisoned, DATAGRAM)
    try:
        assert line(lasting) == "ready" and line(victim) == "open"
        assert victim.stdin
        victim.stdin.write("go\n")
        victim.stdin.flush()
        assert line(victim) == "after", poisoned.log()[-3000:]
        before = int(line(lasting))
        wait_until(lambda: int(line(lasting)) > before + 20, "the others go on")
        replica = poisoned.status()["replicas"][0]
    finally:
        for process in (lasting, victim):
            process.kill()
            process.wait()
    assert (replica["strikes"], replica["restarts"]) == (2, 2), poisoned.log()[-3000:]
    said = re.findall(r"(\d+) were reset(.*)", poisoned.log())
    assert said == [("0", ""), ("0", "; a datagram was dropped")]
