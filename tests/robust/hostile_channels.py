"""A program whose processes seem to end all the time, and whose accept queues seem to be full.

argv: seconds. It writes only into memory of its own application.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
import time

from neatsock.abi import ffi
from neatsock.abi import lib as LIB


def mapped(kind: int) -> list[int]:
    """Addresses of the objects of one kind (enum neat_object) that this process may write."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights = line.split()[:2]
            at = int(span.split("-")[0], 16)
            if rights.startswith("rw-s"):
                magic, _, is_a = struct.unpack("III", ctypes.string_at(at, 12))
                if magic == LIB.NEAT_ABI_MAGIC and is_a == kind:
                    found.append(at)
    return found


listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(250)]
client = socket.create_connection(listeners[0].getsockname())
client.setblocking(False)
for at in mapped(LIB.NEAT_OBJ_SEG_APP):
    segment = ffi.cast("struct neat_seg_app *", at)
    for slot in range(1, 300):
        segment.slots[slot].accept_head.v = 1 << 47
channels = [ffi.cast("struct neat_channels *", at) for at in mapped(LIB.NEAT_OBJ_CHANNELS)]
assert channels
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for one in channels:
        for n in range(1, LIB.NEAT_PROCS_MAX):
            one.open[n].v += 2 if one.open[n].v % 2 else 1
        one.change.v += 1
    with contextlib.suppress(BlockingIOError):
        client.send(b"x")
