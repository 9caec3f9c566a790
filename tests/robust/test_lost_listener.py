"""A replica that runs wild writes over a listener's words: its successor gets a new one."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys

from bench.inject import Target
from neatsock.abi import ffi, lib

from ..waiting import wait_until
from .rig import Rig

SERVER = """
import socket
a = socket.create_server(("127.0.0.1", 0)); print(a.getsockname()[1], flush=True)
while True:
    c, _ = a.accept(); c.sendall(b"x"); c.close()
"""
CLIENT = """
import socket, sys
for _ in range(100):
    c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
    assert c.recv(1) == b"x"; c.close()
print("served")
"""


def _listeners(target: Target) -> list[int]:
    """Where the published status of each listener is."""
    found = []
    first, size = ffi.offsetof("struct neat_seg_pub", "slots"), ffi.sizeof("struct neat_slot_pub")
    status = ffi.offsetof("struct neat_slot_pub", "status")
    for m in target.named("seg_pub"):
        for slot in range(1, 64):
            at = m.begin + first + slot * size + status
            if struct.unpack("<Q", target.read(at, 8))[0] & lib.NEAT_SLOT_LISTENING:
                found.append(at)
    return found


def overwrite_listeners(pid: int) -> int:
    """Zeroes the published status of each listener, through the replica's own mapping; how many."""
    target = Target(pid)
    found = _listeners(target)
    for at in found:
        target.write(at, bytes(8))
    target.close()
    return len(found)


def listens(pid: int) -> bool:
    """A replica refuses connections until neatd has heard that the listener is lost."""
    target = Target(pid)
    found = _listeners(target)
    target.close()
    return bool(found)


def served(rig: Rig, port: str) -> None:
    assert rig.world.run(sys.executable, "-c", CLIENT, port).stdout == "served\n"


def test_a_listener_whose_words_were_overwritten_is_there_again(rig2: Rig) -> None:
    server = rig2.world.start(sys.executable, "-c", SERVER, stdout=subprocess.PIPE)
    try:
        assert server.stdout
        port = server.stdout.readline().strip()
        for replica in (1, 0):  # at the end neither has its first one
            pid, epoch = rig2.pids()[f"replica{replica}"], rig2.epochs()[replica]
            assert overwrite_listeners(pid) == 1
            os.kill(pid, signal.SIGKILL)
            rig2.ready(replica, epoch + 1)
            pid = rig2.pids()[f"replica{replica}"]
            wait_until(lambda pid=pid: listens(pid), "it has a listener again")
            served(rig2, port)
    finally:
        server.kill()
        server.communicate()
