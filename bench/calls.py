"""System calls per operation: perf's raw_syscalls:sys_enter, or strace where perf cannot."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from bench import proc

ATTACH_S = 10.0
EVENT = "raw_syscalls:sys_enter"


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


def parse_perf(text: str) -> dict[int, int]:
    """tid -> calls, from ``perf stat --per-thread -x,`` (lines ``comm-tid,count,...``)."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        match = re.match(r"\s*.*-(\d+),(\d+),,", line)
        if match and EVENT in line:
            tid = int(match[1])
            found[tid] = found.get(tid, 0) + int(match[2])
    return found


def parse_strace(text: str) -> int:
    """The total of ``strace -c``: its columns are % time, seconds, usecs/call, calls, errors."""
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[-1] == "total":
            numbers = [f for f in fields[:-1] if f.isdigit()]
            return int(numbers[1]) if len(numbers) > 1 else int(numbers[0])
    return 0


def _perf(groups: Mapping[str, Sequence[int]], window_s: float, where: Path) -> dict[str, int]:
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
            EVENT,
            "-p",
            pids,
            "--",
            "sleep",
            str(window_s),
        ],
        capture_output=True,
        check=False,
    )
    totals = dict.fromkeys(groups, 0)
    for tid, count in parse_perf(out.read_text() if out.exists() else "").items():
        if tid in owner:
            totals[owner[tid]] += count
    return totals


def _attached(children: Sequence[proc.Child]) -> None:
    deadline = time.monotonic() + ATTACH_S
    while time.monotonic() < deadline:
        if all("attached" in c.err.read_text(errors="replace") for c in children):
            return
        time.sleep(0.005)


def _strace(
    groups: Mapping[str, Sequence[int]], client: proc.Child, limit_s: float, where: Path
) -> tuple[dict[str, int], float]:
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
    totals = dict.fromkeys(groups, 0)
    for name, (child, out) in running.items():
        child.popen.send_signal(signal.SIGINT)  # prints the table and detaches
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.popen.wait(ATTACH_S)
        child.stop()
        totals[name] = parse_strace(out.read_text() if out.exists() else "")
    return totals, window_s


def count(
    groups: Mapping[str, Sequence[int]],
    client: proc.Child,
    window_s: float,
    limit_s: float,
    where: Path,
) -> tuple[dict[str, int], float] | None:
    """System calls of each group of processes, and in how many seconds. Blocks.

    perf looks for `window_s`; None if the client ended before. strace looks until the client ends,
    for at most `limit_s`.
    """
    if tool() == "strace":
        return _strace(groups, client, limit_s, where)
    found = _perf(groups, window_s, where)
    return (found, window_s) if client.popen.poll() is None else None
