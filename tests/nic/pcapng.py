"""A small reader of pcapng, written from draft-ietf-opsawg-pcapng, not from the writer."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Packet:
    interface: str
    time_ns: int
    data: bytes
    length: int
    comment: str
    inbound: bool


def options(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from("<HH", body, at)
        if code == 0:
            assert length == 0 and at + 4 == len(body), "opt_endofopt ends the block"
            return found
        found[code] = body[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4
    assert not body, "options without opt_endofopt"
    return found


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of each block; complains about whatever a strict reader would."""
    found, at = [], 0
    while at < len(data):
        kind, total = struct.unpack_from("<II", data, at)
        assert total % 4 == 0 and 12 <= total <= len(data) - at
        assert struct.unpack_from("<I", data, at + total - 4)[0] == total
        found.append((kind, data[at + 8 : at + total - 4]))
        at += total
    return found


def packets(data: bytes) -> list[Packet]:
    found: list[Packet] = []
    names: list[str] = []
    scales: list[int] = []
    for kind, body in blocks(data):
        if kind == 0x0A0D0D0A:
            magic, major, minor, length = struct.unpack_from("<IHHq", body)
            assert (magic, major, minor, length) == (0x1A2B3C4D, 1, 0, -1)
            options(body[16:])
            names, scales = [], []
        elif kind == 1:
            assert struct.unpack_from("<H", body)[0] == 1, "LINKTYPE_ETHERNET"
            have = options(body[8:])
            names.append(have[2].decode())
            scales.append(10 ** (9 - have[9][0]))
        else:
            assert kind == 6
            which, high, low, captured, length = struct.unpack_from("<IIIII", body)
            end = 20 + (captured + 3) // 4 * 4
            have = options(body[end:])
            flags = struct.unpack("<I", have[2])[0]
            found.append(
                Packet(
                    interface=names[which],
                    time_ns=(high << 32 | low) * scales[which],
                    data=body[20 : 20 + captured],
                    length=length,
                    comment=have.get(1, b"").decode(),
                    inbound=flags & 3 == 1,
                )
            )
    return found
