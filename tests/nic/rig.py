"""neat-nic between real neat-replica processes and a kernel network namespace.

Plays the keeper of both and the library of one application for each replica, on top of
tests/replica/mini.py. No waiting policy, no shim.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.replica.mini import ABI, LARGE, SLOT_LARGE, App, Connection, Object, Replica, ffi
from tests.waiting import wait_until

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100
CLONE_NEWNET = 0x40000000
MIB = 1 << 20
OUR, KERNEL = "10.99.0.2", "10.99.0.1"
MAC = bytes.fromhex("02006e656174")
CLOSED, RX_EOF = 0, 16
ALL = 2**32 - 1
FLOWS = 4096


def ipv4(text: str) -> int:
    return int(struct.unpack("!I", socket.inet_aton(text))[0])


# ---- the kernel's side ----


class Namespace:
    """A network namespace with one TAP in it, whose descriptor is ours."""

    def __init__(self) -> None:
        self.name = f"neat-test-{os.getpid()}-{os.urandom(3).hex()}"
        self.run("ip", "netns", "add", self.name)
        self.taps: list[int] = []

    @staticmethod
    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def inside(self, *command: str) -> str:
        return self.run("ip", "netns", "exec", self.name, *command)

    def tap(self, flags: int = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE) -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self.taps.append(fd)
        answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"neatt%d", flags))
        self.device = answer[:16].rstrip(b"\0").decode()
        self.run("ip", "link", "set", self.device, "netns", self.name)
        self.up(self.device)
        return fd

    def up(self, device: str) -> None:
        self.inside("ip", "addr", "add", f"{KERNEL}/24", "dev", device)
        self.inside("ip", "link", "set", device, "up")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets made by this thread meanwhile belong to the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(home.fileno(), CLONE_NEWNET)

    def open(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        with self.entered():
            made = socket.socket(family, kind, proto)
        made.settimeout(20)
        return made

    def connect(self, port: int, address: str = OUR) -> socket.socket:
        made = self.open(socket.AF_INET, socket.SOCK_STREAM)
        made.connect((address, port))
        return made

    def close(self) -> None:
        for fd in self.taps:
            os.close(fd)
        self.run("ip", "netns", "del", self.name)


# ---- the keeper's side ----


@dataclass(frozen=True)
class WireQuality:
    """struct neat_wire: microseconds, frames per million, bit/s."""

    seed: int = 1
    rate_bps: int = 0
    delay_us: int = 0
    jitter_us: int = 0
    loss_ppm: int = 0
    reorder_ppm: int = 0
    duplicate_ppm: int = 0
    corrupt_ppm: int = 0


@dataclass(frozen=True)
class Plan:
    """What N_CONFIG says."""

    backend: int
    replicas: int = 1
    address: str = OUR
    mac: bytes = MAC
    mtu: int = 1500
    ifname: str = ""
    active: int = 0
    key: bytes = field(default_factory=lambda: os.urandom(40))
    wire: WireQuality = WireQuality()


class Nic:
    """A neat-nic process, its control socket, and what a keeper would replay to its successor."""

    def __init__(
        self, binary: Path, plan: Plan, fds: list[int], namespace: Namespace | None = None
    ) -> None:
        self.binary, self.plan, self.fds, self.namespace = binary, plan, fds, namespace
        self.pairs: dict[int, Object] = {}
        self.bells: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        self.mask = 0
        self.flows = Object("struct neat_flow_table", ABI.NEAT_OBJ_FLOWS, 0, 64 + 32 * FLOWS)
        self.start()

    def start(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(10)
        prefix = ["ip", "netns", "exec", self.namespace.name] if self.namespace else []

        def give_fd3() -> None:
            os.dup2(theirs.fileno(), 3)

        command = [*prefix, str(self.binary)]
        self.process = subprocess.Popen(
            command, preexec_fn=give_fd3, pass_fds=[3], stderr=subprocess.PIPE, text=True
        )
        theirs.close()
        self.configure(self.plan, self.fds)
        header = ffi.new("struct neat_msg_header *")
        self.send(ABI.NEAT_MSG_N_FLOWS, header, [self.flows.fd])
        if self.mask:
            self.numbered(ABI.NEAT_MSG_N_ACTIVE, self.mask, 0)
        for index in self.pairs:
            self.queue(index, self.epochs[index])

    def configure(self, plan: Plan, fds: list[int] | None = None) -> None:
        message = ffi.new("struct neat_msg_n_config *")
        message.backend, message.replicas, message.active = plan.backend, plan.replicas, plan.active
        message.addr, message.prefix, message.mtu = ipv4(plan.address), 24, plan.mtu
        ffi.memmove(message.mac, plan.mac, 6)
        ffi.memmove(message.rss_key, plan.key, 40)
        ffi.memmove(message.ifname, plan.ifname.encode(), len(plan.ifname))
        for name, value in vars(plan.wire).items():
            setattr(message.wire, name, value)
        self.send(ABI.NEAT_MSG_N_CONFIG, message, fds)

    def configured(self) -> Nic:
        assert self.receive("struct neat_msg_n_queue", ABI.NEAT_MSG_N_READY).replica == ALL
        return self

    def send(self, kind: int, message: Any, fds: list[int] | None = None) -> None:
        header = ffi.cast("struct neat_msg_header *", message)
        header.magic, header.version, header.type = ABI.NEAT_ABI_MAGIC, ABI.NEAT_ABI_VERSION, kind
        header.len = ffi.sizeof(message[0])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([bytes(ffi.buffer(message))], rights)

    def receive(self, ctype: str, kind: int) -> Any:
        message = ffi.new(ctype + " *")
        data = self.control.recv(8192)
        assert data, f"neat-nic died: {self.process.communicate()[1]}"
        ffi.memmove(message, data, min(len(data), ffi.sizeof(message[0])))
        assert message.h.type == kind, self.error_text(data)
        return message

    @staticmethod
    def error_text(data: bytes) -> str:
        return data[24:].split(b"\0")[0].decode(errors="replace")

    def numbered(self, kind: int, replica: int, epoch: int, fds: list[int] | None = None) -> None:
        message = ffi.new("struct neat_msg_n_queue *")
        message.replica, message.epoch = replica, epoch
        self.send(kind, message, fds)

    def queue(self, index: int, epoch: int) -> None:
        if index not in self.pairs:
            size = 71335936  # NEAT_QP_SIZE
            self.pairs[index] = Object(
                "struct neat_queue_pair", ABI.NEAT_OBJ_QUEUE_PAIR, index, size
            )
            self.bells[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epochs[index] = epoch
        fds = [self.pairs[index].fd, self.bells[index]]
        self.numbered(ABI.NEAT_MSG_N_QUEUE, index, epoch, fds)

    def queue_ready(self, index: int) -> None:
        assert self.receive("struct neat_msg_n_queue", ABI.NEAT_MSG_N_READY).replica == index

    def fence(self, index: int, epoch: int) -> None:
        self.epochs[index] = epoch
        self.numbered(ABI.NEAT_MSG_N_FENCE, index, epoch)
        self.stats()

    def active(self, mask: int) -> None:
        self.mask = mask
        self.numbered(ABI.NEAT_MSG_N_ACTIVE, mask, 0)
        self.stats()  # messages are taken in order: the mask is in force now

    def capture(self, index: int, fd: int | None) -> None:
        message = ffi.new("struct neat_msg_n_capture *")
        message.replica = index
        self.send(ABI.NEAT_MSG_N_CAPTURE, message, [fd] if fd is not None else None)

    def stats(self) -> dict[str, int]:
        self.send(ABI.NEAT_MSG_N_STATS, ffi.new("struct neat_msg_header *"))
        answer = self.receive("struct neat_msg_n_stats", ABI.NEAT_MSG_N_STATS)
        names = ffi.typeof("enum neat_nic_stat").relements
        counts = {name.removeprefix("NEAT_NIC_").lower(): at for name, at in names.items()}
        return {name: int(answer.count[at]) for name, at in counts.items() if name != "stats"}

    def cpu_ticks(self) -> int:
        text = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(text[11]) + int(text[12])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr
        self.process.stderr.close()
        self.control.close()

    def close(self) -> None:
        self.kill()
        for fd in self.bells.values():
            os.close(fd)


class NicReplica(Replica):
    """A replica with an index and a queue pair."""

    def __init__(self, binary: Path, nic: Nic, index: int = 0) -> None:
        self.index, self.nic = index, nic
        super().__init__(binary)

    def start(self) -> None:
        # Sends R_CONFIG with index 0 through our send(), which puts the right one in.
        super().start()
        if self.epoch == 1:
            self.nic.queue(self.index, self.epoch)
            self.nic.queue_ready(self.index)
        else:
            self.nic.fence(self.index, self.epoch)
        fds = [self.nic.pairs[self.index].fd, self.nic.bells[self.index]]
        self.send(ABI.NEAT_MSG_R_QUEUE, ffi.new("struct neat_msg_header *"), fds)

    def send(self, kind: int, message: Any, fds: list[int] | None = None) -> None:
        if kind == ABI.NEAT_MSG_R_CONFIG:
            message.index = self.index
        super().send(kind, message, fds)


# ---- the application's side ----


class Stream:
    """A connection with a 1 MiB send ring, so that super-segments happen."""

    def __init__(self, connection: Connection) -> None:
        self.at = connection
        self.app = connection.app
        self.ring = 0

    def read(self, limit: int = MIB) -> bytes:
        """What is there; empty at EOF. Waits for one or the other."""
        pub, words = self.at.pub, self.at.words
        tail = int(words.rx_tail.v)
        wait_until(lambda: pub.rx_head.v != tail or self.at.flags & RX_EOF, "bytes or EOF", 20)
        head, word = int(pub.rx_head.v), int(pub.rx_ring.v)
        length = min(head - tail, limit)
        size, at = 1 << (word & 255), tail - (word >> 8)
        base = self.at.received_at(size)
        memory = self.app.app.memory
        first = min(length, size - at % size)
        data = bytes(memory[base + at % size : base + at % size + first])
        data += bytes(memory[base : base + length - first])
        words.rx_tail.v = tail + length
        self.at.kick()
        return data

    def read_exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.read(length - len(data))
            if not piece:
                raise AssertionError(f"EOF after {len(data)} of {length} bytes")
            data += piece
        return bytes(data)

    def room(self) -> int:
        words, pub = self.at.words, self.at.pub
        return int(min(pub.tx_limit.v, MIB) - (words.tx_tail.v - pub.tx_una.v))

    def write(self, data: bytes) -> None:
        words = self.at.words
        if not self.ring:
            wait_until(lambda: self.at.pub.tx_una.v == words.tx_tail.v, "an empty ring", 20)
            self.ring = int(words.tx_tail.v)
            words.tx_ring.v = self.ring << 8 | 20
        base, view = LARGE + self.at.slot * SLOT_LARGE + 8 * MIB + MIB, memoryview(data)
        while view:
            room = wait_until(lambda: max(0, self.room()), "room to send", 20)
            tail = int(words.tx_tail.v)
            at = (tail - self.ring) % MIB
            length = min(room, len(view), MIB - at)
            self.app.app.memory[base + at : base + at + length] = bytes(view[:length])
            words.tx_tail.v = tail + length
            self.at.kick()
            view = view[length:]

    def shutdown_write(self) -> None:
        self.at.shutdown_write()

    def close(self) -> None:
        self.at.close()


class Host:
    """A nic, its replicas, and one application in each that listens on the same port."""

    def __init__(self, nic: Nic, replica_binary: Path, port: int = 0) -> None:
        self.nic, self.port = nic, port
        self.replicas = [NicReplica(replica_binary, nic, r) for r in range(nic.plan.replicas)]
        self.apps = [App(replica, 1) for replica in self.replicas]
        self.listeners = [app.listen(port) for app in self.apps] if port else []
        for replica in self.replicas:
            replica.go()

    def ends(self) -> list[tuple[App, int]]:
        return list(zip(self.apps, self.listeners, strict=True))

    def try_accept(self) -> tuple[int, Stream] | None:
        for index, (app, listener) in enumerate(self.ends()):
            pub, words = app.pub.at.slots[listener], app.app.at.slots[listener]
            if pub.accept_tail.v != words.accept_head.v:
                return index, Stream(app.accept(listener))
        return None

    def accept(self) -> tuple[int, Stream]:
        found: tuple[int, Stream] = wait_until(self.try_accept, "a connection to accept", 20)
        return found

    def close(self) -> None:
        for replica in self.replicas:
            replica.kill()
        self.nic.close()


def why_no_namespace() -> str:
    """Empty if network namespaces and TAP work here, else the reason to skip."""
    if os.geteuid():
        return "needs root (network namespace, TAP)"
    try:
        namespace = Namespace()
        try:
            namespace.tap()
        finally:
            namespace.close()
    except FileNotFoundError as error:
        return f"needs iproute2 and /dev/net/tun: {error}"
    except (OSError, subprocess.CalledProcessError) as error:
        number = getattr(error, "errno", None)
        return f"no network namespace here: {errno.errorcode.get(number or 0, error)}"
    return ""
