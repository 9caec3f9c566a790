"""neatsock pcap: what a peer sent and got is in the file, and nothing after the command ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..nic import pcapng
from ..waiting import wait_until
from ..worlds import Instance, neatsock_env
from .programs import free_port, need

NEAR, FAR = "10.89.0.1", "10.89.0.2"
TCP = 6


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Instance, Instance]]:
    made: list[Instance] = []
    try:
        for address in (NEAR, FAR):
            directory = tmp_path / address
            wire = ("--wire", str(tmp_path / "wire"), "--address", f"{address}/24")
            made.append(Instance(directory, 1, *wire))
        yield made[0], made[1]
    finally:
        for instance in made:
            instance.down()


def start(instance: Instance, file: Path, *options: str) -> subprocess.Popen[str]:
    """A running capture."""
    command = [sys.executable, "-m", "neatsock", "pcap", "-w", str(file)]
    child = subprocess.Popen(
        [*command, *options],
        env={**os.environ, **neatsock_env(instance.directory)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which the whole run may be, has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: file.exists() and file.stat().st_size > 0, "the head of the file", 20)
    return child


def segments(file: Path) -> list[tuple[bool, bytes]]:
    """(towards the replica, payload of IPv4) of each TCP segment."""
    frames = [(p.inbound, p.data) for p in pcapng.packets(file.read_bytes())]
    return [(i, f[34:]) for i, f in frames if f[12:14] == b"\x08\x00" and f[23] == TCP]


def test_both_directions_and_one(pair: tuple[Instance, Instance], tmp_path: Path) -> None:
    near, far = pair
    port, page = free_port(), tmp_path / "page.txt"
    page.write_text("a page on the wire")
    command = [sys.executable, "-m", "http.server", str(port), "-d", str(tmp_path)]
    fetch = (need("curl"), "-sS", "--max-time", "10", f"http://{FAR}:{port}/page.txt")
    log = (tmp_path / "log").open("w")
    server = far.world().start(*command, stdout=log, stderr=log)
    try:
        wait_until(lambda: near.world().run(*fetch, check=False).returncode == 0, "a fetch", 40)
        both, received = tmp_path / "both.pcapng", tmp_path / "rx.pcapng"
        captures = [start(near, both), start(far, received, "--rx")]
        assert near.world().run(*fetch).stdout == page.read_text()
        for capture in captures:
            capture.send_signal(signal.SIGINT)
            assert capture.wait(20) == 0
            assert capture.stderr and "bytes" in capture.stderr.read()
        sizes = both.stat().st_size, received.stat().st_size
        near.world().run(*fetch)
        assert sizes == (both.stat().st_size, received.stat().st_size), "it ended"
    finally:
        server.terminate()
        server.wait(20)
        log.close()
    requests = [inbound for inbound, data in segments(both) if b"GET /page.txt" in data]
    replies = [inbound for inbound, data in segments(both) if b"a page on the wire" in data]
    assert requests == [False] and replies == [True]
    assert any(b"GET /page.txt" in data for _, data in segments(received))
    assert all(inbound for inbound, _ in segments(received))


def test_for_some_seconds_and_twice(pair: tuple[Instance, Instance], tmp_path: Path) -> None:
    near, _ = pair
    first = start(near, tmp_path / "first")
    busy = near.cli("pcap", "-w", str(tmp_path / "second"), "--seconds", "0.1", check=False)
    assert busy.returncode == 1 and "captured already" in busy.stderr
    first.kill()
    first.wait()
    file = tmp_path / "third"

    def again() -> bool:
        return near.cli("pcap", "-w", str(file), "--seconds", "0.1", check=False).returncode == 0

    wait_until(again, "the killed command's capture ends", 20)
    assert segments(file) == []
    none = near.cli("pcap", "--replica", "7", "-w", str(file), check=False)
    assert none.returncode == 1 and "no replica 7" in none.stderr
