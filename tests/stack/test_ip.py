"""IPv4 and ICMP in front of TCP (RFC 791, 792, 826, 1122, 5461)."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.stack.host import ESTABLISHED, HERE, THERE, Host, Peer, S
from tests.stack.packet import RST, SYN, Options, Segment, checksum, decode, ip


def syn(**more: int) -> Segment:
    fields = {"src": THERE, "dst": HERE, "sport": 1000, "dport": 81, "seq": 5, "flags": SYN} | more
    return Segment(**fields)  # type: ignore[arg-type]


def with_header(packet: bytes, at: int, value: bytes, *, fix: bool = True) -> bytes:
    """Bytes of the IP header replaced, its checksum made right again."""
    head = bytearray(packet[:20])
    head[at : at + len(value)] = value
    if fix:
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return bytes(head) + packet[20:]


GOOD = syn().encode()


def bad_offset(value: int) -> bytes:
    return GOOD[20:32] + bytes([value]) + GOOD[33:]


def test_good_packet_is_answered(host: Host) -> None:
    host.input(GOOD)
    (answer,) = host.segments()
    assert answer.flags & RST


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(GOOD[:19], "SHORT", id="half a header"),
        pytest.param(b"", "SHORT", id="nothing"),
        pytest.param(with_header(GOOD, 8, b"\1", fix=False), "IP_CSUM", id="header checksum"),
        pytest.param(with_header(GOOD, 0, b"\x65"), "IP_VERSION", id="version 6"),
        pytest.param(with_header(GOOD, 0, b"\x44"), "IP_HEADER", id="header of 16 bytes"),
        pytest.param(with_header(GOOD, 0, b"\x4f"), "IP_HEADER", id="header too long"),
        pytest.param(with_header(GOOD, 2, b"\xff\xff"), "IP_HEADER", id="longer than the frame"),
        pytest.param(with_header(GOOD, 2, b"\0\x13"), "IP_HEADER", id="shorter than its header"),
        pytest.param(with_header(GOOD, 6, b"\x20\0"), "IP_FRAGMENT", id="first fragment"),
        pytest.param(with_header(GOOD, 6, b"\0\1"), "IP_FRAGMENT", id="later fragment"),
        pytest.param(syn(dst=HERE + 5).encode(), "NOT_OURS", id="another host"),
        pytest.param(syn(src=0).encode(), "IP_MARTIAN", id="from 0.0.0.0"),
        pytest.param(syn(src=0x7F000001).encode(), "IP_MARTIAN", id="from loopback"),
        pytest.param(syn(dst=0x7F000001).encode(), "IP_MARTIAN", id="to loopback"),
        pytest.param(syn(src=0xE0000001).encode(), "IP_MARTIAN", id="from multicast"),
        pytest.param(syn(src=0xFFFFFFFF).encode(), "IP_MARTIAN", id="from broadcast"),
        pytest.param(syn(src=0x0A0000FF).encode(), "IP_MARTIAN", id="from the net's broadcast"),
        pytest.param(syn(src=HERE).encode(), "IP_MARTIAN", id="from ourselves"),
        pytest.param(ip(THERE, HERE, 6, GOOD[20:39]), "TCP_SHORT", id="TCP header cut"),
        pytest.param(GOOD[:20] + GOOD[20:36] + b"\0\0" + GOOD[38:], "TCP_CSUM", id="TCP checksum"),
        pytest.param(ip(THERE, HERE, 6, bad_offset(0x40)), "TCP_SHORT", id="offset 4"),
        pytest.param(ip(THERE, HERE, 6, bad_offset(0xF0)), "TCP_SHORT", id="offset 15"),
    ],
)  # fmt: skip
def test_bad_packets_are_dropped_and_counted(host: Host, packet: bytes, reason: str) -> None:
    """RFC 1122 3.2.1: silently."""
    host.input(packet)
    assert host.packets() == []
    assert host.drops() == {reason: 1}


def test_padding_behind_the_packet_is_ignored(host: Host) -> None:
    """Ethernet's minimum of 46 bytes."""
    listener = host.listen(80)
    peer = Peer(host)
    slot = peer.open(listener)
    seg = Segment(src=THERE, dst=HERE, sport=peer.rport, dport=80, seq=peer.iss + 1,
                  ack=peer.host_iss + 1, flags=16, data=b"x")  # fmt: skip
    host.input(seg.encode() + b"padding")
    assert host.read(slot) == b"x"


def option(raw: bytes) -> bytes:
    body = GOOD[20:]
    total = 20 + len(raw) + len(body)
    head = (
        struct.pack(
            "!BBHHHBBHII", 0x40 | (5 + len(raw) // 4), 0, total, 0, 0, 64, 6, 0, THERE, HERE
        )
        + raw
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


@pytest.mark.parametrize(
    ("raw", "passes"),
    [
        pytest.param(b"\1\1\1\1", True, id="NOP"),
        pytest.param(b"\x94\4\0\0", True, id="router alert"),
        pytest.param(b"\x83\7\4\0\0\0\0\0", False, id="loose source route"),
        pytest.param(b"\x89\7\4\0\0\0\0\0", False, id="strict source route"),
        pytest.param(b"\x94\0\0\0", False, id="length 0"),
        pytest.param(b"\x94\x28\0\0", False, id="leaves the header"),
    ],
)
def test_ip_options(host: Host, raw: bytes, passes: bool) -> None:
    """RFC 1122 3.2.1.8; source routes are dropped (RFC 7126)."""
    host.input(option(raw))
    assert len(host.packets()) == int(passes)
    assert host.drops() == ({"TCP_NO_SOCKET": 1} if passes else {"IP_OPTIONS": 1})


# ---- ICMP ----


def icmp(kind: int, code: int, rest: int, body: bytes) -> bytes:
    message = struct.pack("!BBHI", kind, code, 0, rest) + body
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def test_echo(host: Host) -> None:
    """RFC 1122 3.2.2.6: identifier, sequence number and data come back."""
    host.input(ip(THERE, HERE, 1, icmp(8, 0, 0x12345678, b"are you there?")))
    (answer,) = host.packets()
    assert answer[20:] == icmp(0, 0, 0x12345678, b"are you there?")
    assert struct.unpack("!II", answer[12:20]) == (HERE, THERE)


@pytest.mark.parametrize(
    "message", [icmp(8, 0, 1, b"x")[:-1], b"\x08\0\0", icmp(0, 0, 1, b""), icmp(13, 0, 1, b"")]
)
def test_other_icmp_is_not_answered(host: Host, message: bytes) -> None:
    host.input(ip(THERE, HERE, 1, message))
    assert host.packets() == []


def test_udp_to_no_port(host: Host) -> None:
    """RFC 1122 4.1.3.1; the error quotes header and 8 bytes (RFC 792)."""
    udp = struct.pack("!HHHH", 1, 2, 12, 0) + b"data"
    packet = ip(THERE, HERE, 17, udp)
    host.input(packet)
    (answer,) = host.packets()
    assert answer[20:22] == bytes([3, 3])
    assert answer[28:] == packet[:28]


def test_udp_to_no_port_behind_ip_options(host: Host) -> None:
    """The error goes to the source of the header, not to an address that options spell."""
    udp = struct.pack("!HHHH", 1, 2, 12, 0) + b"data"
    raw = b"\x94\4\0\0" * 2
    plain = ip(THERE, HERE, 17, raw + udp)
    packet = with_header(plain, 0, b"\x47")
    head = bytearray(packet[:28])
    head[10:12] = b"\0\0"
    head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    packet = bytes(head) + packet[28:]
    host.input(packet)
    (answer,) = host.packets()
    assert struct.unpack("!II", answer[12:20]) == (HERE, THERE)
    assert answer[28:] == packet[:36]


def test_unknown_protocol(host: Host) -> None:
    packet = ip(THERE, HERE, 99, b"whatever")
    host.input(packet)
    (answer,) = host.packets()
    assert answer[20:22] == bytes([3, 2])


def test_icmp_errors_are_bounded(host: Host) -> None:
    """RFC 1812 4.3.2.8; here 50 at once, then 1000 a second."""
    for _ in range(200):
        host.input(ip(THERE, HERE, 99, b"whatever"))
    assert len(host.packets()) == 50
    host.advance(S)
    for _ in range(200):
        host.input(ip(THERE, HERE, 99, b"whatever"))
    assert len(host.packets()) == 50


def quoted(host: Host, code: int, seq: int | None = None) -> tuple[int, Segment]:
    """connect() that is answered by destination unreachable; the slot and our SYN."""
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    packet = host.packets()[-1]
    sent = decode(packet)
    if seq is not None:
        packet = packet[:24] + (sent.seq + seq).to_bytes(4, "big") + packet[28:]
    host.input(ip(THERE + 5, HERE, 1, icmp(3, code, 0, packet[:28])))
    return slot, sent


@pytest.mark.parametrize(
    ("code", "want"),
    [(0, errno.ENETUNREACH), (1, errno.EHOSTUNREACH), (2, errno.ENOPROTOOPT),
     (3, errno.ECONNREFUSED), (13, errno.EHOSTUNREACH)],
)  # fmt: skip
def test_unreachable_ends_a_connect(host: Host, code: int, want: int) -> None:
    """Linux icmp_err_convert; RFC 5461 2.1 for opening connections."""
    slot, _ = quoted(host, code)
    assert host.error(slot) == want
    assert host.blocks == []


def test_unreachable_about_something_else_is_ignored(host: Host) -> None:
    """RFC 5927 4: the quoted number must be in flight."""
    slot, _ = quoted(host, 1, seq=1000)
    assert host.error(slot) == 0
    assert len(host.blocks) == 1


def test_unreachable_does_not_end_a_connection(host: Host) -> None:
    """RFC 1122 4.2.3.9, RFC 5461: a soft error; it is the reason of a later timeout."""
    peer = Peer(host)
    slot = peer.open(host.listen(80), Options(mss=1460))
    host.write(slot, b"data")
    (packet,) = host.packets()
    host.input(ip(THERE, HERE, 1, icmp(3, 1, 0, packet[:28])))
    assert host.state(slot) == ESTABLISHED
    host.advance(3600 * S)
    assert host.error(slot) == errno.EHOSTUNREACH


# ---- neighbours ----


def test_packet_waits_for_its_neighbour(host: Host) -> None:
    """RFC 1122 2.3.2.2: the last packet is kept while ARP asks."""
    host.connect(THERE, 80)
    assert host.segments() == []
    host.learn(THERE)
    (first,) = host.segments()
    assert first.flags == SYN
