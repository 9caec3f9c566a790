"""Applications and their processes; what their tables in shared memory say.

neat_app is written by the application: every number read from it is checked before it is used.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from neatsock import abi

from .clients import Connection

ROW_BYTES: int = abi.lib.NEAT_FDS_MAX * 8
PF_EXITING = 4  # <linux/sched.h>; set before the memory of a dying process goes
PF_KTHREAD = 0x00200000


@dataclass
class Process:
    """A process of an application that neatd watches. Descriptors are owned."""

    index: int
    pid: int
    pidfd: int
    eventfd: int | None = None

    def close(self) -> None:
        for fd in (self.pidfd, self.eventfd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.pidfd, self.eventfd = -1, None


@dataclass
class App:
    """A process tree that shares sockets. Descriptors are owned."""

    app_id: int
    shared: abi.Object
    uid: int
    comm: str
    segments: list[tuple[int, ...]]  # (seg_pub, seg_app, channels) of each replica
    processes: dict[int, Process] = field(default_factory=dict)
    # Open control connections. One that outlives its process is held by a child that has not
    # said a word yet: the application lives as long as there is either.
    connections: set[Connection] = field(default_factory=set)
    # pid -> pidfd: processes that map its memory, but are in no entry that we know.
    silent: dict[int, int] = field(default_factory=dict)
    warned: bool = False  # that it met a limit
    next_look: float = 0.0  # time.monotonic() before which FORKED makes nobody look
    looking: bool = False  # ... and somebody will, then

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        for segment in self.segments:
            for fd in segment:
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


def data_parts(fd: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of what is not a hole in [start, end).

    Reading a hole through a mapping would fill it; pread does not.
    """
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        except OSError:  # ENXIO: only holes from here on
            return
        if at < end:
            yield at, os.pread(fd, stop - at, at)
        at = stop


def has_descriptors(app: App, index: int) -> bool:
    """The process's table names a socket."""
    start = abi.lib.NEAT_APP_FDS + index * ROW_BYTES
    return any(any(data) for _, data in data_parts(app.shared.fd, start, start + ROW_BYTES))


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


def sweep(app: App, entries: list[tuple[int, int]]) -> list[Orphan]:
    """Free entries (index, pid) of dead processes: their descriptors and channels are closed.

    Nothing happens to one when somebody else was faster, and it is no longer that of `pid`. Blocks
    for about two milliseconds: a helper does it, because the application's own processes change
    the same words atomically. OSError or SubprocessError when it cannot.
    """
    which = ",".join(f"{index}:{pid}" for index, pid in entries)
    channels = [segment[2] for segment in app.segments]
    return _helper(app, ["--sweep", which, *map(str, channels)], channels)


def sweep_cloexec(app: App, index: int) -> list[Orphan]:
    """A living process left its image by exec: what was close-on-exec is closed."""
    return _helper(app, ["--cloexec", str(index)], [])


def left_over(app: App) -> list[Orphan]:
    """What a predecessor of ours found by a sweep, and did not release to the end."""
    size = abi.ffi.sizeof("struct neat_sock")
    start: int = abi.ffi.offsetof("struct neat_app", "socks")
    refs = start + abi.ffi.offsetof("struct neat_sock", "refs")
    closing = abi.refs_closing(abi.lib.NEAT_REFS_NEATD)
    for at, data in data_parts(app.shared.fd, start, start + abi.lib.NEAT_SOCKS_MAX * size):
        words = memoryview(data[: len(data) // 4 * 4]).cast("I")
        if closing in words[(refs - at) % size // 4 :: size // 4]:
            return _helper(app, ["--orphans"], [])
    return []


def _helper(app: App, args: list[str], fds: list[int]) -> list[Orphan]:
    done = subprocess.run(
        [f"/proc/{os.getppid()}/exe", *args],
        stdin=app.shared.fd,
        stdout=subprocess.PIPE,
        check=True,
        timeout=10,
        pass_fds=fds,
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


def _stat(pid: int) -> tuple[int, int]:
    """(PF_ flags, start in clock ticks after boot): proc_pid_stat(5). OSError: no such process."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[6]), int(fields[19])


def _uids(pid: int) -> set[int]:
    """Real, effective, saved and file system user: proc_pid_status(5). OSError: no such process."""
    with open(f"/proc/{pid}/status", "rb") as status:
        line = next(line for line in status if line.startswith(b"Uid:"))
    return set(map(int, line.split()[1:]))


def stranger(app: App, pid: int) -> bool:
    """A pid in an application's table that cannot be a process of it: its number or its garbage."""
    if pid == os.getpid():  # we map it, too
        return True
    mapped = maps_object(pid, app.shared.fd)
    if mapped:
        return False
    try:
        flags, started = _stat(pid)
        if flags & PF_KTHREAD:
            return True
        if flags & PF_EXITING:  # it has lost its maps already
            return False
        # Hidden from us: nobody's child is older than the instance, and only root's has any user.
        hidden = mapped is None and started >= _stat(os.getppid())[1]
        return not (hidden and (app.uid == 0 or app.uid in _uids(pid)))
    except OSError:
        return True


def live_holders(app: App, known: set[int]) -> dict[int, int]:
    """pid -> pidfd of living processes that are, or may be, of an application; but `known`.

    A look at each process of the machine. The caller owns the descriptors.
    """
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) in known or stranger(app, int(name)):
            continue
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:  # dead already
            continue
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if poller.poll(0):
            os.close(pidfd)  # nobody has waited for it yet
        else:
            found[int(name)] = pidfd
    return found
