"""Checksums, packet bounds and header layouts (replicas/stack/{ip.c,pkt.h,wire.h})."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.units import ffi, units


def reference(data: bytes) -> int:
    """RFC 1071 1: one's complement of the one's complement sum of 16-bit words."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_example_of_the_rfc() -> None:
    """RFC 1071 3: the sum of 00 01 f2 03 f4 f5 f6 f7 is ddf2."""
    assert units().checksum(bytes.fromhex("0001f203f4f5f6f7"), 8) == ~0xDDF2 & 0xFFFF


@pytest.mark.parametrize("n", [*range(70), 1460, 1461, 65535])
@pytest.mark.parametrize("byte", [0, 0x55, 0xFF])
def test_every_length(n: int, byte: int) -> None:
    data = bytes([byte]) * n
    assert units().checksum(data, n) == reference(data)


@given(st.binary(max_size=3000))
def test_against_the_reference(data: bytes) -> None:
    assert units().checksum(data, len(data)) == reference(data)


@given(st.binary(min_size=1, max_size=500), st.data())
def test_in_pieces_at_any_offset(data: bytes, draw: st.DataObject) -> None:
    first = draw.draw(st.integers(0, len(data)))
    second = draw.draw(st.integers(0, len(data) - first))
    assert units().checksum_split(data, len(data), first, second) == reference(data)
    even = first & ~1
    assert units().checksum_more(data, len(data), even) == reference(data)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 65535)
)
def test_pseudo_header(saddr: int, daddr: int, proto: int, length: int) -> None:
    """RFC 9293 3.1: addresses, zero, protocol, length."""
    want = ~reference(struct.pack("!IIBBH", saddr, daddr, 0, proto, length)) & 0xFFFF
    assert units().pseudo_sum(saddr, daddr, proto, length) == want


@given(*[st.integers(0, 200)] * 3, st.integers(0, 700))
def test_trim(linear: int, first: int, second: int, total: int) -> None:
    """Link-layer padding goes from the end; nothing grows, no piece is negative."""
    out = ffi.new("uint32_t[4]")
    left = units().trimmed(linear, first, second, total, out)
    assert left == min(total, linear + first + second)
    length, frags, a, b = (int(out[i]) for i in range(4))
    assert length == min(linear, left)
    assert (a, b) == (min(first, left - length), max(0, left - length - first))
    assert frags == a + b


def test_fields_are_where_the_standards_put_them() -> None:
    """RFC 894, 826, 791, 792, 768, 9293 3.1: byte offsets, counted by hand."""
    out = ffi.new("uint32_t[32]")
    n = units().field_offsets(out, 32)
    assert [int(out[i]) for i in range(n)] == [
        12,  # ethernet type
        6, 14, 24,  # ARP operation, sender's and target's protocol address
        2, 6, 9, 10, 12, 16,  # IP length, fragment, protocol, checksum, source, destination
        2,  # ICMP checksum
        4, 6,  # UDP length, checksum
        4, 8, 13, 14, 16, 18,  # TCP sequence, acknowledgement, flags, window, checksum, urgent
    ]  # fmt: skip
