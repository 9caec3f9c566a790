"""A replica that runs wild writes over words that it shares with a program: no other suffers.

Written through the replica's own mapping, as its own bug would.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bench.inject import GoneError, Target
from neatsock.abi import ffi, lib

from .rig import Bystander, Rig

DOOR = ffi.offsetof("struct neat_channels", "door")
SLOTS = ffi.offsetof("struct neat_seg_app", "slots")
SLOT = ffi.sizeof("struct neat_slot_app")
FEW = 64  # a bystander's slots are among so many of those that accept() and connect() take first


@contextmanager
def opened(rig: Rig) -> Iterator[list[Target]]:
    targets = [Target(pid) for name, pid in rig.pids().items() if name.startswith("replica")]
    try:
        yield targets
    finally:
        for target in targets:
            target.close()


def overwrite(targets: list[Target], name: str, places: list[int], data: bytes) -> None:
    """In each mapping of this name that is there still: the test before left some that go now."""
    written = 0
    for target in targets:
        for m in target.named(name):
            with suppress(GoneError):
                for at in places:
                    target.write(m.begin + at, data)
                written += 1
    assert written >= len(targets)


@pytest.mark.parametrize("state", [lib.NEAT_DOOR_ENDED, 0xFC, 0xFF])
def test_no_replica_can_end_the_instance(rig: Rig, bystander: Bystander, state: int) -> None:
    """Nor is one that says it ended, and takes connections, waited for without end."""
    with opened(rig) as targets:
        for _ in range(20):
            for _ in range(100):
                overwrite(targets, "channels", [DOOR], bytes([state]))
            bystander.lively()


@pytest.mark.parametrize("lock", ["tx_lock", "rx_lock"])
def test_a_lock_that_names_a_stranger_is_taken_from_him(
    rig: Rig, bystander: Bystander, lock: str
) -> None:
    """The stranger lives, here it is this process, and knows nothing of it."""
    at = ffi.offsetof("struct neat_slot_app", lock)
    stranger = os.getpid().to_bytes(4, "little")
    slots = [*range(1, FEW), *range(lib.NEAT_SLOT_APP_FIRST, lib.NEAT_SLOT_APP_FIRST + FEW)]
    places = [SLOTS + slot * SLOT + at for slot in slots]
    with opened(rig) as targets:
        for _ in range(5):
            overwrite(targets, "seg_app", places, stranger)
            bystander.lively()
