"""The simulated wire and software segmentation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import pytest

from .conftest import ffi
from .frames import ACK, FIN, OUR, PEER, PSH, checksum, pseudo, sent

MILLION = 1_000_000


@dataclass(frozen=True)
class Quality:
    """Delays in microseconds, the rest in frames per million."""

    delay: int = 0
    jitter: int = 0
    loss: int = 0
    reorder: int = 0
    duplicate: int = 0
    corrupt: int = 0


class Wire:
    def __init__(self, lib: Any, quality: Quality, seed: int = 1, rate: int = 0) -> None:
        self.lib = lib
        self.at = lib.wire_new(seed, rate, ffi.new("uint32_t[6]", list(astuple(quality))))

    def put(self, frame: bytes, now: int = 0) -> None:
        self.lib.wire_put(self.at, frame, len(frame), now)

    def get(self, now: int) -> list[tuple[int, bytes]]:
        """(release time, frame) of all that is due."""
        out, when, found = ffi.new("uint8_t[]", 70000), ffi.new("uint64_t *"), []
        while length := self.lib.wire_get(self.at, now, out, when):
            found.append((int(when[0]), bytes(ffi.buffer(out, length))))
        return found

    def counts(self) -> dict[str, int]:
        out = ffi.new("uint64_t[6]")
        self.lib.wire_counts(self.at, out)
        names = ("lost", "duplicated", "reordered", "corrupted", "full", "waiting")
        return dict(zip(names, map(int, out), strict=True))


@pytest.fixture
def make(lib: Any) -> Iterator[Any]:
    made: list[Wire] = []

    def factory(quality: Quality, **kwargs: int) -> Wire:
        made.append(Wire(lib, quality, **kwargs))
        return made[-1]

    yield factory
    for wire in made:
        lib.wire_free(wire.at)


def frame(n: int, length: int = 100) -> bytes:
    return struct.pack("!I", n).ljust(length, b".")


def run(wire: Wire, count: int, gap: int = 10) -> list[tuple[int, bytes]]:
    out = []
    for n in range(count):
        wire.put(frame(n), n * gap)
        out += wire.get(n * gap)
    return out + wire.get(10**12)


def numbers(frames: list[tuple[int, bytes]]) -> list[int]:
    return [struct.unpack("!I", data[:4])[0] for _, data in frames]


ROUGH = Quality(2000, 500, 50_000, 30_000, 20_000, 10_000)


def test_a_perfect_wire_keeps_everything_in_order_at_once(make: Any) -> None:
    out = run(make(Quality()), 1000)
    assert numbers(out) == list(range(1000))
    assert [when for when, _ in out] == [n * 10 for n in range(1000)]


def test_same_seed_same_fate(make: Any) -> None:
    assert run(make(ROUGH, seed=7), 5000) == run(make(ROUGH, seed=7), 5000)
    assert run(make(ROUGH, seed=7), 5000) != run(make(ROUGH, seed=8), 5000)


def test_the_fate_of_a_frame_does_not_depend_on_time(make: Any) -> None:
    quality = Quality(loss=200_000)
    assert numbers(run(make(quality), 2000, gap=1)) == numbers(run(make(quality), 2000, gap=977))


@pytest.mark.parametrize(
    "quality,name,share",
    [
        (Quality(loss=100_000), "lost", 0.1),
        (Quality(duplicate=50_000), "duplicated", 0.05),
        (Quality(reorder=20_000), "reordered", 0.02),
        (Quality(corrupt=10_000), "corrupted", 0.01),
    ],
)
def test_rates(make: Any, quality: Quality, name: str, share: float) -> None:
    """Within five standard deviations of a binomial with 20,000 trials; seeded, so no luck."""
    wire = make(quality)
    out = run(wire, 20_000)
    deviation = (20_000 * share * (1 - share)) ** 0.5
    seen = wire.counts()[name]
    assert abs(seen - 20_000 * share) < 5 * deviation
    assert wire.counts()["full"] == 0
    expected = {"lost": 20_000 - seen, "duplicated": 20_000 + seen}.get(name, 20_000)
    assert len(out) == expected


def test_all_lost(make: Any) -> None:
    assert run(make(Quality(loss=MILLION)), 100) == []


def test_corruption_is_one_bit(make: Any) -> None:
    out = run(make(Quality(corrupt=MILLION)), 200)
    for n, (_, data) in enumerate(out):
        difference = int.from_bytes(data, "big") ^ int.from_bytes(frame(n), "big")
        assert difference.bit_count() == 1


def test_jitter_delays_but_keeps_the_order(make: Any) -> None:
    out = run(make(Quality(delay=1000, jitter=400)), 2000, gap=50)
    assert numbers(out) == list(range(2000))
    # In order means that a frame waits for the one before: at least the delay, at most both.
    waits = [when - n * 50 for n, (when, _) in enumerate(out)]
    assert min(waits) >= 1000
    assert max(waits) <= 1400


def test_a_reordered_frame_is_late_and_the_others_are_not(make: Any) -> None:
    out = run(make(Quality(delay=1000, reorder=100_000)), 1000, gap=100)
    order = numbers(out)
    assert order != sorted(order)
    late = {n for when, data in out if when - (n := numbers([(0, data)])[0]) * 100 > 1000}
    assert 50 < len(late) < 150
    assert [n for n in order if n not in late] == [n for n in range(1000) if n not in late]


def test_rate_limits(make: Any) -> None:
    """8 Mbit/s is one byte in a microsecond."""
    wire = make(Quality(), rate=8_000_000)
    for n in range(10):
        wire.put(frame(n, 1000), 0)
    assert [when for when, _ in wire.get(10**9)] == [1000 * (n + 1) for n in range(10)]


def test_a_full_queue_drops_the_newest(make: Any) -> None:
    wire = make(Quality(delay=1000))
    for n in range(5000):
        wire.put(frame(n), 0)
    assert wire.counts()["full"] == 5000 - 4096
    assert numbers(wire.get(1000)) == list(range(4096))


# ---- software segmentation ----


def super_segment(payload: bytes, flags: int) -> bytes:
    return sent((PEER, 99), 80, flags, seq=0xFFFFFF00, ack=7, data=payload)


def test_segments_are_what_the_kernel_would_send(lib: Any) -> None:
    payload = bytes(i % 251 for i in range(10_000))
    whole = super_segment(payload, FIN | PSH | ACK)
    count = lib.segments(whole, len(whole), 1448)
    assert count == 7  # 10000 / 1448, rounded up
    out, got, at = ffi.new("uint8_t[]", 70000), b"", 0xFFFFFF00
    for i in range(count):
        piece = bytes(ffi.buffer(out, lib.segment(whole, len(whole), 1448, i, out)))
        ip, tcp = piece[14:34], piece[34:]
        assert checksum(ip) == 0
        assert struct.unpack("!H", ip[2:4])[0] == len(piece) - 14
        assert struct.unpack("!H", ip[4:6])[0] == 7 + i
        assert checksum(pseudo(OUR, PEER, 6, len(tcp)) + tcp) == 0
        assert struct.unpack("!I", tcp[4:8])[0] == (at + len(got)) % 2**32
        assert tcp[13] == (FIN | PSH | ACK if i == count - 1 else ACK)
        got += tcp[20:]
    assert got == payload


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_partial_checksum_is_completed(lib: Any, size: int) -> None:
    right = super_segment(bytes(range(250)) * 4, ACK)[: 54 + size]
    total = 40 + size
    ip = bytearray(right[14:34])
    ip[2:4], ip[10:12] = struct.pack("!H", total), b"\0\0"
    ip[10:12] = struct.pack("!H", checksum(bytes(ip)))
    partial = ~checksum(pseudo(OUR, PEER, 6, 20 + size)) & 0xFFFF
    tcp = right[34:50] + struct.pack("!H", partial) + right[52:]
    buffer = ffi.new("uint8_t[]", right[:14] + bytes(ip) + tcp)
    lib.complete(buffer, 54 + size)
    done = bytes(ffi.buffer(buffer, 54 + size))[34:]
    assert checksum(pseudo(OUR, PEER, 6, len(done)) + done) == 0
