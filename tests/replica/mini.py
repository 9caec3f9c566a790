"""A keeper and an application in a few lines of Python: drives a real neat-replica process.

Plays the keeper's end of fd 3 and the library's end of segments and channels, over the layouts of
neat_abi.h (cffi). It is no substitute for either: no waiting policy, no fd table.
"""

from __future__ import annotations

import array
import mmap
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

import cffi

from ..waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE exists from Python 3.12 on
ffi = cffi.FFI()
ffi.cdef(
    subprocess.run(
        ["gcc", "-E", "-P", "-DNEAT_CDEF", str(ROOT / "replicas/abi/neat_abi.h")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
)
ABI: Any = ffi.dlopen(None)
SMALL, LARGE = 16777216, 285212672
SLOT_LARGE = 12 << 20  # 8 MiB for what comes in, 4 for what goes out
SEG_APP_SIZE = LARGE + 65536 * SLOT_LARGE


class Object:
    """One shared object: a memfd with its header, mapped here."""

    def __init__(self, ctype: str, kind: int, index: int, size: int | None = None) -> None:
        self.size = size or ffi.sizeof(ctype)
        self.fd = os.memfd_create("neat-test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        flags = mmap.MAP_SHARED | MAP_NORESERVE
        self.memory = mmap.mmap(self.fd, self.size, flags)
        self.at = ffi.cast(ctype + " *", ffi.from_buffer(self.memory))
        header = self.at.h
        header.magic, header.version, header.object = ABI.NEAT_ABI_MAGIC, ABI.NEAT_ABI_VERSION, kind
        header.index, header.size = index, self.size


class Replica:
    """A neat-replica process and its control socket."""

    def __init__(self, binary: Path, arena_bytes: int = 1 << 30) -> None:
        self.binary = binary
        self.arena = os.memfd_create("neat-arena", os.MFD_CLOEXEC)
        os.ftruncate(self.arena, arena_bytes)
        self.status = Object("struct neat_replica_status", ABI.NEAT_OBJ_STATUS, 0)
        self.secret = secrets.token_bytes(32)
        self.epoch = 0
        self.start()

    def start(self, adopt: bool = False, death: int = 0) -> None:
        self.epoch += 1
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def give_fd3() -> None:
            os.dup2(theirs.fileno(), 3)

        self.process = subprocess.Popen([self.binary], preexec_fn=give_fd3, pass_fds=[3])
        theirs.close()
        config = ffi.new("struct neat_msg_r_config *")
        config.epoch, config.spin_us, config.batch, config.time_wait_ms = self.epoch, 50, 64, 1000
        config.adopt, config.death = adopt, death
        ffi.memmove(config.secret, self.secret, 32)
        self.send(ABI.NEAT_MSG_R_CONFIG, config, [self.arena, self.status.fd])

    def send(self, kind: int, message: Any, fds: list[int] | None = None) -> None:
        header = ffi.cast("struct neat_msg_header *", message)
        header.magic, header.version, header.type = ABI.NEAT_ABI_MAGIC, ABI.NEAT_ABI_VERSION, kind
        header.len = ffi.sizeof(message[0])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([bytes(ffi.buffer(message))], rights)

    def receive(self, ctype: str, kind: int) -> Any:
        self.control.settimeout(10)
        while True:
            data = self.control.recv(8192)
            header = ffi.from_buffer("struct neat_msg_header *", data)
            if header.type != ABI.NEAT_MSG_R_PARKED:
                break
        assert header.type == kind
        message = ffi.new(ctype + " *")
        ffi.memmove(message, data, ffi.sizeof(message[0]))
        return message

    def go(self) -> None:
        self.send(ABI.NEAT_MSG_R_START, ffi.new("struct neat_msg_header *"))
        assert self.receive("struct neat_msg_r_config", ABI.NEAT_MSG_R_READY).epoch == self.epoch

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.control.close()

    def cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])


class App:
    """An application with one process."""

    def __init__(self, replica: Replica, app_id: int) -> None:
        self.app_id = app_id
        self.pub = Object("struct neat_seg_pub", ABI.NEAT_OBJ_SEG_PUB, 0)
        self.app = Object("struct neat_seg_app", ABI.NEAT_OBJ_SEG_APP, 0, SEG_APP_SIZE)
        self.channels = Object("struct neat_channels", ABI.NEAT_OBJ_CHANNELS, 0)
        self.channel = self.channels.at.ch[0]
        self.channels.at.open[0].v = 1
        self.next_slot = 32768
        self.attach(replica)

    def attach(self, replica: Replica) -> None:
        self.replica = replica
        segment = ffi.new("struct neat_msg_r_app *")
        segment.app_id = self.app_id
        replica.send(ABI.NEAT_MSG_R_SEGMENT, segment, [self.pub.fd, self.app.fd, self.channels.fd])

    def gone(self) -> None:
        message = ffi.new("struct neat_msg_r_app *")
        message.app_id = self.app_id
        self.replica.send(ABI.NEAT_MSG_R_APP_GONE, message)

    def listen(self, port: int, slot: int = 0, gen: int = 0) -> int:
        message = ffi.new("struct neat_msg_r_listen *")
        message.app_id, message.port, message.backlog, message.slot = self.app_id, port, 128, slot
        message.gen = gen
        self.replica.send(ABI.NEAT_MSG_R_LISTEN, message)
        answer = self.replica.receive("struct neat_msg_r_listen", ABI.NEAT_MSG_R_LISTENING)
        assert answer.status == 0
        return int(answer.slot)

    def push(self, op: int, slot: int, gen: int) -> None:
        channel = self.channel
        tail = channel.cmd_tail.v
        channel.cmd[tail % ABI.NEAT_CMD_ENTRIES].v = op << 56 | (gen & 0xFFFF) << 32 | slot
        channel.cmd_tail.v = tail + 1
        self.wake()

    def wake(self) -> None:
        """The futex side of the protocol is the library's; a byte on fd 3 wakes the replica too."""
        if self.app.at.replica_asleep.v and self.replica.process.poll() is None:
            message = ffi.new("struct neat_msg_r_listen *")
            message.app_id = 2**32 - 1
            self.replica.send(ABI.NEAT_MSG_R_UNLISTEN, message)

    def connect(self, addr: int, port: int, lport: int = 0) -> Connection:
        slot = self.next_slot
        self.next_slot += 1
        words = self.app.at.slots[slot]
        words.raddr, words.rport, words.laddr, words.lport = addr, port, 0, lport
        self.push(ABI.NEAT_CMD_CONNECT, slot, 1)
        return Connection(self, slot, 1)

    def accept(self, listener: int) -> Connection:
        pub, words = self.pub.at.slots[listener], self.app.at.slots[listener]
        wait_until(lambda: pub.accept_tail.v != words.accept_head.v, "a connection to accept")
        ring = self.pub.at.accept[pub.accept_ring]
        entry = ring.entry[words.accept_head.v % ABI.NEAT_ACCEPT_ENTRIES].v
        words.accept_head.v += 1
        slot = entry & 0xFFFFFFFF
        self.app.at.slots[slot].accepted.v = entry >> 32 << 32 | 1
        return Connection(self, slot, entry >> 32)


class Connection:
    def __init__(self, app: App, slot: int, gen: int) -> None:
        self.app, self.slot, self.gen = app, slot, gen
        self.pub, self.words = app.pub.at.slots[slot], app.app.at.slots[slot]
        self.words.tx_ring.v = ABI.NEAT_RING_LOG2_MIN

    @property
    def flags(self) -> int:
        return int(self.pub.status.v) & 0xFFFFFFFF

    @property
    def errno(self) -> int:
        return int(self.pub.status.v) >> 32 & 0xFFFF

    def kick(self) -> None:
        self.words.cmd_pend.v = 1
        self.app.push(ABI.NEAT_CMD_KICK, self.slot, self.gen)

    def write(self, data: bytes) -> None:
        """At most 2 KiB unacknowledged: the small ring only."""
        for byte_at in range(0, len(data), 1024):
            piece = data[byte_at : byte_at + 1024]
            wait_until(
                lambda: self.words.tx_tail.v + 1024 - self.pub.tx_una.v <= 2048, "room to send"
            )
            base = SMALL + self.slot * 4096 + 2048
            for i, byte in enumerate(piece):
                self.app.app.memory[base + (self.words.tx_tail.v + i) % 2048] = byte
            self.words.tx_tail.v += len(piece)
            self.kick()

    def received_at(self, size: int) -> int:
        """Where a ring of that size for what comes in lies in the application's segment."""
        large = LARGE + self.slot * SLOT_LARGE + size
        return SMALL + self.slot * 4096 if size == 2048 else large

    def read(self, length: int) -> bytes:
        out = bytearray()
        while len(out) < length:
            tail = self.words.rx_tail.v
            wait_until(lambda t=tail: self.pub.rx_head.v != t or self.flags & 16, "bytes to read")
            head, word = self.pub.rx_head.v, self.pub.rx_ring.v
            if head == tail:
                break
            size = 1 << (word & 255)
            base = self.received_at(size)
            for off in range(tail, min(head, tail + length - len(out))):
                out.append(self.app.app.memory[base + (off - (word >> 8)) % size])
            self.words.rx_tail.v = tail + min(head - tail, length)
            self.kick()
        return bytes(out)

    def shutdown_write(self) -> None:
        self.words.shut.v |= 2
        self.kick()

    def close(self) -> None:
        self.app.push(ABI.NEAT_CMD_CLOSE, self.slot, self.gen)


LOCALHOST = 0x7F000001
CONNECTED, RX_EOF, HUP, DEAD = 8, 16, 128, 256  # NEAT_SLOT_*


def pair(app: App, listener: int, client_app: App | None = None) -> tuple[Connection, Connection]:
    """A connection on 127.0.0.1: client and server."""
    client = (client_app or app).connect(LOCALHOST, 8080)
    server = app.accept(listener)
    wait_until(lambda: client.flags & CONNECTED, "connected")
    return client, server


def succeed(replica: Replica, *apps: App, listeners: dict[App, int], **start: Any) -> None:
    """What the keeper does after a death: listeners come back in their old slots."""
    replica.start(**start)
    for app in apps:
        app.attach(replica)
    for app, slot in listeners.items():
        assert app.listen(8080, slot) == slot
    replica.go()
