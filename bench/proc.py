"""Child processes: started in groups of their own, always ended, and what /proc says of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _in_child() -> None:
    """Own group, so that Ctrl-C reaches only the runner, which then ends its children in order.

    Not an own session: that would be another scheduling group (autogroup) and other numbers.
    """
    os.setpgid(0, 0)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@dataclass(frozen=True)
class Child:
    """A started program with its output files."""

    popen: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self.popen.pid

    def stdout(self) -> str:
        """What it printed so far."""
        return self.out.read_text(errors="replace")

    def complaint(self, lines: int = 8) -> str:
        """The last lines of both outputs, for error messages."""
        text = self.err.read_text(errors="replace") + self.stdout()
        return "\n".join(text.strip().splitlines()[-lines:]) or "(it printed nothing)"

    def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM to the group, SIGKILL when `grace_s` is over. Blocks until it is gone."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        self._signal(signal.SIGKILL)  # before the wait: an unreaped leader keeps the group's id
        self.popen.wait()
        if self.popen.stdin:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()

    def _alive(self) -> bool:
        if self.popen.returncode is not None:
            return False
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def start(
    argv: Sequence[str],
    where: Path,
    name: str,
    env: Mapping[str, str] | None = None,
    stdin: bool = False,
) -> Child:
    """Start `argv`; its output goes to `where`/`name`.out and .err."""
    out, err = where / f"{name}.out", where / f"{name}.err"
    with out.open("wb") as fo, err.open("wb") as fe:
        # preexec_fn is safe here: this process has one thread.
        popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=fo,
            stderr=fe,
            preexec_fn=_in_child,
            env={**os.environ, **(env or {})},
        )
    return Child(popen, out, err)


def free_ports(count: int) -> list[int]:
    """Ports nobody uses, below the kernel's range for clients, so that no client takes them."""
    found: list[int] = []
    start_at = 10000 + (os.getpid() * 97 + time.monotonic_ns() // 1000) % 20000
    for i in range(20000):
        port = 10000 + (start_at + i) % 20000
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("0.0.0.0", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free TCP ports from 10000 to 30000; see `ss -tln` for who has them")


def parents() -> dict[int, int]:
    """pid -> parent pid of every process."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path("/proc", entry, "stat").read_text()
                found[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return found


def tree(roots: Iterable[int]) -> list[int]:
    """`roots` and all their descendants that exist now."""
    family = parents()
    found = [pid for pid in roots if pid in family]
    for pid in found:  # grows while it runs: breadth first
        found.extend(p for p, parent in family.items() if parent == pid and p not in found)
    return found


def threads(pid: int) -> list[int]:
    """Thread ids of a process; empty when it is gone."""
    try:
        return [int(t) for t in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU that the living threads of `pids` have used so far, in ns (schedstat)."""
    total = 0
    for pid in pids:
        for tid in threads(pid):
            with contextlib.suppress(OSError, ValueError, IndexError):
                total += int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])
    return total


def runs_program(pid: int, program: str) -> bool:
    """Whether `pid` has reached the exec of `program`, which a launcher does only after a while."""
    try:
        return os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(program)
    except OSError:
        return False


def busy_ns() -> int:
    """CPU used by all of the machine since boot, in ns (10 ms steps)."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) * (10**9 // os.sysconf("SC_CLK_TCK"))


def memory_used() -> int:
    """Memory in use except the page cache of files, in bytes; shared memory counts as used."""
    info = {
        k: int(v.split()[0]) * 1024
        for k, v in (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    }
    return info["MemTotal"] - info["MemFree"] - info["Buffers"] - info["Cached"] + info["Shmem"]
