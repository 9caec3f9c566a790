"""The packet filter by scripted packets (replicas/stack/filter.c).

Expected answers to rejected packets are those of Linux's nf_reject_ipv4 (`reject with tcp reset`,
iptables -j REJECT), sequence numbers by RFC 9293 3.10.7.1.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from neatsock.filter import RULES_MAX, parse
from tests.stack.host import (
    ESTABLISHED,
    HERE,
    LOCALHOST,
    SYN_SENT,
    THERE,
    Host,
    Peer,
    S,
)
from tests.stack.packet import Segment, bits, ip
from tests.stack.test_ip import icmp


def rules(host: Host, *texts: str, replicas: tuple[int, ...] = ()) -> None:
    packed = b"".join(parse(text, replicas).pack() for text in texts)
    assert host.lib.host_filter(host.h, packed, len(texts)) == 0


def counts(host: Host, rule: int) -> tuple[int, int]:
    lib: Any = host.lib
    return lib.host_filter_packets(host.h, rule), lib.host_filter_bytes(host.h, rule)


def segment(flags: str, **fields: Any) -> Segment:
    where = {"src": THERE, "dst": HERE, "sport": 40000, "dport": 80}
    return Segment(flags=bits(flags), **(where | fields))


def udp(dport: int, sport: int = 1, src: int = THERE) -> bytes:
    return ip(src, HERE, 17, struct.pack("!HHHH", sport, dport, 12, 0) + b"data")


def answered(host: Host, packet: bytes) -> bool:
    """The stack behind the filter answers each of the tests' packets."""
    host.input(packet)
    return bool(host.packets())


# ---- what a rule matches ----


@pytest.mark.parametrize(
    ("rule", "hit", "miss"),
    [
        ("drop in", segment("S").encode(), None),
        ("drop both", segment("S").encode(), None),
        ("drop in tcp", segment("S").encode(), udp(80)),
        ("drop in udp", udp(80), segment("S").encode()),
        ("drop in icmp", ip(THERE, HERE, 1, icmp(8, 0, 1, b"")), udp(80)),
        ("drop in from 10.0.0.2", udp(80), udp(80, src=THERE + 1)),
        ("drop in from 10.0.0.2/31", udp(80, src=THERE + 1), udp(80, src=THERE + 2)),
        ("drop in from 11.0.0.0/8", udp(80, src=0x0BFFFFFF), udp(80)),
        ("drop in to 10.0.0.0/24", udp(80), None),
        ("drop in to 10.0.1.0/24", None, udp(80)),
        ("drop in tcp to port 80", segment("S").encode(), segment("S", dport=81).encode()),
        ("drop in udp to port 80-82", udp(82), udp(83)),
        ("drop in udp to port 80-82", udp(80), udp(79)),
        ("drop in udp from port 7", udp(80, sport=7), udp(7)),
        ("drop in udp to port 0-65534", udp(80), udp(65535)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_match(host: Host, rule: str, hit: bytes | None, miss: bytes | None) -> None:
    host.learn(THERE)
    rules(host, rule)
    if hit:
        assert not answered(host, hit)
        assert host.drops()["FILTER"] == 1
        assert counts(host, 0) == (1, len(hit))
    if miss:
        before = counts(host, 0)
        assert answered(host, miss)
        assert counts(host, 0) == before


def test_the_first_match_decides(host: Host) -> None:
    rules(host, "pass in udp to port 53", "drop in udp", "pass in udp to port 54")
    assert answered(host, udp(53))
    assert not answered(host, udp(54))
    assert [counts(host, i)[0] for i in range(3)] == [1, 1, 0]


def test_a_rule_is_for_the_replicas_that_it_names(host: Host) -> None:
    rules(host, "drop in udp to port 53", replicas=(1, 15))
    assert answered(host, udp(53))
    assert counts(host, 0) == (0, 0)
    rules(host, "drop in udp to port 53", replicas=(0, 1))
    assert not answered(host, udp(53))


def test_no_rule_passes(host: Host) -> None:
    rules(host, "drop in icmp")
    assert answered(host, udp(53))
    rules(host)
    assert answered(host, udp(53))
    assert "FILTER" not in host.drops()


def test_new_rules_count_from_zero(host: Host) -> None:
    rules(host, "drop in")
    host.input(udp(1))
    rules(host, "drop in")
    assert counts(host, 0) == (0, 0)


def test_a_packet_without_ports_matches_port_0_only(host: Host) -> None:
    """Such a segment never reaches a socket; ports beyond the packet are not read."""
    rules(host, "drop in tcp to port 1-65535")
    host.input(ip(THERE, HERE, 6, b"\0\1\0"))
    assert counts(host, 0)[0] == 0
    assert host.drops() == {"TCP_SHORT": 1}


@pytest.mark.parametrize(
    ("field", "value"), [(8, 33), (9, 33), (10, 0), (10, 4), (11, 1), (20, 3), (13, 0xFF)]
)
def test_rules_that_make_no_sense_change_nothing(host: Host, field: int, value: int) -> None:
    """Prefixes, direction, ports of ICMP, action, range: as the replica reads them."""
    rules(host, "drop in udp to port 53")
    packed = bytearray(parse("drop in udp from port 1-2 to port 53").pack())
    packed[field] = value
    assert host.lib.host_filter(host.h, bytes(packed), 1) == -errno.EINVAL
    assert not answered(host, udp(53))


def test_256_rules(host: Host) -> None:
    rules(host, *[f"drop in udp to port {port}" for port in range(RULES_MAX)])
    assert not answered(host, udp(RULES_MAX - 1))
    assert answered(host, udp(RULES_MAX))
    assert host.lib.host_filter(host.h, b"", RULES_MAX + 1) == -errno.EINVAL


# ---- directions ----


def test_out(host: Host) -> None:
    """An echo request comes in, the answer does not get out; stateless."""
    rules(host, "drop out icmp to 10.0.0.2")
    assert not answered(host, ip(THERE, HERE, 1, icmp(8, 0, 1, b"x")))
    assert counts(host, 0) == (1, 29)
    assert answered(host, ip(THERE + 1, HERE, 1, icmp(8, 0, 1, b"x")))


def test_replies_need_rules_too(host: Host) -> None:
    rules(host, "drop in tcp from port 80")
    host.learn(THERE)
    slot = host.connect(THERE, 80)
    (syn,) = host.segments()
    host.input(segment("SA", sport=80, dport=syn.sport, seq=1, ack=syn.seq + 1).encode())
    assert host.state(slot) == SYN_SENT


def test_dropped_data_is_sent_again(host: Host) -> None:
    peer = Peer(host)
    slot = peer.open(host.listen(80))
    rules(host, "drop out tcp from port 80")
    host.write(slot, b"data")
    peer.none()
    rules(host)
    host.advance(S)
    assert peer.recv()[0].data == b"data"


def test_lo_is_filtered_in_both_directions(host: Host) -> None:
    host.listen(80)
    rules(host, "drop in tcp to 127.0.0.1 port 80")
    slot = host.connect(LOCALHOST, 80)
    assert host.state(slot) == SYN_SENT
    rules(host, "pass out tcp to port 80", "pass in tcp to port 80")
    host.advance(2 * S)
    assert host.state(slot) == ESTABLISHED
    assert counts(host, 0) == counts(host, 1) and counts(host, 0)[0] > 0


# ---- reject ----


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (segment("S", seq=100), segment("RA", seq=0, ack=101)),
        (segment("", seq=100, data=b"abc"), segment("RA", seq=0, ack=103)),
        (segment("F", seq=0xFFFFFFFF, data=b"a"), segment("RA", seq=0, ack=1)),
        (segment("A", seq=100, ack=777, data=b"abc"), segment("R", seq=777)),
        (segment("SA", seq=100, ack=777), segment("R", seq=777)),
        (segment("R", seq=100), None),
        (segment("RA", seq=100, ack=777), None),
    ],
)
def test_tcp_is_rejected_by_a_reset(host: Host, got: Segment, want: Segment | None) -> None:
    rules(host, "reject in tcp to port 80")
    host.learn(THERE)
    host.input(got.encode())
    sent = [(s.src, s.dst, s.sport, s.dport, s.letters, s.seq, s.ack) for s in host.segments()]
    back = want and (HERE, THERE, 80, 40000, want.letters, want.seq, want.ack)
    assert sent == ([back] if back else [])
    assert host.drops() == {"FILTER": 1}


def test_a_broken_segment_is_not_answered(host: Host) -> None:
    rules(host, "reject in tcp")
    packet = bytearray(segment("S").encode())
    packet[-1] ^= 1
    host.input(bytes(packet))
    assert host.packets() == []


def test_udp_is_rejected_by_port_unreachable(host: Host) -> None:
    rules(host, "reject in udp to port 53")
    packet = udp(53)
    host.input(packet)
    (answer,) = host.packets()
    assert answer[20:22] == bytes([3, 3])
    assert answer[28:] == packet[:28]
    assert host.drops() == {"FILTER": 1}


def test_the_answer_meets_the_rules_too(host: Host) -> None:
    rules(host, "reject in tcp", "drop out tcp")
    host.input(segment("S").encode())
    assert host.packets() == []
    rules(host, "reject both")
    host.input(segment("S").encode())
    host.input(udp(53))
    assert host.packets() == []


@pytest.mark.parametrize("addr", [LOCALHOST, THERE])
def test_a_rejected_connect_is_refused(host: Host, addr: int) -> None:
    """iptables -A OUTPUT -j REJECT --reject-with tcp-reset: connect() is ECONNREFUSED."""
    rules(host, "reject out tcp to port 80")
    host.listen(80)
    slot = host.connect(addr, 80)
    host.advance(0)
    assert host.error(slot) == errno.ECONNREFUSED
    assert host.packets() == [] or addr == THERE


def test_a_connect_rejected_coming_in_is_refused(host: Host) -> None:
    rules(host, "reject in tcp to port 80")
    host.listen(80)
    assert host.error(host.connect(LOCALHOST, 80)) == errno.ECONNREFUSED


def test_an_established_connection_is_reset(host: Host) -> None:
    peer = Peer(host)
    slot = peer.open(host.listen(80))
    rules(host, "reject out tcp from port 80")
    host.write(slot, b"data")
    host.advance(0)
    assert host.error(slot) == errno.ECONNRESET
