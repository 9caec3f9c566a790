"""Copies past the cache (replicas/abi/copy.h) move the same bytes as memcpy, and no others."""

from __future__ import annotations

import random

import pytest

from tests.unit.units import ffi, units

LARGE = 16384  # NEAT_COPY_LARGE


@pytest.mark.parametrize("n", [0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 63, 65160, 65536])
@pytest.mark.parametrize("to_offset", [0, 1, 15, 16, 63])
@pytest.mark.parametrize("from_offset", [0, 1, 33])
@pytest.mark.parametrize("streams", [0, 7])
def test_bytes(n: int, to_offset: int, from_offset: int, streams: int) -> None:
    data = random.Random(n).randbytes(from_offset + n)
    source = ffi.from_buffer("uint8_t[]", data)
    memory = bytearray(b"\xaa" * (n + 256))
    target = ffi.from_buffer("uint8_t[]", memory)
    ahead = units().copied(target + to_offset, source + from_offset, n, streams)
    assert memory[:to_offset] == b"\xaa" * to_offset
    assert memory[to_offset : to_offset + n] == data[from_offset:]
    assert memory[to_offset + n :] == b"\xaa" * (256 - to_offset)
    if streams:
        assert ahead == streams - (n >= LARGE)
    elif n < LARGE:
        assert ahead == 0


@pytest.mark.parametrize(
    ("first_ns", "second_ns", "far"),
    [
        (4096, 4097, False),  # 32 KiB in 4096 ns are 8 bytes per ns
        (4097, 4097, True),
        (1500, 2_000_000, False),  # preempted in the second half, in the first
        (2_000_000, 1500, False),
        (2_000_000, 16_000, True),
    ],
)
def test_both_halves_decide(first_ns: int, second_ns: int, far: bool) -> None:
    assert units().copy_far(first_ns, second_ns, 32768) == far
