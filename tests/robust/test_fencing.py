"""W11 (docs/rules.md): a successor begins only when its
predecessor can store nothing any more."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicas.attach import readable

from .rig import Bystander, Rig
from .test_isolation import shared_writable

# ptrace(2)
PTRACE_CONT = 7
PTRACE_SEIZE = 0x4206
PTRACE_O_TRACEEXIT = 0x40
PTRACE_EVENT_EXIT = 6
WALL = 0x40000000


def ptrace(request: int, pid: int, data: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, pid, None, data) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}, {pid})")


@contextmanager
def dying(pid: int) -> Iterator[None]:
    """Killed, but held where its memory is still mapped: it has not ended as long as we hold it."""
    try:
        ptrace(PTRACE_SEIZE, pid, PTRACE_O_TRACEEXIT)
    except PermissionError:
        pytest.skip("may not trace the replica (ptrace_scope)")
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, WALL)
    assert status >> 8 == signal.SIGTRAP | PTRACE_EVENT_EXIT << 8, f"status {status:#x}"
    try:
        yield
    finally:
        ptrace(PTRACE_CONT, pid, 0)
        os.waitpid(pid, WALL)  # its parent hears of it behind its tracer


def replicas_that_write(objects: set[tuple[str, str]]) -> set[int]:
    """Processes of a replica program that map one of these (device, inode) for writing."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            program = os.readlink(directory / "exe")
            if "neat-replica" in program and shared_writable(int(directory.name)) & objects:
                found.add(int(directory.name))
        except OSError:
            continue  # it ended, or is not ours
    return found


def test_the_successor_waits_for_the_end_of_its_predecessor(rig2: Rig) -> None:
    bystander = Bystander(rig2.world)
    old, other = rig2.pids()["replica0"], rig2.pids()["replica1"]
    epochs = rig2.epochs()
    objects = shared_writable(old)
    assert replicas_that_write(objects) == {old}
    with dying(old):
        # Its sibling's death is seen and repaired meanwhile: the keeper had its chance.
        os.kill(other, signal.SIGKILL)
        rig2.ready(1, epochs[1] + 1)
        assert rig2.epochs()[0] == epochs[0]
        assert replicas_that_write(objects) == {old}
    rig2.ready(0, epochs[0] + 1)
    assert old not in replicas_that_write(objects)
    bystander.lively()
    bystander.close()


def test_a_stopped_replica_is_dead_before_another_takes_over(tmp_path: Path) -> None:
    """SIGCONT comes too late: nothing is left that could go on."""
    rig = Rig(tmp_path / "rig", 1, "--stopped", "0.2")
    try:
        bystander = Bystander(rig.world)
        old, epoch = rig.pids()["replica0"], rig.epochs()[0]
        pidfd = os.pidfd_open(old)
        os.kill(old, signal.SIGSTOP)
        rig.ready(0, epoch + 1)
        assert readable([pidfd])
        with pytest.raises(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os.close(pidfd)
        bystander.lively()
        bystander.close()
    finally:
        rig.down()
