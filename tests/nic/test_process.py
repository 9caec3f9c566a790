"""A kernel TCP peer in a network namespace reaches real replicas through neat-nic."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replica.mini import ABI, Connection, ffi
from tests.waiting import wait_until

from .frames import arp, checksum, icmp, tcp
from .frames import ipv4 as ipv4_packet
from .pcapng import packets
from .rig import (
    MAC,
    MIB,
    OUR,
    Host,
    Namespace,
    Nic,
    Plan,
    Stream,
    WireQuality,
    ipv4,
    why_no_namespace,
)

PORT = 8080
WHY_NOT = why_no_namespace()
needs_namespace = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
CONNECTED, HUP = ABI.NEAT_SLOT_CONNECTED, ABI.NEAT_SLOT_HUP
TAP, WIRE, NONE = ABI.NEAT_NIC_TAP, ABI.NEAT_NIC_WIRE, ABI.NEAT_NIC_NONE


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def host(
    namespace: Namespace, nic_binary: Path, replica_binary: Path, request: pytest.FixtureRequest
) -> Iterator[Host]:
    plan = Plan(TAP, replicas=getattr(request, "param", 1))
    nic = Nic(nic_binary, plan, [namespace.tap()]).configured()
    host = Host(nic, replica_binary, PORT)
    yield host
    host.close()


class Task(threading.Thread):
    """Runs a function beside the test; join() raises what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.error: BaseException | None = None
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error

    def finish(self) -> Any:
        self.join(60)
        assert not self.is_alive(), "the client hangs"
        if self.error:
            raise self.error
        return self.result


def receive_all(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (piece := sock.recv(65536)):
        data += piece
    return bytes(data)


def exchange(client: socket.socket, server: Stream, size: int = MIB) -> None:
    """Random bytes one way, then the other; then both close, client first."""
    up, down = os.urandom(size), os.urandom(size)
    task = Task(lambda: client.sendall(up))
    got = server.read_exactly(size)
    task.finish()
    assert hashlib.sha256(got).digest() == hashlib.sha256(up).digest()
    task = Task(lambda: receive_all(client, size))
    server.write(down)
    assert hashlib.sha256(task.finish()).digest() == hashlib.sha256(down).digest()
    client.shutdown(socket.SHUT_WR)
    assert server.read() == b""
    server.close()
    assert client.recv(1) == b""
    client.close()


def ping(namespace: Namespace, size: int = 56) -> bytes:
    """RFC 792: the reply's identifier, sequence number and data are those of the request."""
    with namespace.open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        data = os.urandom(size)
        body = struct.pack("!HH", 77, 1) + data
        head = icmp(8, 0, b"")[:4]
        head = head[:2] + struct.pack("!H", checksum(b"\x08\0\0\0" + body))
        raw.sendto(head + body, (OUR, 0))
        while True:
            packet, sender = raw.recvfrom(70000)
            # A raw socket sees every reply: those to others may still be on their way.
            if sender[0] == OUR and packet[20] == 0 and packet[24:28] == body[:4]:
                assert checksum(packet[20:]) == 0
                assert packet[24:] == body
                return packet


@needs_namespace
def test_ping(host: Host, namespace: Namespace) -> None:
    ping(namespace)
    ping(namespace, 1400)


@needs_namespace
@pytest.mark.parametrize("host", [1, 2], indirect=True)
def test_a_mebibyte_both_ways(host: Host, namespace: Namespace) -> None:
    for _ in range(3):
        client = namespace.connect(PORT)
        _, server = host.accept()
        exchange(client, server)
    stats = host.nic.stats()
    assert stats["tx_malformed"] == stats["tx_fenced"] == stats["tx_failed"] == 0
    assert stats["rx_malformed"] == stats["rx_full"] == 0
    # 1 MiB in 1448-byte frames would be 725 each way and run; super-segments carried it.
    assert stats["rx_frames"] < 3 * 725


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
def test_both_replicas_get_connections(host: Host, namespace: Namespace) -> None:
    seen: set[int] = set()
    for _ in range(40):
        client = namespace.connect(PORT)
        index, server = host.accept()
        seen.add(index)
        client.sendall(b"who")
        assert server.read_exactly(3) == b"who"
        server.write(bytes([index]))
        assert receive_all(client, 1) == bytes([index])
        server.close()
        client.close()
    assert seen == {0, 1}


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
def test_connections_stay_when_their_replica_drains(host: Host, namespace: Namespace) -> None:
    pairs = []
    for _ in range(16):
        client = namespace.connect(PORT)
        pairs.append((client, *host.accept()))
    for mask in (0b01, 0b10):
        host.nic.active(mask)
        client = namespace.connect(PORT)
        index, _ = host.accept()
        assert index == mask.bit_length() - 1
        for client, _, server in pairs:
            client.sendall(b"still there?")
            assert server.read_exactly(12) == b"still there?"


@needs_namespace
def test_curl(host: Host, namespace: Namespace) -> None:
    body = os.urandom(300_000)
    command = ["ip", "netns", "exec", namespace.name]
    command += ["curl", "-sS", "--max-time", "20", f"http://{OUR}:{PORT}/file"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        _, server = host.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += server.read()
        assert request.startswith(b"GET /file HTTP/1.1\r\n")
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert curl.stdout
        assert curl.stdout.read() == body
    assert curl.returncode == 0
    server.close()


@needs_namespace
def test_we_connect_to_a_kernel_server(host: Host, namespace: Namespace) -> None:
    listener = namespace.open(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", 0))
    listener.listen()
    ours = Stream(host.apps[0].connect(ipv4("10.99.0.1"), listener.getsockname()[1]))
    client, address = listener.accept()
    client.settimeout(20)
    assert address[0] == OUR
    exchange(client, ours)


def serve_kernel(namespace: Namespace) -> socket.socket:
    listener = namespace.open(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", 0))
    listener.listen(4096)
    return listener


def connected(connection: Connection) -> Connection:
    ends = CONNECTED | HUP
    wait_until(lambda: connection.flags & ends, "an answer to connect()", 20)
    assert connection.flags & ends == CONNECTED, connection.errno
    return connection


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
def test_a_port_that_another_replica_drew_is_drawn_again(host: Host, namespace: Namespace) -> None:
    """The buckets of one go to the other, its connections stay: 600 * 600 / 28232 = 13 meet."""
    listener = serve_kernel(namespace)
    to = (ipv4("10.99.0.1"), listener.getsockname()[1])
    ours: list[Connection] = []
    for index, app in enumerate(host.apps):
        host.nic.active(1 << index)
        ours += [connected(app.connect(*to)) for _ in range(600)]
    theirs = {address[1]: peer for peer, address in (listener.accept() for _ in ours)}
    assert len(theirs) == len(ours)
    assert host.nic.stats()["tx_returned"] > 0
    for connection in ours:
        peer = theirs[connection.pub.lport]
        connection.write(b"%d" % connection.slot)
        assert receive_all(peer, 5) == b"%d" % connection.slot
        peer.close()
    listener.close()


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
def test_a_bound_port_that_another_replica_uses_is_not_available(
    host: Host, namespace: Namespace
) -> None:
    """What Linux's connect() says of a local port that is connected to the same peer."""
    listener = serve_kernel(namespace)
    to = (ipv4("10.99.0.1"), listener.getsockname()[1])
    first = connected(host.apps[0].connect(*to, lport=40000))
    second = host.apps[1].connect(*to, lport=40000)
    wait_until(lambda: second.flags & HUP, "connect() fails", 20)
    assert second.errno == errno.EADDRNOTAVAIL
    assert host.nic.stats()["tx_returned"] == 1
    peer, _ = listener.accept()
    first.write(b"still there")
    assert receive_all(peer, 11) == b"still there"
    peer.close()
    listener.close()


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
@pytest.mark.parametrize("nic", ["same", "successor"])
def test_a_bound_port_is_free_when_its_replica_has_lost_the_connection(
    host: Host, namespace: Namespace, nic: str
) -> None:
    """A stateless start: the nic saw no end of the connection, and asks before it refuses."""
    listener = serve_kernel(namespace)
    to = (ipv4("10.99.0.1"), listener.getsockname()[1])
    connected(host.apps[0].connect(*to, lport=40000))
    stale, _ = listener.accept()
    host.replicas[0].kill()
    host.replicas[0].start()
    host.apps[0].attach(host.replicas[0])
    host.replicas[0].go()
    if nic == "successor":
        host.nic.kill()
        host.nic.start()
    second = connected(host.apps[1].connect(*to, lport=40000))
    peer, address = listener.accept()
    assert address == (OUR, 40000)
    second.write(b"anew")
    assert receive_all(peer, 4) == b"anew"
    with pytest.raises(ConnectionResetError):
        stale.recv(1)
    peer.close()
    listener.close()


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
def test_an_owner_that_does_not_answer_keeps_its_port(host: Host, namespace: Namespace) -> None:
    """It may still have the connection; the second SYN is given back."""
    listener = serve_kernel(namespace)
    to = (ipv4("10.99.0.1"), listener.getsockname()[1])
    first = connected(host.apps[0].connect(*to, lport=40000))
    peer, _ = listener.accept()
    os.kill(host.replicas[0].process.pid, signal.SIGSTOP)
    second = host.apps[1].connect(*to, lport=40000)
    wait_until(lambda: second.flags & HUP, "connect() fails", 20)
    assert second.errno == errno.EADDRNOTAVAIL
    os.kill(host.replicas[0].process.pid, signal.SIGCONT)
    first.write(b"still there")
    assert receive_all(peer, 11) == b"still there"
    peer.close()
    listener.close()


@needs_namespace
def test_nobody_listens(host: Host, namespace: Namespace) -> None:
    with pytest.raises(ConnectionRefusedError):
        namespace.connect(9)


@needs_namespace
def test_a_killed_replica_gets_nothing_until_its_successor_is_there(
    host: Host, namespace: Namespace
) -> None:
    client = namespace.connect(PORT)
    host.accept()
    replica, app = host.replicas[0], host.apps[0]
    replica.kill()
    host.nic.fence(0, replica.epoch + 1)
    before = host.nic.stats()["rx_frames"]
    late = Task(lambda: namespace.connect(PORT))
    wait_until(lambda: host.nic.stats()["rx_frames"] > before, "the SYN at the nic")
    replica.start()
    app.attach(replica)
    assert app.listen(PORT, host.listeners[0]) == host.listeners[0]
    replica.go()
    fresh = late.finish()
    _, server = host.accept()
    exchange(fresh, server)
    # Stateless recovery (paper 6.3.6): the old connection is reset.
    client.sendall(b"x")
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@needs_namespace
def test_a_killed_nic_loses_no_connection(host: Host, namespace: Namespace) -> None:
    client = namespace.connect(PORT)
    _, server = host.accept()
    client.sendall(b"before")
    assert server.read_exactly(6) == b"before"
    host.nic.kill()
    client.sendall(b"after")
    host.nic.start()
    host.nic.configured()
    host.nic.queue_ready(0)
    assert server.read_exactly(5) == b"after"
    exchange(client, server)


@needs_namespace
@pytest.mark.parametrize("host", [4], indirect=True)
def test_a_killed_nic_still_knows_whose_connection_it_is(host: Host, namespace: Namespace) -> None:
    """The peer sends, we are silent, and the indirection table names another replica by now."""
    clients, data = {}, os.urandom(MIB)
    while len(clients) < 4:
        client = namespace.connect(PORT)
        index, server = host.accept()
        clients[index] = (client, server)
    for survivor in range(4):
        host.nic.active(1 << survivor)
        others = [pair for index, pair in clients.items() if index != survivor]
        tasks = [Task(lambda at=client: at.sendall(data)) for client, _ in others]  # type: ignore[misc]
        got = [server.read_exactly(MIB // 4) for _, server in others]
        host.nic.kill()
        host.nic.start()
        host.nic.configured()
        for index in range(4):
            host.nic.queue_ready(index)
        for head, (_, server) in zip(got, others, strict=True):
            assert head + server.read_exactly(MIB - len(head)) == data
        for task in tasks:
            task.finish()
    assert host.nic.stats()["flows_refused"] == 0
    for client, server in clients.values():
        exchange(client, server)


@needs_namespace
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("host", [2], indirect=True)
def test_connections_of_a_replica_that_ended_are_forgotten(
    host: Host, namespace: Namespace, restart: bool
) -> None:
    """Epoch 0: also by a nic that was down at that moment."""
    client = namespace.connect(PORT)
    index, _ = host.accept()
    assert host.nic.stats()["flows"] == 1
    if restart:
        host.nic.kill()
        host.nic.epochs[index] = 0
        host.nic.start()
        host.nic.configured()
        for queue in range(2):
            host.nic.queue_ready(queue)
    else:
        host.nic.fence(index, 0)
    assert host.nic.stats()["flows"] == 0
    client.close()


@needs_namespace
def test_a_zombie_is_not_heard(host: Host, namespace: Namespace) -> None:
    host.nic.fence(0, host.replicas[0].epoch + 1)
    bell = host.nic.bells[0]
    pair = host.nic.pairs[0].at
    slot = pair.tx.tail.v % ABI.NEAT_QP_ENTRIES
    pair.tx.desc[slot].len, pair.tx.desc[slot].epoch = 60, host.replicas[0].epoch
    pair.tx.tail.v += 1
    os.eventfd_write(bell, 1)
    wait_until(lambda: host.nic.stats()["tx_fenced"] == 1, "the frame dropped")
    assert host.nic.stats()["tx_frames"] == 0


@needs_namespace
def test_nonsense_from_a_replica_harms_nobody(host: Host, namespace: Namespace) -> None:
    """All-random descriptors and frames: counted, dropped, and the nic goes on."""
    pair, bell, queue = host.nic.pairs[0].at, host.nic.bells[0], host.nic.pairs[0]
    ring = pair.tx
    for round_ in range(200):
        slot = ring.tail.v % ABI.NEAT_QP_ENTRIES
        desc = ring.desc[slot]
        desc.len, desc.flags, desc.gso_size, desc.l4_offset = struct.unpack("IHHH", os.urandom(10))
        desc.len %= 80000 if round_ % 2 else 200
        desc.epoch = host.replicas[0].epoch
        at = 32768 + (ABI.NEAT_QP_ENTRIES + slot) * ABI.NEAT_QP_BUF
        queue.memory[at : at + 200] = os.urandom(200)
        ring.tail.v += 1
        os.eventfd_write(bell, 1)
        wait_until(lambda: ring.head.v == ring.tail.v, "the descriptor retired")
    assert host.nic.stats()["tx_malformed"] >= 199
    pair.tx.tail.v += 10_000
    pair.rx.head.v += 10_000
    os.eventfd_write(bell, 1)
    assert host.nic.stats()["loops"] > 0


def mutations(count: int) -> Iterator[bytes]:
    """Frames to our address with some bytes changed or cut off; seeded.

    ARP speaks for a host of its own, and that (bytes 28 to 31) stays: replicas believe, as RFC 826
    has it, a well-formed lie about the kernel's MAC, and would then talk to nobody.
    """
    dice = random.Random(3)
    peer, port = (ipv4("10.99.0.1"), 5000), (ipv4(OUR), PORT)
    head = MAC + b"\x02\0\0\0\0\x77\x08\0"
    quote = tcp(port, peer, 0x10, 1, 2)
    kinds = [
        head + tcp(peer, port, 0x02, 9) + b"\0" * 6,
        head + tcp(peer, port, 0x18, 10, 11, b"data" * 20),
        head + ipv4_packet(peer[0], port[0], 17, b"\x13\x88\x1f\x90\0\x10\0\0abcdefgh"),
        head + ipv4_packet(peer[0], port[0], 1, icmp(3, 4, quote)),
        head + ipv4_packet(peer[0], port[0], 1, icmp(8, 0, quote)),
        arp(1, ipv4("10.99.0.77"), port[0]),
        arp(2, ipv4("10.99.0.77"), port[0], to=MAC),
    ]
    for _ in range(count):
        frame = bytearray(dice.choice(kinds))
        for _ in range(dice.randrange(4)):
            at = dice.randrange(12, len(frame))
            if frame[12:14] != b"\x08\x06" or not 28 <= at < 32:
                frame[at] = dice.randrange(256)
        yield bytes(frame[: dice.choice([len(frame), len(frame), dice.randrange(14, len(frame))])])


@needs_namespace
@pytest.mark.parametrize("host", [2], indirect=True)
def test_nonsense_from_the_wire_harms_nobody(host: Host, namespace: Namespace) -> None:
    """Through the nic into the replicas, all with sanitizers; afterwards everything works."""
    packet_socket = namespace.open(socket.AF_PACKET, socket.SOCK_RAW)
    packet_socket.bind((namespace.device, 0x0800))
    for n, frame in enumerate(mutations(20_000)):
        packet_socket.send(frame)
        if n % 500 == 0:
            wait_until(lambda want=n: host.nic.stats()["rx_frames"] >= want, "frames read")  # type: ignore[misc]
    stats = host.nic.stats()
    assert stats["rx_malformed"] > 100
    ping(namespace)
    client = namespace.connect(PORT)
    exchange(client, host.accept()[1])


def test_nonsense_from_the_other_instance_harms_nobody(nic_binary: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nic = Nic(nic_binary, Plan(WIRE), [theirs.fileno()]).configured()
    nic.queue(0, 1)
    nic.queue_ready(0)
    dice = random.Random(4)
    for frame in mutations(2000):
        magic = dice.choice([0x5257454E, dice.randrange(2**32)])
        length = dice.choice([len(frame), dice.randrange(2**32)])
        flags, gso = dice.randrange(2**16), dice.randrange(2**16)
        ours.send(struct.pack("<IIHH", magic, length, flags, gso) + frame)
    wait_until(lambda: nic.stats()["rx_frames"] == 2000, "all read")
    stats = nic.stats()
    assert stats["rx_malformed"] > 1000
    assert stats["rx_delivered"] > 100
    ours.close()
    error = nic.receive("struct neat_msg_error", ABI.NEAT_MSG_ERROR)
    assert b"other end of the wire is gone" in ffi.string(error.text)
    nic.stats()
    nic.close()
    theirs.close()


@needs_namespace
def test_capture(host: Host, namespace: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "replica0.pcapng"
    with file.open("wb") as out:
        host.nic.capture(0, out.fileno())
    ping(namespace)
    host.nic.capture(0, None)
    host.nic.stats()
    after = time.time_ns()
    ping(namespace)
    found = [p for p in packets(file.read_bytes()) if p.data[12:14] == b"\x08\0"]
    assert [(p.inbound, p.data[34]) for p in found] == [(True, 8), (False, 0)]
    assert found[0].data[26:34] == found[1].data[30:34] + found[1].data[26:30]
    for packet in found:
        assert packet.interface == "replica0"
        assert packet.comment.startswith("replica 0 epoch 1")
        assert 0 <= after - packet.time_ns < 60 * 10**9


@needs_namespace
def test_whoever_found_the_ring_full_goes_on_when_there_is_room(
    host: Host, namespace: Namespace
) -> None:
    """One byte on each of 600 connections for 512 descriptors, while the nic is stopped."""
    pairs = [(namespace.connect(PORT), host.accept()[1]) for _ in range(600)]
    host.nic.process.send_signal(signal.SIGSTOP)
    ring = host.nic.pairs[0].at.tx
    for _, server in pairs:
        server.write(b"x")
    wait_until(lambda: ring.tail.v - ring.head.v == ABI.NEAT_QP_ENTRIES, "a full ring")
    host.nic.process.send_signal(signal.SIGCONT)
    for client, _ in pairs:
        assert client.recv(1) == b"x"
        client.close()


@needs_namespace
def test_no_traffic_no_cpu(host: Host, namespace: Namespace) -> None:
    """Here waiting is the measurement: neither loops nor CPU ticks may move."""
    namespace.inside("sysctl", "-qw", f"net.ipv6.conf.{namespace.device}.disable_ipv6=1")
    ping(namespace)
    loops, ticks = host.nic.stats()["loops"], host.nic.cpu_ticks()
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 1.0, "one second")
    assert host.nic.cpu_ticks() == ticks
    # One for our question, a few for neighbour probes of the kernel.
    assert host.nic.stats()["loops"] - loops <= 10


@needs_namespace
def test_no_answer_is_lost_when_the_keeper_reads_late(host: Host) -> None:
    """More than a socket holds (net.core.wmem_default)."""
    control, asked = host.nic.control, 0
    while asked < 2000 and select.select([], [control], [], 1)[1]:
        host.nic.send(ABI.NEAT_MSG_N_STATS, ffi.new("struct neat_msg_header *"))
        asked += 1
    for _ in range(asked):
        host.nic.receive("struct neat_msg_n_stats", ABI.NEAT_MSG_N_STATS)


@needs_namespace
def test_the_nic_opens_a_tap_by_name(
    namespace: Namespace, nic_binary: Path, replica_binary: Path
) -> None:
    nic = Nic(nic_binary, Plan(TAP, ifname="neat0"), [], namespace).configured()
    namespace.up("neat0")
    assert "qlen 10000" in namespace.inside("ip", "link", "show", "neat0")
    host = Host(nic, replica_binary, PORT)
    client = namespace.connect(PORT)
    exchange(client, host.accept()[1])
    host.close()


@needs_namespace
def test_a_deleted_tap_is_no_busy_loop(host: Host, namespace: Namespace) -> None:
    namespace.inside("ip", "link", "del", namespace.device)
    error = host.nic.receive("struct neat_msg_error", ABI.NEAT_MSG_ERROR)
    assert b"TAP device is gone" in ffi.string(error.text)
    loops = host.nic.stats()["loops"]
    assert host.nic.stats()["loops"] - loops <= 2


@needs_namespace
def test_a_nic_that_is_started_on_a_deleted_tap_serves_without_it(
    host: Host, namespace: Namespace
) -> None:
    """It says what its predecessor said; to end would be to be started again, for ever."""
    namespace.inside("ip", "link", "del", namespace.device)
    first = host.nic.receive("struct neat_msg_error", ABI.NEAT_MSG_ERROR)
    host.nic.kill()
    host.nic.start()
    again = host.nic.receive("struct neat_msg_error", ABI.NEAT_MSG_ERROR)
    assert ffi.string(again.text) == ffi.string(first.text)
    for part in (b"TAP device is gone", b"ip link del", b"local connections go on", b"neatsock up"):
        assert part in ffi.string(again.text)
    host.nic.configured()
    host.nic.queue_ready(0)
    connection = host.apps[0].connect(ipv4("10.99.0.1"), PORT)
    before = host.nic.stats()["tx_failed"]
    wait_until(lambda: host.nic.stats()["tx_failed"] > before, "what a replica sends is lost")
    assert not connection.flags & HUP


@needs_namespace
def test_wrong_tap_flags_are_explained(namespace: Namespace, nic_binary: Path) -> None:
    fd = namespace.tap(0x0002 | 0x1000)
    nic = Nic(nic_binary, Plan(TAP), [fd])
    error = nic.receive("struct neat_msg_error", ABI.NEAT_MSG_ERROR)
    assert b"IFF_VNET_HDR" in ffi.string(error.text)
    nic.close()


def test_a_zero_key_is_refused(nic_binary: Path) -> None:
    nic = Nic(nic_binary, Plan(NONE, key=bytes(40)), [])
    error = nic.receive("struct neat_msg_error", ABI.NEAT_MSG_ERROR)
    assert b"rss_key" in ffi.string(error.text)
    nic.close()


@pytest.mark.parametrize(
    "quality",
    [
        WireQuality(),
        WireQuality(seed=3, delay_us=300, loss_ppm=10_000, reorder_ppm=10_000),
        WireQuality(seed=4, jitter_us=200, duplicate_ppm=20_000, corrupt_ppm=10_000),
        WireQuality(seed=5, rate_bps=200_000_000, delay_us=1000),
    ],
    ids=["perfect", "loss and reordering", "duplicates and corruption", "200 Mbit/s"],
)
def test_two_instances_on_a_wire(
    nic_binary: Path, replica_binary: Path, quality: WireQuality
) -> None:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    hosts = []
    for n, end in enumerate(ends):
        mac = bytes([2, 0, 0, 0, 0, n + 1])
        plan = Plan(WIRE, address=f"10.99.0.{n + 2}", mac=mac, wire=quality)
        hosts.append(Host(Nic(nic_binary, plan, [end.fileno()]).configured(), replica_binary, PORT))
        end.close()
    near, far = hosts
    client = Stream(near.apps[0].connect(ipv4("10.99.0.3"), PORT))
    _, server = far.accept()
    for sender, receiver in ((client, server), (server, client)):
        data = os.urandom(MIB // 2)
        task = Task(lambda to=receiver: to.read_exactly(MIB // 2))  # type: ignore[misc]
        sender.write(data)
        assert task.finish() == data
    client.shutdown_write()
    assert server.read() == b""
    for stats in [host.nic.stats() for host in hosts]:
        assert stats["tx_malformed"] == 0
        if not quality.corrupt_ppm:
            assert stats["rx_malformed"] == stats["rx_not_ours"] == 0
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            past = {"loss": "lost", "reorder": "reordered"}.get(name, name.rstrip("e") + "ed")
            assert bool(stats[f"wire_{past}"]) == bool(getattr(quality, f"{name}_ppm"))
    for host in hosts:
        host.close()
