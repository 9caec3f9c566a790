"""Toeplitz (replicas/stack/rss.h) against Microsoft's published vectors and the definition."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.units import units

# learn.microsoft.com, "Verifying the RSS Hash Calculation"
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
VECTORS = [
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x10E828A2),
]
PAIRS = [0x323E8FC2, 0xD718262A, 0xD2D0A5DE, 0x82989176, 0x5D1809C5]


def number(address: str) -> int:
    return int(ipaddress.IPv4Address(address))


def reference(key: bytes, data: bytes) -> int:
    """For every set bit of the input, XOR in the 32 bits of the key that start there."""
    result, bits = 0, int.from_bytes(key, "big")
    for i in range(len(data) * 8):
        if data[i // 8] >> (7 - i % 8) & 1:
            result ^= bits >> (len(key) * 8 - 32 - i) & 0xFFFFFFFF
    return result


@pytest.mark.parametrize(("dst", "dport", "src", "sport", "want"), VECTORS)
def test_published_vectors(dst: str, dport: int, src: str, sport: int, want: int) -> None:
    assert units().toeplitz(KEY, number(src), number(dst), sport, dport) == want


@pytest.mark.parametrize(("vector", "want"), list(zip(VECTORS, PAIRS, strict=True)))
def test_reference_gives_the_published_address_hashes(
    vector: tuple[str, int, str, int, int], want: int
) -> None:
    """The reference itself is right."""
    dst, _, src, _, _ = vector
    data = number(src).to_bytes(4, "big") + number(dst).to_bytes(4, "big")
    assert reference(KEY, data) == want


@given(
    key=st.binary(min_size=40, max_size=40), addrs=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    ports=st.tuples(*[st.integers(0, 65535)] * 2),
)  # fmt: skip
def test_against_the_definition(key: bytes, addrs: tuple[int, int], ports: tuple[int, int]) -> None:
    data = b"".join(a.to_bytes(4, "big") for a in addrs) + b"".join(
        p.to_bytes(2, "big") for p in ports
    )
    assert units().toeplitz(key, *addrs, *ports) == reference(key, data)
