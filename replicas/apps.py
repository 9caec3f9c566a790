"""Applications and their processes; what their tables in shared memory say.

neat_app is written by the application: every number read from it is checked before it is used.
"""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass, field

from neatsock import abi

from .clients import Connection

ROW_BYTES: int = abi.lib.NEAT_FDS_MAX * 8


@dataclass
class Process:
    """A process of an application that neatd watches. Descriptors are owned."""

    index: int
    pid: int
    pidfd: int
    number: int | None = None  # its channels' number; None: it only holds sockets so far
    channels: list[int] = field(default_factory=list)  # one fd for each replica
    eventfd: int | None = None

    def close(self) -> None:
        for fd in (*self.channels, self.pidfd, self.eventfd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.channels, self.pidfd, self.eventfd = [], -1, None


@dataclass
class App:
    """A process tree that shares sockets. Descriptors are owned."""

    app_id: int
    shared: abi.Object
    uid: int
    comm: str
    segments: list[tuple[int, int]]  # (seg_pub, seg_app) of each replica
    processes: dict[int, Process] = field(default_factory=dict)
    # Open control connections. One that outlives its process is held by a child that has not
    # said a word yet: the application lives as long as there is either.
    connections: set[Connection] = field(default_factory=set)

    def free_number(self) -> int:
        """Lowest channel number that no process of this application has."""
        used = {p.number for p in self.processes.values()}
        return next(n for n in range(abi.lib.NEAT_PROCS_MAX + 1) if n not in used)

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        for pair in self.segments:
            for fd in pair:
                os.close(fd)
        self.processes, self.segments = {}, []
        self.shared.close()


def live_entries(app: App) -> dict[int, tuple[int, int]]:
    """index -> (pid, state) of every process entry in use."""
    found = {}
    for index in range(abi.lib.NEAT_PROCS_MAX):
        entry = app.shared.at.procs[index]
        state = int(entry.state.v)
        if state != abi.lib.NEAT_PROC_FREE:
            found[index] = (int(entry.pid.v), state)
    return found


def free_entry(app: App, index: int) -> None:
    """The process is gone and its table is empty: the entry may be claimed again."""
    entry = app.shared.at.procs[index]
    entry.pid.v = entry.parent.v = entry.fd_high.v = 0
    entry.state.v = abi.lib.NEAT_PROC_FREE


def has_descriptors(app: App, index: int) -> bool:
    """The process's table names a socket."""
    start = abi.lib.NEAT_APP_FDS + index * ROW_BYTES
    at, end = start, start + ROW_BYTES
    while at < end:
        try:
            # Reading a hole through a mapping would fill it; pread does not.
            at = os.lseek(app.shared.fd, at, os.SEEK_DATA)
            stop = min(os.lseek(app.shared.fd, at, os.SEEK_HOLE), end)
        except OSError:  # ENXIO: only holes from here on
            return False
        if at < end and any(os.pread(app.shared.fd, stop - at, at)):
            return True
        at = stop
    return False


@dataclass(frozen=True)
class Orphan:
    """A socket that nobody names any more."""

    sock: int
    gen: int
    state: int
    replica: int
    slot: int
    slot_gen: int


ORPHAN = struct.Struct("=6I")  # struct orphan of keeper/sweep.c


def sweep(app: App, index: int, cloexec: bool = False) -> list[Orphan]:
    """Take a dead process's descriptors out of its table (`cloexec`: those that exec closed).

    Blocks for about two milliseconds: a helper does it, because the reference counts must be
    lowered atomically. OSError or SubprocessError when it cannot.
    """
    keeper = f"/proc/{os.getppid()}/exe"
    command = [keeper, "--sweep", str(index), *(["--cloexec"] if cloexec else [])]
    done = subprocess.run(
        command, stdin=app.shared.fd, stdout=subprocess.PIPE, check=True, timeout=10
    )
    return [Orphan(*fields) for fields in ORPHAN.iter_unpack(done.stdout)]


def maps_object(pid: int, fd: int) -> bool | None:
    """Whether a process maps a shared object; None if that cannot be told."""
    inode = str(os.fstat(fd).st_ino)
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any(
                len(words) > 5 and words[4] == inode and words[5].startswith("/memfd:neat")
                for words in map(str.split, maps)
            )
    except OSError:
        return None
