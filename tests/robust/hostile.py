"""A program that turns on its own neatsock: writes to all shared memory it maps, and to the daemon.

Run under the library: `python hostile.py SEED SECONDS`. It keeps a few connections busy, so that
replicas look at what it breaks; it may crash at any time. At the end it prints how often it wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import socket
import sys
import time

from neatsock import abi
from neatsock.abi import ffi, lib

LIB = lib
SLOT_APP, SLOTS = 192, [*range(1, 12), *range(32768, 32780)]
COMMANDS = ["status", "hold", "capture", "filter", "nonsense", "", 7, None]
MESSAGES = {
    LIB.NEAT_MSG_ATTACH: "struct neat_msg_attach",
    LIB.NEAT_MSG_BIND: "struct neat_msg_bind",
    LIB.NEAT_MSG_LISTEN: "struct neat_msg_listen",
    LIB.NEAT_MSG_UNBIND: "struct neat_msg_bind",
    LIB.NEAT_MSG_CHILD: "struct neat_msg_attach",
    LIB.NEAT_MSG_EVENTFD: "struct neat_msg_eventfd",
    LIB.NEAT_MSG_EXITED: "struct neat_msg_result",
    LIB.NEAT_MSG_FORKED: "struct neat_msg_header",
}
EDGES = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 4096, 65535, 65536, 0x3FFFFFFF]


def writable_objects() -> list[tuple[int, int, str]]:
    """(address, size, name) of shared memory that this process may write."""
    found = []
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            fields = line.split()
            if fields[1].startswith("rw-s") and "memfd:neat" in line:
                begin, end = (int(x, 16) for x in fields[0].split("-"))
                found.append((begin, end - begin, fields[5]))
    return found


def offset(rng: random.Random, size: int, name: str) -> int:
    """Where something lives: headers, slots in use, rings, sometimes anywhere near the front."""
    if "seg_app" in name and rng.random() < 0.7:
        return 128 + SLOT_APP * rng.choice(SLOTS) + rng.randrange(0, SLOT_APP, 4)
    reach = rng.choice([64, 512, 4096, 1 << 17, 1 << 24])
    return rng.randrange(0, min(size, reach) - 8)


def poke(rng: random.Random, objects: list[tuple[int, int, str]]) -> None:
    begin, size, name = rng.choice(objects)
    value = rng.choice(EDGES) if rng.random() < 0.5 else rng.getrandbits(64)
    at = begin + offset(rng, size, name) // 4 * 4
    raw = value.to_bytes(8, "little")[: rng.choice([1, 2, 4, 8])]
    ctypes.memmove(at, raw, len(raw))


def text_or_struct(rng: random.Random, kind: int) -> bytes:
    """What follows the header of a message of this kind: as long as it must be, and random."""
    if kind == LIB.NEAT_MSG_CLI:
        command = {"cmd": rng.choice(COMMANDS), "replica": rng.choice([0, 1, -1, 2**40, "x", None])}
        return json.dumps(command | {"dir": "both", "pid": rng.choice([1, os.getpid()])}).encode()
    words = (ffi.sizeof(MESSAGES[kind]) - abi.HEADER_SIZE) // 4
    likely = [os.getpid(), abi.fingerprint(), 0, 1, 2, 3, socket.IPPROTO_TCP, socket.IPPROTO_UDP]
    return b"".join(
        rng.choice(
            [rng.choice(likely), rng.choice(EDGES) & 0xFFFFFFFF, rng.getrandbits(32)]
        ).to_bytes(4, "little")
        for _ in range(words)
    )


def well_formed(rng: random.Random) -> bytes:
    """A message that gets past magic, version, length and type."""
    kind = rng.choice([*MESSAGES, LIB.NEAT_MSG_CLI])
    body = text_or_struct(rng, kind)
    head = ffi.new("struct neat_msg_header *")
    head.magic, head.version, head.type = LIB.NEAT_ABI_MAGIC, LIB.NEAT_ABI_VERSION, kind
    head.len, head.seq = abi.HEADER_SIZE + len(body), rng.getrandbits(32)
    return bytes(ffi.buffer(head)) + body


def attach(pid: int) -> bytes:
    """What a program says first."""
    fields = {"pid": pid, "abi_size": abi.fingerprint(), "comm": b"hostile"}
    return abi.pack("struct neat_msg_attach", LIB.NEAT_MSG_ATTACH, 1, **fields)


def full_pipe() -> list[int]:
    """Both ends; a write to the second blocks."""
    ends = list(os.pipe())
    os.set_blocking(ends[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(ends[1], bytes(65536))
    os.set_blocking(ends[1], True)
    return ends


def descriptors(rng: random.Random) -> list[int]:
    """Descriptors of a kind that neatd may not expect; the caller closes them."""
    kind = rng.choice(
        ["none", "none", "pair", "stream", "null", "pipe", "event", "folder", "memory"]
    )
    if kind in ("pair", "stream"):
        way = socket.SOCK_SEQPACKET if kind == "pair" else socket.SOCK_STREAM
        return [end.detach() for end in socket.socketpair(socket.AF_UNIX, way)]
    if kind == "pipe":
        return full_pipe()
    if kind == "event":
        fd = os.eventfd(2**32 - 1, 0)
        with contextlib.suppress(OSError):
            os.eventfd_write(fd, 2**64 - 2 - (2**32 - 1))  # full, and it blocks
        return [fd]
    if kind == "memory":
        return [os.memfd_create("hostile")]
    if kind == "none":
        return []
    return [os.open("/dev/null" if kind == "null" else "/", os.O_RDONLY)]


def shout(rng: random.Random, sock: socket.socket) -> None:
    """One message or piece of garbage, perhaps with descriptors."""
    half_right = b"NEAT\x02\x00" + rng.randbytes(rng.randrange(0, 64))
    garbage = rng.randbytes(rng.randrange(1, 300))
    message = rng.choice([garbage, half_right, *[well_formed(rng)] * 6])
    fds = descriptors(rng)
    try:
        socket.send_fds(sock, [message], fds, socket.MSG_DONTWAIT)
    finally:
        for fd in fds:
            os.close(fd)


def shout_at_daemon(rng: random.Random) -> None:
    """On every socket of the library's that leads to neatd."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
            kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            if sock.family == socket.AF_UNIX and kind == socket.SOCK_SEQPACKET:
                shout(rng, sock)
            sock.close()


def call_daemon(rng: random.Random) -> None:
    """On a connection of its own, whose answers it may not read."""
    with contextlib.suppress(OSError):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(0.2)
        sock.connect(os.environ["NEATSOCK_SOCKET"])
        if rng.random() < 0.7:
            sock.send(attach(os.getpid()))
        for _ in range(rng.randrange(1, 8)):
            shout(rng, sock)
        if rng.random() < 0.5:
            sock.recv(65536)
        sock.close()


def traffic(rng: random.Random, listener: socket.socket, open_now: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):
        if len(open_now) < 12:
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            open_now.append(client)
        ready, _, _ = select.select([listener], [], [], 0)
        if ready:
            served, _ = listener.accept()
            served.setblocking(False)
            open_now.append(served)
    for sock in list(open_now):
        with contextlib.suppress(OSError):
            if rng.random() < 0.5:
                sock.send(rng.randbytes(rng.choice([1, 100, 5000, 70000])), 0x40)
            else:
                sock.recv(65536, 0x40)
        if rng.random() < 0.03:
            open_now.remove(sock)
            sock.close()


def main() -> None:
    rng = random.Random(int(sys.argv[1]))
    end = time.monotonic() + float(sys.argv[2])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    listener.setblocking(False)
    objects, open_now, writes = writable_objects(), [], 0
    assert objects, "this process maps no shared memory: is the library loaded?"
    while time.monotonic() < end:
        traffic(rng, listener, open_now)
        for _ in range(rng.randrange(1, 40)):
            poke(rng, objects)
            writes += 1
        if rng.random() < 0.002:
            shout_at_daemon(rng)
        if rng.random() < 0.1:
            call_daemon(rng)
    print(writes, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
