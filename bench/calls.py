"""System calls per operation: perf's raw_syscalls:sys_enter, or strace where perf cannot.

Those that can only concern a file are counted apart: a web server makes them in either world.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench import proc

ATTACH_S = 10.0
EVENT = "raw_syscalls:sys_enter"
# Tracepoint -> strace's name. Each open is followed by a close of that file sooner or later.
OPENS = {"open": "open", "openat": "openat"}
FILES = {
    "newstat": "stat",
    "newlstat": "lstat",
    "newfstat": "fstat",
    "newfstatat": "newfstatat",
    "statx": "statx",
    "pread64": "pread64",
    "preadv": "preadv",
    "preadv2": "preadv2",
    "lseek": "lseek",
    "getdents64": "getdents64",
}


@dataclass(frozen=True)
class Counted:
    """Calls of each group of processes, and how many of them only concern files."""

    every: dict[str, int]
    files: dict[str, int]
    window_s: float


@cache
def tool() -> str | None:
    """perf if it may count system calls here, else strace, else None."""
    if shutil.which("perf"):
        done = subprocess.run(
            ["perf", "stat", "-e", EVENT, "true"], capture_output=True, check=False
        )
        if done.returncode == 0:
            return "perf"
    return "strace" if shutil.which("strace") else None


def parse_perf(text: str) -> dict[str, dict[int, int]]:
    """event -> tid -> calls, from lines ``comm-tid,count,,event,...`` of ``perf stat -x,``."""
    found: dict[str, dict[int, int]] = {}
    for line in text.splitlines():
        match = re.match(r"\s*.*-(\d+),(\d+),,([\w:]+),", line)
        if match:
            threads = found.setdefault(match[3], {})
            tid = int(match[1])
            threads[tid] = threads.get(tid, 0) + int(match[2])
    return found


def parse_strace(text: str) -> dict[str, int]:
    """name -> calls, from ``strace -c``: % time, seconds, usecs/call, calls, errors, name."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        fields = line.split()
        numbers = [f for f in fields[:-1] if f.isdigit()]
        if numbers and re.fullmatch(r"\w+", fields[-1]):
            found[fields[-1]] = int(numbers[1]) if len(numbers) > 1 else int(numbers[0])
    return found


def weight(name: str) -> int:
    """How many file calls a call of this (tracepoint's or strace's) name stands for."""
    if name in OPENS:
        return 2
    return 1 if name in FILES or name in FILES.values() else 0


def _perf(groups: Mapping[str, Sequence[int]], window_s: float, where: Path) -> Counted:
    owner = {tid: name for name, pids in groups.items() for p in pids for tid in proc.threads(p)}
    out = where / "perf.txt"
    pids = ",".join(str(p) for group in groups.values() for p in group)
    subprocess.run(
        [
            "perf",
            "stat",
            "--per-thread",
            "-x",
            ",",
            "-o",
            str(out),
            "-e",
            ",".join([EVENT, *(f"syscalls:sys_enter_{name}" for name in (*OPENS, *FILES))]),
            "-p",
            pids,
            "--",
            "sleep",
            str(window_s),
        ],
        capture_output=True,
        check=False,
    )
    every, files = dict.fromkeys(groups, 0), dict.fromkeys(groups, 0)
    for event, threads in parse_perf(out.read_text() if out.exists() else "").items():
        for tid in threads.keys() & owner.keys():
            if event == EVENT:
                every[owner[tid]] += threads[tid]
            else:
                files[owner[tid]] += threads[tid] * weight(event.split("sys_enter_")[1])
    return Counted(every, files, window_s)


def _attached(children: Sequence[proc.Child]) -> None:
    deadline = time.monotonic() + ATTACH_S
    while time.monotonic() < deadline:
        if all("attached" in c.err.read_text(errors="replace") for c in children):
            return
        time.sleep(0.005)


def _strace(
    groups: Mapping[str, Sequence[int]], client: proc.Child, limit_s: float, where: Path
) -> Counted:
    """Traced until the client ends: it measures at the speed that tracing leaves it.

    (A window in the middle would divide calls of the traced part by the rate of a run that was
    mostly untraced: 0.8 calls per request where there are 4.1.)
    """
    running = {}
    for name, pids in groups.items():
        if pids:
            out = where / f"strace-{name}.txt"
            attach = [arg for pid in pids for arg in ("-p", str(pid))]
            argv = ["strace", "-f", "-c", "-o", str(out), *attach]
            running[name] = (proc.start(argv, where, f"strace-{name}"), out)
    _attached([child for child, _ in running.values()])
    began = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        client.popen.wait(limit_s)
    window_s = time.monotonic() - began
    every, files = dict.fromkeys(groups, 0), dict.fromkeys(groups, 0)
    for name, (child, out) in running.items():
        child.popen.send_signal(signal.SIGINT)  # prints the table and detaches
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.popen.wait(ATTACH_S)
        child.stop()
        table = parse_strace(out.read_text() if out.exists() else "")
        every[name] = table.get("total", 0)
        files[name] = sum(n * weight(call) for call, n in table.items())
    return Counted(every, files, window_s)


def count(
    groups: Mapping[str, Sequence[int]],
    client: proc.Child,
    window_s: float,
    limit_s: float,
    where: Path,
) -> Counted | None:
    """System calls of each group of processes. Blocks.

    perf looks for `window_s`; None if the client ended before. strace looks until the client ends,
    for at most `limit_s`.
    """
    if tool() == "strace":
        return _strace(groups, client, limit_s, where)
    found = _perf(groups, window_s, where)
    return found if client.popen.poll() is None else None
