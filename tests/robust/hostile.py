"""A program that turns on its own neatsock: writes to all shared memory it maps, and to the daemon.

Run under the library: `python hostile.py SEED SECONDS`. It keeps a few connections busy, so that
replicas look at what it breaks; it may crash at any time. At the end it prints how often it wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import socket
import sys
import time

SLOT_APP, SLOTS = 192, [*range(1, 12), *range(32768, 32780)]
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


def shout_at_daemon(rng: random.Random) -> None:
    """Garbage, and half-right messages, on every socket that leads to neatd."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
            kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            if sock.family == socket.AF_UNIX and kind == socket.SOCK_SEQPACKET:
                head = b"NEAT\x02\x00" + rng.randbytes(rng.randrange(0, 64))
                sock.send(rng.choice([rng.randbytes(rng.randrange(1, 300)), head]), 0x40)
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
    print(writes, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
