"""Applications and their processes; what the fd tables in shared memory say after a death.

neat_app is written by the application: every number read from it is checked before it is used.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from neatsock import abi

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
    attached: bool = True

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


def _data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a sparse file that hold anything: reading a hole through a mapping would fill it."""
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only holes from here on
            return
        if at >= end:
            return
        stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        yield at, stop
        at = stop


def table_words(app: App, index: int) -> Iterator[int]:
    """The non-zero words of one process's fd table: [flags 16][gen 16][sock 32]."""
    start = abi.lib.NEAT_APP_FDS + index * ROW_BYTES
    for begin, end in _data_extents(app.shared.fd, start, start + ROW_BYTES):
        words = array("Q")
        words.frombytes(os.pread(app.shared.fd, (end - begin) & ~7, begin))
        yield from filter(None, words)


def named_by(app: App, index: int) -> Counter[tuple[int, int]]:
    """(record, generation) -> how many fds of one process name it. Impossible numbers are skipped."""
    counts: Counter[tuple[int, int]] = Counter()
    for word in table_words(app, index):
        record = word & 0xFFFFFFFF
        if 0 < record < abi.lib.NEAT_SOCKS_MAX:
            counts[record, word >> 32 & 0xFFFF] += 1
    return counts


def clear_table(app: App, index: int) -> None:
    """Zero one process's fd table."""
    start = abi.lib.NEAT_APP_FDS + index * ROW_BYTES
    for begin, end in list(_data_extents(app.shared.fd, start, start + ROW_BYTES)):
        os.pwrite(app.shared.fd, bytes(end - begin), begin)


def free_entry(app: App, index: int) -> None:
    """The process is gone and its table is empty: the entry may be claimed again."""
    entry = app.shared.at.procs[index]
    entry.pid.v = 0
    entry.parent.v = 0
    entry.state.v = abi.lib.NEAT_PROC_FREE


@dataclass(frozen=True)
class Orphan:
    """A socket that nobody names any more."""

    sock: int
    gen: int
    state: int
    replica: int
    slot: int
    slot_gen: int


def settle(app: App, suspects: set[tuple[int, int]]) -> list[Orphan]:
    """Recompute the references of `suspects` over all processes; those without any are returned.

    Living processes change references meanwhile: a count is stored only if the word did not move
    while the tables were read.
    """
    orphans = []
    for _ in range(3):
        before = {key: int(app.shared.at.socks[key[0]].refs.v) for key in suspects}
        counts: Counter[tuple[int, int]] = Counter()
        for index in live_entries(app):
            counts.update(named_by(app, index))
        for key in list(suspects):
            record: Any = app.shared.at.socks[key[0]]
            if int(record.gen.v) & 0xFFFF != key[1] or record.state.v == abi.lib.NEAT_SOCK_FREE:
                suspects.discard(key)
                continue
            if int(record.refs.v) != before[key]:
                continue
            suspects.discard(key)
            if counts[key] != before[key]:
                record.refs.v = counts[key]
            if counts[key] == 0:
                orphans.append(_orphan(key[0], record))
        if not suspects:
            break
    return orphans


def _orphan(sock: int, record: Any) -> Orphan:
    return Orphan(
        sock,
        int(record.gen.v),
        int(record.state.v),
        int(record.replica),
        int(record.slot),
        int(record.slot_gen),
    )
