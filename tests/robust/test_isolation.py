"""What /proc says of replicas and the standby: nothing shared or reachable, no two alike."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from ..long import TIMES
from .rig import Bystander, Rig, wait_until

TAKE_OVERS = 40 * TIMES


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "rig", 2)
    yield rig
    rig.down()


def workers(rig: Rig) -> dict[str, int]:
    """Replicas and the standby, by name."""
    status = wait_until(rig.status, "neatd answers")
    found = {f"replica {r['index']}": r["pid"] for r in status["replicas"]}
    return found | {"standby": status["standby"]["pid"]}


def status_of(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{field}:\s*(\S+)", text, re.MULTILINE)
    assert match
    return match[1]


def shared_writable(pid: int) -> set[tuple[str, str]]:
    """(device, inode) of every mapping by which this process changes somebody else's memory."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        _, perms, _, device, inode, *_ = line.split()
        if perms.startswith("rw") and perms.endswith("s") and inode != "0":
            found.add((device, inode))
    return found


def check_isolation(rig: Rig) -> None:
    pids = workers(rig)
    for name, pid in pids.items():
        assert status_of(pid, "Threads") == "1", name
        assert status_of(pid, "Seccomp") == "2", f"{name}: a filter of system calls"
        assert status_of(pid, "NoNewPrivs") == "1", name
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert not re.search(r" rwxp |^\S+ rwx", maps, re.MULTILINE), f"{name}: writable code"
    for (one, a), (other, b) in combinations(pids.items(), 2):
        both = shared_writable(a) & shared_writable(b)
        assert not both, f"{one} and {other} can both write {both}"


def layout(pid: int) -> tuple[str, ...]:
    """Where program, heap or stack begin: what address space randomisation moves."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    program = next(line for line in lines if "neat-replica" in line)
    stack = next(line for line in lines if "[stack]" in line)
    return program.split("-")[0], stack.split("-")[0]


def test_nothing_is_shared_and_nothing_is_reachable(own: Rig) -> None:
    bystander = Bystander(own.world)
    check_isolation(own)
    bystander.close()


def test_after_many_take_overs(own: Rig) -> None:
    """Isolated, every incarnation laid out anew; one connection lives through all of it."""
    bystander = Bystander(own.world)
    layouts = {layout(pid) for pid in workers(own).values()}
    for turn in range(TAKE_OVERS):
        victim = turn % 2
        epoch = own.epochs()[victim]
        os.kill(own.pids()[f"replica{victim}"], signal.SIGKILL)
        own.ready(victim, epoch + 1)
        layouts.add(layout(own.pids()[f"replica{victim}"]))
        wait_until(lambda: (own.status().get("standby") or {}).get("pid"), "a new standby")
    bystander.lively()
    check_isolation(own)
    bystander.close()
    assert bystander.broken == []
    # The standby that was there before the first death is one of those that took over.
    assert len(layouts) >= TAKE_OVERS + 2
