"""Captures are read back by a reader that knows only the format's specification."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import ffi
from .frames import ACK, PEER, received
from .pcapng import Packet, packets

ROOM = 80000


def written(lib: Any, frames: list[bytes], comment: bytes = b"replica 3 epoch 1") -> bytes:
    out = ffi.new("uint8_t[]", ROOM)
    text = ffi.new("char[]", comment)
    data = bytes(ffi.buffer(out, lib.pcap_start(out, ROOM, b"replica3")))
    for n, frame in enumerate(frames):
        when = 1_700_000_000_123_456_789 + n
        size = lib.pcap_packet(out, ROOM, when, 1 + n % 2, text, frame, len(frame), len(frame))
        data += bytes(ffi.buffer(out, size))
    return data


def test_read_back(lib: Any) -> None:
    frames = [bytes(range(n % 256)) * (n // 60 + 1) for n in range(1, 255)]
    found = packets(written(lib, frames))
    for n, (packet, frame) in enumerate(zip(found, frames, strict=True)):
        when = 1_700_000_000_123_456_789 + n
        comment = "replica 3 epoch 1"
        assert packet == Packet("replica3", when, frame, len(frame), comment, n % 2 == 0)


def test_truncated_frames_keep_their_length(lib: Any) -> None:
    out = ffi.new("uint8_t[]", ROOM)
    start = bytes(ffi.buffer(out, lib.pcap_start(out, ROOM, b"x")))
    size = lib.pcap_packet(out, ROOM, 5, 2, ffi.NULL, b"0123456789", 10, 7)
    (packet,) = packets(start + bytes(ffi.buffer(out, size)))
    assert (packet.data, packet.length, packet.comment) == (b"0123456", 10, "")


def test_two_captures_in_one_file(lib: Any) -> None:
    data = written(lib, [b"a" * 60]) + written(lib, [b"b" * 61])
    assert [packet.data[:1] for packet in packets(data)] == [b"a", b"b"]


def test_no_room_writes_nothing(lib: Any) -> None:
    out = ffi.new("uint8_t[]", 64)
    assert lib.pcap_start(out, 64, b"replica0") == 0
    assert lib.pcap_packet(out, 64, 0, 1, ffi.NULL, b"x" * 100, 100, 100) == 0


def test_wireshark_agrees(lib: Any, tmp_path: Path) -> None:
    tshark = shutil.which("tshark")
    if not tshark:
        pytest.skip("tshark is not installed (apt install tshark)")
    file = tmp_path / "x.pcapng"
    file.write_bytes(written(lib, [received((PEER, 5), 80, ACK, data=b"hi")] * 3))
    command = [tshark, "-r", str(file), "-T", "fields", "-e", "tcp.dstport", "-e", "frame.comment"]
    seen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert seen.splitlines() == ["80\treplica 3 epoch 1"] * 3
