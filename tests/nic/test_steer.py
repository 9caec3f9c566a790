"""Hash, indirection table, ARP and ICMP: which replica gets a frame."""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import ffi
from .frames import ACK, OUR, OUR_MAC, PEER, SYN, arp, ethernet, icmp, ipv4, received, sent, tcp

# Microsoft, "Verifying the RSS Hash Calculation": key and IPv4 vectors.
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
VECTORS = [  # destination, port, source, port, hash without and with ports
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
]
DENIED, SEND, RETURN = range(3)
NOT_OURS, MALFORMED = 0x80000003, 0x80000004
# Upper 0.1 % points of chi-square, by degrees of freedom (any table).
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 7: 24.32}


class Nic:
    def __init__(self, lib: Any, replicas: int, flows: int = 4096, key: bytes = KEY) -> None:
        self.lib, self.all = lib, (1 << replicas) - 1
        self.at = lib.nic_new(key, OUR_MAC, OUR, flows, self.all)

    def rx(self, frame: bytes, now: int = 0, ready: int | None = None) -> int:
        ready = self.all if ready is None else ready
        return int(self.lib.nic_rx(self.at, frame, len(frame), self.all, ready, now))

    def owner(self, frame: bytes, now: int = 0) -> int:
        mask = self.rx(frame, now)
        assert mask & (mask - 1) == 0, "exactly one replica"
        return mask.bit_length() - 1

    def verdict(self, frame: bytes, replica: int, now: int = 0) -> int:
        """enum steer_sent."""
        return int(self.lib.nic_tx(self.at, frame, len(frame), replica, now))

    def tx(self, frame: bytes, replica: int, now: int = 0) -> bool:
        """Whether it may leave."""
        return self.verdict(frame, replica, now) == SEND

    def active(self, mask: int) -> None:
        self.lib.nic_active(self.at, mask)

    def reta(self) -> bytes:
        out = ffi.new("uint8_t[128]")
        self.lib.nic_reta(self.at, out)
        return bytes(out)

    def counts(self) -> dict[str, int]:
        out = ffi.new("uint64_t[5]")
        self.lib.nic_counts(self.at, out)
        return dict(
            zip(("half", "open", "closing", "evicted", "refused"), map(int, out), strict=True)
        )


@pytest.fixture
def nic(lib: Any) -> Iterator[Nic]:
    nic = Nic(lib, 4)
    yield nic
    lib.nic_free(nic.at)


@pytest.mark.parametrize("dst,dport,src,sport,pair,full", VECTORS)
def test_microsoft_vectors(
    lib: Any, dst: str, dport: int, src: str, sport: int, pair: int, full: int
) -> None:
    source, target = int(ipaddress.ip_address(src)), int(ipaddress.ip_address(dst))
    assert lib.toeplitz(KEY, source, target, sport, dport) == full
    assert lib.toeplitz_pair(KEY, source, target) == pair


@pytest.mark.parametrize("active", [0b1, 0b11, 0b111, 0b1010, 0b11111, 0xFFFF])
def test_every_active_replica_has_its_share_of_buckets(nic: Nic, active: int) -> None:
    nic.active(active)
    members = [r for r in range(16) if active >> r & 1]
    counts = [nic.reta().count(r) for r in members]
    assert sum(counts) == 128
    assert max(counts) - min(counts) <= 1


def test_the_table_depends_on_the_mask_alone(nic: Nic) -> None:
    nic.active(0b0111)
    before = nic.reta()
    for mask in (0b1111, 0b0001, 0b0111):
        nic.active(mask)
    assert nic.reta() == before


def test_a_new_replica_takes_buckets_and_moves_few_others(nic: Nic) -> None:
    nic.active(0b0111)
    before = nic.reta()
    nic.active(0b1111)
    pairs = list(zip(before, nic.reta(), strict=True))
    assert sum(new == 3 for _, new in pairs) == 32
    assert sum(old != new and new != 3 for old, new in pairs) <= 32


@pytest.mark.parametrize("replicas", [2, 3, 4, 8])
def test_new_connections_spread_like_the_table(lib: Any, replicas: int) -> None:
    """100,000 SYNs from random tuples against each replica's share of the 128 buckets."""
    nic = Nic(lib, replicas, flows=1024, key=random.Random(1).randbytes(40))
    frame, out = received((PEER, 1), 80, SYN), ffi.new("uint32_t[16]")
    lib.nic_flood(nic.at, frame, len(frame), 1, 100_000, 0, out)
    counts = list(out)[:replicas]
    share = [nic.reta().count(r) / 128 * 100_000 for r in range(replicas)]
    chi = sum((seen - want) ** 2 / want for seen, want in zip(counts, share, strict=True))
    lib.nic_free(nic.at)
    assert sum(counts) == 100_000
    assert chi < CHI_SQUARE[replicas - 1], counts


def test_arp_reply_goes_to_everybody(nic: Nic) -> None:
    assert nic.rx(arp(2, PEER, OUR, to=OUR_MAC)) == nic.all


def test_arp_announcement_goes_to_everybody(nic: Nic) -> None:
    assert nic.rx(arp(1, PEER, PEER)) == nic.all


def test_arp_request_goes_to_exactly_one_that_runs(nic: Nic) -> None:
    for peer in range(PEER, PEER + 50):
        mask = nic.rx(arp(1, peer, OUR), ready=0b0110)
        assert mask in (0b0010, 0b0100)
        assert nic.rx(arp(1, peer, OUR), ready=0b0110) == mask


def test_arp_request_finds_a_queue_when_nobody_runs(nic: Nic) -> None:
    assert nic.rx(arp(1, PEER, OUR), ready=0) in (1, 2, 4, 8)


@pytest.mark.parametrize(
    "frame",
    [
        arp(1, PEER, PEER + 1),
        arp(1, OUR, OUR),
        ethernet(b"\x60" + b"\0" * 60, 0x86DD),
        ethernet(ipv4(PEER, OUR + 1, 17, b"\0" * 8)),
        b"\x02\0\0\0\0\x02" + received((PEER, 1), 2, SYN)[6:],
        ethernet(ipv4(PEER, 0xFFFFFFFF, 17, b"\0" * 8)),
    ],
    ids=["other host", "our address claimed", "IPv6", "other address", "other MAC", "broadcast"],
)
def test_not_ours(nic: Nic, frame: bytes) -> None:
    assert nic.rx(frame) == NOT_OURS


@pytest.mark.parametrize("length", [0, 13, 14, 20, 33, 34, 40, 53])
def test_truncated_frames_are_malformed(nic: Nic, length: int) -> None:
    assert nic.rx(received((PEER, 1), 2, SYN)[:length]) == MALFORMED


def test_icmp_error_goes_to_the_owner_of_the_quoted_connection(nic: Nic) -> None:
    """RFC 792: the quote is what we sent, so its source is our side."""
    peer, router = (PEER, 4321), PEER + 9
    owner = nic.owner(received(peer, 80, SYN))
    nic.active(nic.all & ~(1 << owner))
    quote = tcp((OUR, 80), peer, ACK)[:28]
    assert nic.owner(ethernet(ipv4(router, OUR, 1, icmp(3, 4, quote)))) == owner
    # A quote of an unknown connection follows the hash of that connection.
    other = (PEER, 999)
    quote = tcp((OUR, 81), other, ACK)[:28]
    by_error = nic.owner(ethernet(ipv4(router, OUR, 1, icmp(11, 0, quote))))
    assert by_error == nic.owner(received(other, 81, ACK))


def test_echo_and_fragments_have_one_home_for_each_peer(nic: Nic) -> None:
    echo = nic.owner(ethernet(ipv4(PEER, OUR, 1, icmp(8, 0, b"x" * 8))))
    first = nic.owner(ethernet(ipv4(PEER, OUR, 17, b"\x12\x34" * 8, frag=0x2000)))
    later = nic.owner(ethernet(ipv4(PEER, OUR, 17, b"\xff\xee" * 8, frag=0x0002)))
    assert echo == first == later


def test_a_replica_speaks_only_for_our_addresses(nic: Nic) -> None:
    good = sent((PEER, 1), 80, ACK)
    assert nic.tx(good, 0)
    assert not nic.tx(good[:6] + b"\x02\0\0\0\0\x09" + good[12:], 0)
    assert not nic.tx(ethernet(tcp((OUR + 1, 80), (PEER, 1), ACK), to_us=False), 0)
    assert nic.tx(arp(1, OUR, PEER, mac=OUR_MAC), 0)
    assert not nic.tx(arp(1, PEER, PEER + 1, mac=OUR_MAC), 0)
    assert not nic.tx(ethernet(b"\0" * 40, 0x86DD, to_us=False), 0)


# ---- UDP: exact filters (contract L9) ----


def udp(sport: int, dport: int) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8, 0)


def datagram(sport: int, dport: int) -> bytes:
    return ethernet(ipv4(PEER, OUR, 17, udp(sport, dport)))


def test_a_udp_port_has_one_home(nic: Nic) -> None:
    """Whatever the hash says; also for errors about what it sent."""
    for home in range(4):
        nic.lib.nic_port(nic.at, 53, home)
        for sport in range(4000, 4050):
            assert nic.owner(datagram(sport, 53)) == home
            quoted = icmp(3, 3, ipv4(OUR, PEER, 17, udp(53, sport)))
            assert nic.owner(ethernet(ipv4(PEER, OUR, 1, quoted))) == home
    nic.lib.nic_port(nic.at, 53, 0xFF)
    owners = {nic.owner(datagram(sport, 53)) for sport in range(4000, 4200)}
    assert owners == {0, 1, 2, 3}  # nobody's: by hash, one of them answers port unreachable


def test_an_answer_comes_back_before_neatd_has_told_of_the_port(nic: Nic) -> None:
    assert nic.tx(ethernet(ipv4(OUR, PEER, 17, udp(4000, 53)), to_us=False), 2)
    assert nic.owner(datagram(53, 4000)) == 2
    # What neatd said stands, whoever else sends from there.
    nic.lib.nic_port(nic.at, 4001, 1)
    assert nic.tx(ethernet(ipv4(OUR, PEER, 17, udp(4001, 53)), to_us=False), 3)
    assert nic.owner(datagram(53, 4001)) == 1
