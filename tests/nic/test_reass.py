"""IPv4 reassembly in front of steering: RFC 791, the strictness of RFC 5722, limits."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..long import TIMES
from .conftest import HERE, ROOT, SANITIZE, build, ffi
from .frames import OUR, PEER, checksum, ethernet

BAD, HELD, WHOLE = 0, 1, 2
S = 1_000_000
MORE = 0x2000


def fragment(data: bytes, at: int, more: bool, *, ident: int = 7, src: int = PEER,
             options: bytes = b"", proto: int = 17) -> bytes:  # fmt: skip
    words = (20 + len(options)) // 4
    head = bytes([0x40 | words, 0]) + (len(options) + 20 + len(data)).to_bytes(2, "big")
    head += ident.to_bytes(2, "big") + (at // 8 | (MORE if more else 0)).to_bytes(2, "big")
    head += bytes([64, proto, 0, 0]) + src.to_bytes(4, "big") + OUR.to_bytes(4, "big") + options
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return ethernet(head + data)


def cut(data: bytes, size: int, **keywords: Any) -> list[bytes]:
    return [fragment(data[at : at + size], at, at + size < len(data), **keywords)
            for at in range(0, len(data), size)]  # fmt: skip


class Reass:
    def __init__(self, lib: Any) -> None:
        self.lib, self.at = lib, lib.reass_new()
        self.out, self.len = ffi.new("uint8_t[70000]"), ffi.new("uint32_t *")

    def put(self, frame: bytes, now: int = S) -> int:
        return int(self.lib.reass_put(self.at, frame, len(frame), now, self.out, self.len))

    def whole(self) -> bytes:
        """The payload of what was reassembled last, its header checked."""
        frame = bytes(self.out[0 : self.len[0]])
        ip = frame[14:]
        words = ip[0] & 15
        assert checksum(ip[: words * 4]) == 0
        assert int.from_bytes(ip[2:4], "big") == len(ip)
        assert ip[6:8] == b"\0\0"
        return ip[words * 4 :]


@pytest.fixture
def reass(lib: Any) -> Iterator[Reass]:
    made = Reass(lib)
    yield made
    lib.reass_free(made.at)


@pytest.mark.parametrize("length", [9, 1481, 9008, 9000, 65515])
@pytest.mark.parametrize("order", ["forward", "backward", "any"])
def test_the_payload_is_what_was_cut(reass: Reass, length: int, order: str) -> None:
    data = random.Random(length).randbytes(length)
    frames = cut(data, 8 if length < 100 else 1480)
    if order == "backward":
        frames.reverse()
    elif order == "any":
        random.Random(1).shuffle(frames)
    assert [reass.put(f) for f in frames] == [HELD] * (len(frames) - 1) + [WHOLE]
    assert reass.whole() == data
    assert reass.put(frames[0]) == HELD  # it is forgotten


def test_what_the_wire_doubles_does_no_harm(reass: Reass) -> None:
    data = os.urandom(4000)
    a, b, c = cut(data, 1480)
    assert [reass.put(f) for f in (a, a, c, b)] == [HELD, HELD, HELD, WHOLE]
    assert reass.whole() == data


def test_the_first_header_counts_with_its_options(reass: Reass) -> None:
    data = os.urandom(2000)
    a = fragment(data[:1480], 0, True, options=b"\1\1\1\0")
    b = fragment(data[1480:], 1480, False)
    assert (reass.put(b), reass.put(a)) == (HELD, WHOLE)
    assert reass.whole() == data


@pytest.mark.parametrize("different", [{"ident": 8}, {"src": PEER + 1}, {"proto": 1}])
def test_pieces_of_different_datagrams_do_not_mix(reass: Reass, different: dict[str, int]) -> None:
    a, b = cut(bytes(2000), 1480)
    _, other = cut(bytes(2000), 1480, **different)
    assert (reass.put(a), reass.put(other), reass.put(b)) == (HELD, HELD, WHOLE)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(fragment(b"x" * 800, 8, True), id="into the first"),
        pytest.param(fragment(b"x" * 16, 0, True), id="over its beginning"),
        pytest.param(fragment(b"x" * 808, 0, True), id="over all of it"),
        pytest.param(fragment(b"x" * 4, 16, False), id="teardrop: the end inside"),
        pytest.param(fragment(b"x" * 800, 0, True), id="same place, other bytes"),
    ],
)
def test_an_overlap_drops_all(reass: Reass, second: bytes) -> None:
    """RFC 5722 4: also the fragments that come later."""
    rest = fragment(bytes(8), 800, False)
    assert (reass.put(fragment(bytes(800), 0, True)), reass.put(second)) == (HELD, BAD)
    assert reass.put(rest) == BAD
    assert reass.put(fragment(bytes(800), 0, True)) == BAD
    now = 32 * S  # a new datagram with the same number is one
    assert reass.put(fragment(bytes(800), 0, True), now) == HELD
    assert reass.put(rest, now) == WHOLE


def test_two_ends_do_not_agree(reass: Reass) -> None:
    assert reass.put(fragment(bytes(8), 800, False)) == HELD
    assert reass.put(fragment(bytes(8), 808, False)) == BAD


def test_behind_the_end(reass: Reass) -> None:
    """As many bytes as the end promises, but not the right ones."""
    assert reass.put(fragment(bytes(8), 0, True)) == HELD
    assert reass.put(fragment(bytes(8), 24, True)) == HELD
    assert reass.put(fragment(bytes(8), 8, False)) == BAD


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(fragment(bytes(100), 65528, False), id="ping of death"),
        pytest.param(fragment(bytes(801), 0, True), id="not whole blocks"),
        pytest.param(fragment(b"", 800, False), id="empty"),
        pytest.param(fragment(bytes(80), 0, True)[:-1], id="cut short"),
        pytest.param(fragment(bytes(80), 0, True)[:30], id="header cut short"),
        pytest.param(fragment(bytes(80), 0, True).replace(b"\x40\x11", b"\x41\x11"), id="checksum"),
    ],
)
def test_fragments_that_cannot_be(reass: Reass, frame: bytes) -> None:
    assert reass.put(frame) == BAD


def test_thirty_seconds(reass: Reass) -> None:
    a, b = cut(bytes(2000), 1480)
    assert reass.put(a, S) == HELD
    assert reass.put(b, 31 * S) == WHOLE
    assert reass.put(a, 40 * S) == HELD
    assert reass.put(b, 70 * S + 1) == HELD


def test_a_source_pushes_out_only_its_own(reass: Reass) -> None:
    """FragmentSmack (CVE-2018-5391): sixteen of a source, and others are served all the while."""
    a, b = cut(bytes(2000), 1480)
    assert reass.put(a) == HELD
    for ident in range(1000):
        assert reass.put(fragment(bytes(8), 0, True, ident=ident, src=PEER + 9), S + ident) == HELD
    assert reass.put(b, 2 * S) == WHOLE
    late = fragment(bytes(8), 8, False, ident=984, src=PEER + 9)
    assert reass.put(late, 2 * S) == WHOLE  # one of the last sixteen


def test_many_sources_are_bounded(reass: Reass) -> None:
    """64 datagrams in all: then the oldest goes."""
    for i in range(64):
        assert reass.put(fragment(bytes(8), 0, True, src=i + 1), S + i) == HELD
    assert reass.put(fragment(bytes(8), 0, True, src=1000), 2 * S) == HELD
    assert reass.put(fragment(bytes(8), 8, False, src=2), 2 * S) == WHOLE
    assert reass.put(fragment(bytes(8), 8, False, src=1), 2 * S) == HELD


def test_hostile_fragments(tmp_path: Path) -> None:
    """Under ASan and UBSan; what is honest among them arrives."""
    sources = [HERE / "fuzz_reass.c", ROOT / "replicas/nic/reass.c"]
    fuzz = build(tmp_path / "fuzz_reass", sources, SANITIZE, ["abi", "nic"])
    deadline = time.monotonic() + 1 * TIMES
    seed = 1
    while seed < 3 or time.monotonic() < deadline:
        result = subprocess.run([fuzz, str(seed), "20000"], capture_output=True, text=True)
        assert result.returncode == 0, f"seed {seed}, 20000 steps:\n{result.stderr[-4000:]}"
        seed = seed + 1 if seed < 2 else int.from_bytes(os.urandom(6), "big") | 4
