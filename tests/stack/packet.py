"""IPv4 and TCP segments as the tests write and read them: an independent encoder and decoder.

Nothing here is shared with the stack, so a checksum or an option that both sides get wrong in the
same way is unlikely. Addresses and ports are integers in host order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
LETTERS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK, "U": URG}


def bits(letters: str) -> int:
    """Flags from letters as tcpdump writes them: ``bits("SA")`` is SYN and ACK."""
    return sum(LETTERS[letter] for letter in letters)


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of `data`, 16-bit words in network order."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Options:
    """TCP options; None or empty = absent."""

    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    ts: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        """Padded with NOPs to whole words."""
        out = b""
        if self.mss is not None:
            out += struct.pack("!BBH", 2, 4, self.mss)
        if self.sack_ok:
            out += b"\4\2"
        if self.ts is not None:
            out += b"\1" * (-(len(out) + 10) % 4) + struct.pack("!BBII", 8, 10, *self.ts)
        if self.wscale is not None:
            out += b"\3\3" + bytes([self.wscale])
        if self.sack:
            out += b"\1" * (-(len(out) + 2) % 4) + bytes([5, 2 + 8 * len(self.sack)])
            out += b"".join(struct.pack("!II", start, end) for start, end in self.sack)
        return out + b"\1" * (-len(out) % 4)


def decode_options(raw: bytes) -> Options:
    """Raises ValueError for an option that leaves the header."""
    found = Options()
    i = 0
    while i < len(raw) and raw[i] != 0:
        if raw[i] == 1:
            i += 1
            continue
        if i + 2 > len(raw) or raw[i + 1] < 2 or i + raw[i + 1] > len(raw):
            raise ValueError(f"option {raw[i]} at {i} of {raw.hex()} leaves the header")
        kind, body = raw[i], raw[i + 2 : i + raw[i + 1]]
        if kind == 2:
            found = replace(found, mss=struct.unpack("!H", body)[0])
        elif kind == 3:
            found = replace(found, wscale=body[0])
        elif kind == 4:
            found = replace(found, sack_ok=True)
        elif kind == 5:
            edges = struct.unpack(f"!{len(body) // 4}I", body)
            found = replace(found, sack=tuple(zip(edges[::2], edges[1::2], strict=True)))
        elif kind == 8:
            found = replace(found, ts=struct.unpack("!II", body))
        i += raw[i + 1]
    return found


@dataclass(frozen=True)
class Segment:
    """One TCP segment with its addresses; numbers as on the wire. `at`: microseconds."""

    src: int = 0
    dst: int = 0
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 65535
    options: Options = Options()
    data: bytes = b""
    tos: int = 0
    ttl: int = 64
    at: int = 0
    raw_options: bytes | None = None

    def encode(self) -> bytes:
        """The IP packet, both checksums right."""
        raw = self.options.encode() if self.raw_options is None else self.raw_options
        tcp = struct.pack(
            "!HHIIBBHHH", self.sport, self.dport, self.seq & 0xFFFFFFFF, self.ack & 0xFFFFFFFF,
            (20 + len(raw)) // 4 << 4, self.flags, self.window, 0, 0,
        ) + raw + self.data  # fmt: skip
        pseudo = struct.pack("!IIHH", self.src, self.dst, 6, len(tcp))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        return ip(self.src, self.dst, 6, tcp, tos=self.tos, ttl=self.ttl)

    @property
    def letters(self) -> str:
        """Flags in the order SFRAU; PSH is `push`: where it is set is the sender's taste."""
        return "".join(letter for letter in "SFRAU" if self.flags & LETTERS[letter])

    @property
    def push(self) -> bool:
        return bool(self.flags & PSH)


def ip(src: int, dst: int, proto: int, body: bytes, *, tos: int = 0, ttl: int = 64) -> bytes:
    """IPv4 packet around `body`."""
    total = 20 + len(body)
    head = struct.pack("!BBHHHBBHII", 0x45, tos, total, 0, 0x4000, ttl, proto, 0, src, dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def decode(packet: bytes, at: int = 0) -> Segment:
    """A packet of the stack; AssertionError when anything about its headers is wrong."""
    head, tcp = packet[:20], packet[20:]
    version, tos, total, _, frag, ttl, proto, _, src, dst = struct.unpack("!BBHHHBBHII", head)
    assert (version, total, frag, proto) == (0x45, len(packet), 0x4000, 6)
    assert checksum(head) == 0
    assert checksum(struct.pack("!IIHH", src, dst, 6, len(tcp)) + tcp) == 0
    sport, dport, seq, ack, offset, flags, window, _, urgent = struct.unpack("!HHIIBBHHH", tcp[:20])
    assert offset & 15 == 0
    assert urgent == 0
    end = (offset >> 4) * 4
    return Segment(
        src=src, dst=dst, sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window,
        options=decode_options(tcp[20:end]), data=tcp[end:], tos=tos, ttl=ttl, at=at,
    )  # fmt: skip
