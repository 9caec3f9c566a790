"""UDP (RFC 768, RFC 1122 4.1, RFC 8085): scripted packets and the rings of its slots."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable

import pytest

from tests.stack.host import (
    DEAD,
    ERROR,
    HERE,
    HUP,
    LOCALHOST,
    OPT_FLAGS,
    OPT_RCVBUF,
    OPT_SNDBUF,
    OPT_TOS,
    OPT_TTL,
    READABLE,
    STATE,
    THERE,
    WRITABLE,
    Host,
)
from tests.stack.packet import checksum, ip

REUSEPORT = 256
LARGEST = 65507
RING = 2 << 20  # NEAT_TX_LOG2_MAX


def udp(
    src: int, dst: int, sport: int, dport: int, data: bytes, *, csum: int | None = None
) -> bytes:
    """An IP packet; `csum` None: the right one."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(data), 0)
    pseudo = struct.pack("!IIHH", src, dst, 17, 8 + len(data))
    value = (checksum(pseudo + head + data) or 0xFFFF) if csum is None else csum
    return ip(src, dst, 17, head[:6] + struct.pack("!H", value) + data)


def decode(packet: bytes) -> tuple[int, int, int, int, bytes]:
    """(source, destination, source port, destination port, data) of a datagram of the stack."""
    version, _, total, _, frag, _, proto, _, src, dst = struct.unpack("!BBHHHBBHII", packet[:20])
    assert (version, total, frag, proto) == (0x45, len(packet), 0x4000, 17)
    assert checksum(packet[:20]) == 0
    sport, dport, length, csum = struct.unpack("!HHHH", packet[20:28])
    assert length == len(packet) - 20
    assert csum != 0, "RFC 1122 4.1.3.4: a host sends checksums"
    assert checksum(struct.pack("!IIHH", src, dst, 17, length) + packet[20:]) == 0
    return src, dst, sport, dport, packet[28:]


# ---- in ----


def test_a_datagram_reaches_its_port(host: Host) -> None:
    slot = host.udp(53)
    host.input(udp(THERE, HERE, 4000, 53, b"question"))
    assert host.info(slot).notified == READABLE
    assert host.recv_from(slot) == (b"question", THERE, 4000)
    assert host.recv_from(slot) is None
    assert host.packets() == []


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1000, 1472])
def test_boundaries_survive(host: Host, size: int) -> None:
    slot = host.udp(53)
    data = random.Random(size).randbytes(size)
    for i in range(3):
        host.input(udp(THERE, HERE, 4000 + i, 53, data))
    assert [host.recv_from(slot) for _ in range(3)] == [(data, THERE, 4000 + i) for i in range(3)]


def test_checksums(host: Host) -> None:
    """RFC 768: 0 = the sender made none; RFC 1122 4.1.3.4: a wrong one is dropped silently."""
    slot = host.udp(53)
    host.input(udp(THERE, HERE, 4000, 53, b"none", csum=0))
    host.input(udp(THERE, HERE, 4000, 53, b"wrong", csum=0x1234))
    assert host.recv_from(slot) == (b"none", THERE, 4000)
    assert host.recv_from(slot) is None
    assert host.drops() == {"UDP_CSUM": 1} and host.packets() == []


def test_a_sum_of_zero_is_sent_as_ones(host: Host) -> None:
    slot = host.udp(1000)
    host.learn(THERE)
    pseudo = struct.pack("!IIHHHHHH", HERE, THERE, 17, 10, 1000, 2000, 10, 0)
    host.send_to(slot, THERE, 2000, struct.pack("!H", checksum(pseudo)))
    (packet,) = host.packets()
    assert packet[26:28] == b"\xff\xff"
    decode(packet)


@pytest.mark.parametrize("length", [0, 7, 9 + 4, 0xFFFF])
def test_lengths_that_make_no_sense(host: Host, length: int) -> None:
    slot = host.udp(53)
    packet = udp(THERE, HERE, 4000, 53, b"data", csum=0)
    host.input(packet[:24] + struct.pack("!H", length) + packet[26:])
    host.input(ip(THERE, HERE, 17, b"\0\1\0\2\0"))
    assert host.recv_from(slot) is None
    assert host.drops() == {"UDP_SHORT": 2}


def test_link_padding_is_no_payload(host: Host) -> None:
    slot = host.udp(53)
    packet = udp(THERE, HERE, 4000, 53, b"xy")
    host.input(packet + bytes(18))
    # A datagram shorter than its IP packet: what follows is nobody's (RFC 768 says nothing of it).
    inner = struct.pack("!HHHH", 4000, 53, 10, 0) + b"ab" + b"rest"
    host.input(ip(THERE, HERE, 17, inner))
    assert host.recv_from(slot) == (b"xy", THERE, 4000)
    assert host.recv_from(slot) == (b"ab", THERE, 4000)


def test_the_most_specific_socket_gets_it(host: Host) -> None:
    """As Linux: connected before bound to the address before bound to any."""
    any_, exact, connected = host.udp(53), host.udp(53, HERE), host.udp(53)
    host.peer(connected, THERE, 4000)
    host.input(udp(THERE, HERE, 4000, 53, b"a"))
    host.input(udp(THERE, HERE, 4001, 53, b"b"))
    host.send_to(any_, LOCALHOST, 53, b"c")
    assert host.recv_from(connected) == (b"a", THERE, 4000)
    assert host.recv_from(exact) == (b"b", THERE, 4001)
    assert host.recv_from(any_) == (b"c", LOCALHOST, 53)


def test_a_connected_socket_hears_its_peer_only(host: Host) -> None:
    slot = host.udp(53)
    host.peer(slot, THERE, 4000)
    assert (host.info(slot).notified & STATE) == STATE
    host.input(udp(THERE, HERE, 4001, 53, b"stranger"))
    host.input(udp(THERE + 1, HERE, 4000, 53, b"stranger"))
    host.input(udp(THERE, HERE, 4000, 53, b"peer"))
    assert host.recv_from(slot) == (b"peer", THERE, 4000)
    assert host.recv_from(slot) is None
    assert host.drops() == {"UDP_NO_PORT": 2}
    host.peer(slot, 0, 0)
    host.input(udp(THERE, HERE, 4001, 53, b"anybody"))
    assert host.recv_from(slot) == (b"anybody", THERE, 4001)


def test_a_group_shares_by_flow(host: Host) -> None:
    """SO_REUSEPORT: each flow has one socket, and every socket has flows."""
    group = [host.udp(53, options={OPT_FLAGS: REUSEPORT}) for _ in range(4)]
    for port in range(4000, 4400):
        host.input(udp(THERE, HERE, port, 53, b"x"))
        host.input(udp(THERE, HERE, port, 53, b"y"))
    taken = []
    for slot in group:
        mine = []
        while got := host.recv_from(slot):
            mine.append(got[2])
        assert mine[::2] == mine[1::2]
        taken.append(len(mine) // 2)
    assert sum(taken) == 400
    assert sum((n - 100) ** 2 / 100 for n in taken) < 16.27  # chi-square, 3 degrees, 0.1 %


def test_the_receive_buffer_bounds(host: Host) -> None:
    """As Linux: who goes over SO_RCVBUF is taken, the next one is dropped."""
    slot = host.udp(53, options={OPT_RCVBUF: 2304})
    for i in range(10):
        host.input(udp(THERE, HERE, 4000, 53, bytes([i]) * 1000))
    got = [host.recv_from(slot) for _ in range(3)]
    assert [g and g[0][0] for g in got] == [0, 1, 2] and host.recv_from(slot) is None
    assert host.drops() == {"UDP_FULL": 7}
    host.input(udp(THERE, HERE, 4000, 53, b"room again"))
    assert host.recv_from(slot) == (b"room again", THERE, 4000)


def test_the_ring_itself_bounds(host: Host) -> None:
    slot = host.udp(53, options={OPT_RCVBUF: 0xFFFFFFFF})
    for _ in range(70):
        host.send_to(slot, LOCALHOST, 53, bytes(LARGEST))
    count = 0
    while host.recv_from(slot):
        count += 1
    assert count == (4 << 20) // (LARGEST + 12)
    assert host.drops() == {"UDP_FULL": 70 - count}


@pytest.mark.parametrize("value", [1, 5000, 1 << 40, 2**64 - 1])
def test_a_hostile_rx_tail(host: Host, value: int) -> None:
    """Nonsense of the application costs its own datagrams, never memory of others."""
    slot = host.udp(53)
    for i in range(50):
        host.input(udp(THERE, HERE, 4000, 53, bytes([i]) * 100))
        host.lib.host_udp_rx_tail(host.h, slot, value)
    info = host.info(slot)
    host.lib.host_udp_rx_tail(host.h, slot, info.rx_head)
    host.input(udp(THERE, HERE, 4000, 53, b"sane"))
    assert host.recv_from(slot) == (b"sane", THERE, 4000)


# ---- out ----


def test_a_datagram_leaves(host: Host) -> None:
    slot = host.udp(53, options={OPT_TTL: 5, OPT_TOS: 0x10})
    host.learn(THERE)
    host.send_to(slot, THERE, 4000, b"answer")
    (packet,) = host.packets()
    assert decode(packet) == (HERE, THERE, 53, 4000, b"answer")
    assert (packet[1], packet[8]) == (0x10, 5)


def test_the_largest_datagram_of_the_wire(host: Host) -> None:
    slot = host.udp(53)
    host.learn(THERE)
    host.send_to(slot, THERE, 4000, b"x" * 1472)
    host.send_to(slot, THERE, 4000, b"after")
    packets = host.packets()
    assert [len(p) for p in packets] == [1500, 33]
    assert [p[6:8] for p in packets] == [b"\x40\0"] * 2  # DF


def joined(packets: list[bytes]) -> bytes:
    """Payload of fragments in order, their headers checked (RFC 791 3.2)."""
    data = b""
    for p in packets:
        assert checksum(p[:20]) == 0
        assert int.from_bytes(p[2:4], "big") == len(p) <= 1500
        last = p is packets[-1]
        assert int.from_bytes(p[6:8], "big") == (0 if last else 0x2000) | len(data) // 8
        assert p[4:6] == packets[0][4:6]
        assert (p[8:10], p[12:20]) == (packets[0][8:10], packets[0][12:20])
        data += p[20:]
    return data


@pytest.mark.parametrize("size", [1473, 2960 - 8, 2961 - 8, 9000, LARGEST])
def test_a_datagram_in_fragments(host: Host, size: int) -> None:
    slot = host.udp(53)
    host.learn(THERE)
    data = random.Random(size).randbytes(size)
    ids = set()
    for _ in range(20):  # also around the end of the ring, where a datagram lies in two pieces
        host.send_to(slot, THERE, 4000, data)
        packets = host.packets()
        assert len(packets) == -(-(size + 8) // 1480)
        udp = joined(packets)
        assert udp[8:] == data
        assert udp[:6] == struct.pack("!HHH", 53, 4000, size + 8)
        assert checksum(struct.pack("!IIHH", HERE, THERE, 17, len(udp)) + udp) == 0
        ids.add(packets[0][4:6])
    assert len(ids) == 20  # RFC 6864 4.1


def test_fragments_wait_for_a_neighbour(host: Host) -> None:
    slot = host.udp(53)
    host.send_to(slot, THERE, 4000, b"y" * 9000)
    assert host.packets() == []
    host.learn(THERE)
    assert joined(host.packets())[8:] == b"y" * 9000


def test_fragments_wait_for_room(host: Host) -> None:
    slot = host.udp(53)
    host.learn(THERE)
    host.lib.host_block_tx(host.h, 1)
    host.send_to(slot, THERE, 4000, b"z" * 9000)
    assert host.packets() == []
    host.lib.host_block_tx(host.h, 0)
    host.lib.host_drain(host.h)
    host.collect()
    assert joined(host.packets())[8:] == b"z" * 9000


def let_out(host: Host, frames: int) -> list[bytes]:
    """The nic takes so many frames more, in two turns: which they are."""
    for part in (frames // 2, frames - frames // 2):
        host.lib.host_room_tx(host.h, part)
        host.lib.host_drain(host.h)
    host.collect()
    return host.packets()


def by_id(packets: list[bytes]) -> list[list[bytes]]:
    groups: dict[bytes, list[bytes]] = {}
    for packet in packets:
        groups.setdefault(packet[4:6], []).append(packet)
    return list(groups.values())


@pytest.mark.parametrize("frames", [2, 5, 44, 45, 89, 100])
def test_fragments_are_sent_once_however_little_room_there_is(host: Host, frames: int) -> None:
    """First pieces without the last fill the receiver's reassembly for 30 s (RFC 1122 3.3.2)."""
    slots = [host.udp(53), host.udp(54)]
    host.learn(THERE)
    host.lib.host_block_tx(host.h, 1)
    sent = [random.Random(i).randbytes(LARGEST - i) for i in range(6)]
    for i, data in enumerate(sent):
        host.send_to(slots[i % 2], THERE, 4000, data)
    seen: list[bytes] = []
    while len(seen) < 6 * 45 and (more := let_out(host, frames)):
        seen += more
    assert let_out(host, frames) == []
    assert sorted(joined(group)[8:] for group in by_id(seen)) == sorted(sent)


def datagrams(packets: list[bytes]) -> list[bytes]:
    """What the packets carry, in fragments or not, one after the other."""
    out, group = [], []
    for packet in packets:
        group.append(packet)
        if not packet[6] & 0x20:  # MF
            out.append(joined(group)[8:] if len(group) > 1 else decode(packet)[4])
            group = []
    assert group == []
    return out


@pytest.mark.parametrize("frames", [0, 2, 3, 20, 44, 45, 46, 47])
def test_what_waited_for_a_neighbour_waits_for_room_then(host: Host, frames: int) -> None:
    """The ring is full when the answer comes: all leaves later, in order, once (decision 59)."""
    slot = host.udp(53)
    sent = [b"first", random.Random(1).randbytes(LARGEST), b"third"]
    for data in sent:
        host.send_to(slot, THERE, 4000, data)
    host.lib.host_room_tx(host.h, frames)
    host.learn(THERE)
    host.send_to(slot, THERE, 4000, b"behind them")
    seen = host.packets()
    while more := let_out(host, max(frames, 2)):
        seen += more
    assert datagrams(seen) == [*sent, b"behind them"]


def test_a_datagram_that_shrinks_between_its_fragments(host: Host) -> None:
    """Its length is the application's: what it says later costs nobody else anything."""
    slot = host.udp(53)
    host.learn(THERE)
    host.lib.host_room_tx(host.h, 20)
    host.send_to(slot, THERE, 4000, b"s" * LARGEST)
    host.lib.host_udp_relength(host.h, slot, 9000)
    assert len(let_out(host, 100)) == 20
    other = host.udp(54)
    host.send_to(other, THERE, 4000, b"o" * 9000)
    assert joined(let_out(host, 100))[8:] == b"o" * 9000


@pytest.mark.parametrize("size", [0, 1, 1999, 2048, 9000, LARGEST])
def test_local_datagrams(host: Host, size: int) -> None:
    a, b = host.udp(1000), host.udp(2000, LOCALHOST)
    data = random.Random(size).randbytes(size)
    for _ in range(40):
        host.send_to(a, LOCALHOST, 2000, data)
        assert host.recv_from(b) == (data, LOCALHOST, 1000)
    host.send_to(b, HERE, 1000, b"to our address on the wire")  # from 127.0.0.1: local too
    assert host.recv_from(a) == (b"to our address on the wire", LOCALHOST, 2000)
    assert host.packets() == []


def test_datagrams_that_cannot_be(host: Host) -> None:
    slot, lo = host.udp(1000), host.udp(1000, LOCALHOST)
    host.learn(THERE)
    for addr, port in ((0, 9), (THERE, 0), (0xE0000001, 9), (0xFFFFFFFF, 9)):
        host.send_to(slot, addr, port, b"x")
    host.send_to(lo, THERE, 9, b"127.0.0.1 never leaves")  # RFC 1122 3.2.1.3
    assert host.packets() == [] and host.drops() == {"UDP_SEND": 5}


def test_refusal(host: Host) -> None:
    """RFC 1122 4.1.3.3: port unreachable reaches the socket that is connected to that peer."""
    slot, other = host.udp(1000), host.udp(1001)
    host.peer(slot, LOCALHOST, 2000)
    host.send_to(other, LOCALHOST, 2000, b"nobody connected")
    assert not host.flags(other) & ERROR
    host.send_to(slot, LOCALHOST, 2000, b"x")
    assert host.error(slot) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("kind", "code", "want"),
    [(3, 3, errno.ECONNREFUSED), (3, 2, errno.ENOPROTOOPT), (3, 4, errno.EMSGSIZE),
     (3, 13, errno.EHOSTUNREACH), (12, 0, errno.EPROTO), (3, 0, 0), (3, 1, 0), (11, 0, 0)],
)  # fmt: skip
def test_icmp_errors(host: Host, kind: int, code: int, want: int) -> None:
    """As Linux without IP_RECVERR: only hard errors are told (icmp_err_convert)."""
    slot = host.udp(1000)
    host.learn(THERE)
    host.peer(slot, THERE, 2000)
    host.send_to(slot, THERE, 2000, b"question")
    (packet,) = host.packets()
    of_another = packet[:22] + b"\1\1" + packet[24:28]
    for quoted, told in ((of_another, 0), (packet[:28], want)):
        body = bytes([kind, code, 0, 0, 0, 0, 0, 0]) + quoted
        host.input(ip(THERE, HERE, 1, body[:2] + struct.pack("!H", checksum(body)) + body[4:]))
        assert host.error(slot) == told


def test_no_room_on_the_wire(host: Host) -> None:
    slot = host.udp(53)
    host.learn(THERE)
    host.lib.host_block_tx(host.h, 1)
    for i in range(5):
        host.send_to(slot, THERE, 4000, bytes([i]))
    assert host.packets() == []
    host.udp_close(slot)
    assert host.flags(slot)  # still there: what close() left behind waits too
    host.lib.host_block_tx(host.h, 0)
    host.lib.host_drain(host.h)
    assert [decode(p)[4] for p in host.packets()] == [bytes([i]) for i in range(5)]
    assert host.flags(slot) == 0


def test_many_local_datagrams_take_turns(host: Host) -> None:
    """More than a batch: the rest goes later, in order, and nothing is lost."""
    a, b = host.udp(1000), host.udp(2000)
    raw = b"".join(struct.pack("=IIHHI", 4, LOCALHOST, 2000, 0, i) for i in range(500))
    host.write_raw(a, raw)
    got = [host.recv_from(b) for _ in range(500)]
    assert [g and struct.unpack("=I", g[0])[0] for g in got] == list(range(500))


@pytest.mark.parametrize(
    "raw",
    [b"short", struct.pack("=IIHH", 5, LOCALHOST, 2000, 0) + b"four",
     struct.pack("=IIHH", 65508, LOCALHOST, 2000, 0) + bytes(65508),
     struct.pack("=IIHH", 0xFFFFFFFF, LOCALHOST, 2000, 0)],
)  # fmt: skip
def test_a_broken_ring_ends_its_socket(host: Host, raw: bytes) -> None:
    a, b = host.udp(1000), host.udp(2000)
    host.write_raw(a, raw)
    assert host.flags(a) & (ERROR | HUP) == ERROR | HUP and host.error(a) == errno.EINVAL
    assert host.recv_from(b) is None
    host.udp_close(a)
    assert host.flags(a) == 0
    host.send_to(b, LOCALHOST, 2000, b"others go on")
    assert host.recv_from(b) == (b"others go on", LOCALHOST, 2000)


def test_writable_after_a_full_buffer(host: Host) -> None:
    """Only who was refused room is told of it."""
    a, b = host.udp(1000), host.udp(2000, options={OPT_RCVBUF: 1 << 20})
    host.send_to(a, LOCALHOST, 2000, b"small")
    assert host.info(a).notified == 0
    host.write_raw(a, b"".join(
        struct.pack("=IIHH", 60000, LOCALHOST, 2000, 0) + bytes(60000) for _ in range(3)
    ))  # fmt: skip
    assert host.info(a).notified == WRITABLE
    assert host.recv_from(b)


def test_writable_after_a_full_ring(host: Host) -> None:
    """A send buffer of 8 MiB, which SO_SNDBUF gives, is more than the ring has."""
    a, b = host.udp(1000, options={OPT_SNDBUF: 8 << 20}), host.udp(2000)
    each = struct.pack("=IIHH", 60000, LOCALHOST, 2000, 0) + bytes(60000)
    host.write_raw(a, each * (RING // len(each)))
    assert host.info(a).notified == WRITABLE
    assert host.recv_from(b)


# ---- the end ----


def test_close_frees_slot_and_port(host: Host) -> None:
    first = host.udp(53)
    host.udp_close(first)
    assert host.flags(first) == 0
    host.input(udp(THERE, HERE, 4000, 53, b"x"))
    assert len(host.packets()) == 1  # port unreachable
    second = host.udp(53)
    host.input(udp(THERE, HERE, 4000, 53, b"y"))
    assert host.recv_from(second) == (b"y", THERE, 4000)


def test_a_successor_goes_on(host: Host) -> None:
    """W15: sockets come back from their slots; what is queued either way is not lost."""
    a, b = host.udp(1000), host.udp(2000)
    host.learn(THERE)
    host.send_to(a, LOCALHOST, 2000, b"received")
    host.peer(a, THERE, 9)
    host.lib.host_block_tx(host.h, 1)
    host.send_to(a, THERE, 9, b"waiting")
    host.lib.host_block_tx(host.h, 0)
    host.udp_reborn()
    assert [decode(p)[4] for p in host.packets()] == [b"waiting"]
    assert host.recv_from(b) == (b"received", LOCALHOST, 1000)
    host.input(udp(THERE, HERE, 8, 1000, b"stranger"))
    host.input(udp(THERE, HERE, 9, 1000, b"peer"))
    assert host.recv_from(a) == (b"peer", THERE, 9)
    assert host.flags(a) & (DEAD | HUP | ERROR) == 0


def test_sockets_come_and_go(make: Callable[..., Host]) -> None:
    """The table neither leaks nor loses anybody."""
    host, rng, live = make(), random.Random(7), {}
    for step in range(3000):
        port = rng.randrange(1, 60)
        if port in live and rng.random() < 0.5:
            host.udp_close(live.pop(port))
        elif port not in live:
            live[port] = host.udp(port)
        if live:
            port = rng.choice(list(live))
            host.send_to(live[port], LOCALHOST, port, struct.pack("I", step))
            assert host.recv_from(live[port]) == (struct.pack("I", step), LOCALHOST, port)
