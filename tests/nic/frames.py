"""Ethernet frames by hand (RFC 791, 792, 826, 9293), independent of the code under test."""

from __future__ import annotations

import struct

from tests.stack.packet import checksum

OUR_MAC = bytes.fromhex("020000000001")
PEER_MAC = bytes.fromhex("0200000000aa")
BROADCAST = b"\xff" * 6
OUR = 0x0A000001  # 10.0.0.1
PEER = 0x0A000002
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def ethernet(payload: bytes, kind: int = 0x0800, to_us: bool = True) -> bytes:
    dst, src = (OUR_MAC, PEER_MAC) if to_us else (PEER_MAC, OUR_MAC)
    return dst + src + struct.pack("!H", kind) + payload


def ipv4(src: int, dst: int, proto: int, payload: bytes, frag: int = 0x4000) -> bytes:
    head = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(payload), 7, frag, 64, proto, 0, src, dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def pseudo(src: int, dst: int, proto: int, length: int) -> bytes:
    return struct.pack("!IIHH", src, dst, proto, length)


def tcp(
    src: tuple[int, int],
    dst: tuple[int, int],
    flags: int,
    seq: int = 0,
    ack: int = 0,
    data: bytes = b"",
) -> bytes:
    """An IPv4 packet with a TCP segment, both checksums right."""
    head = struct.pack("!HHIIBBHHH", src[1], dst[1], seq, ack, 0x50, flags, 65535, 0, 0)
    total = checksum(pseudo(src[0], dst[0], 6, len(head + data)) + head + data)
    return ipv4(src[0], dst[0], 6, head[:16] + struct.pack("!H", total) + head[18:] + data)


def received(
    peer: tuple[int, int], port: int, flags: int, seq: int = 0, ack: int = 0, data: bytes = b""
) -> bytes:
    return ethernet(tcp(peer, (OUR, port), flags, seq, ack, data))


def sent(
    peer: tuple[int, int], port: int, flags: int, seq: int = 0, ack: int = 0, data: bytes = b""
) -> bytes:
    return ethernet(tcp((OUR, port), peer, flags, seq, ack, data), to_us=False)


def icmp(kind: int, code: int, body: bytes) -> bytes:
    head = struct.pack("!BBHI", kind, code, 0, 0)
    return head[:2] + struct.pack("!H", checksum(head + body)) + head[4:] + body


def arp(op: int, sender: int, target: int, mac: bytes = PEER_MAC, to: bytes = BROADCAST) -> bytes:
    body = struct.pack("!HHBBH6sI6sI", 1, 0x0800, 6, 4, op, mac, sender, b"\0" * 6, target)
    return to + mac + struct.pack("!H", 0x0806) + body
