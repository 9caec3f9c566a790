"""A replica killed before each of its stores (crash.c), and what both ends of each connection see.

By default a sample of the points within a minute, another one at each run; NEATSOCK_LONG: every
point. Of points that leave the same memory behind one is enough ("same" in the output). A failure
prints the line that runs it again: build with `python tests/crash/build.py DIR`, then
DIR/crash again ..."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..long import LONG

pytestmark = pytest.mark.timeout(3600 if LONG else 300)
JOBS = str(os.cpu_count() or 1)


def run(crash: Path, sample: int, *arguments: str) -> list[dict[str, Any]]:
    seed = int.from_bytes(os.urandom(4), "big")
    limit = ["--sample", "0" if LONG else str(sample), "--seed", str(seed), "--jobs", JOBS]
    result = subprocess.run(
        [crash, "run", *limit, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}{result.stderr[-12000:]}"
    return [json.loads(line) for line in result.stdout.splitlines()]


def brief(crash: Path) -> list[str]:
    listed = subprocess.run([crash, "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.endswith(" brief")]


def test_connections_and_datagrams_go_on(crash: Path) -> None:
    rows = run(crash, 60)
    assert len(rows) > 45
    assert all(row["points"] > 100 for row in rows), rows
    assert sum(row["runs"] for row in rows) > 1000, rows


def test_frames_that_the_nic_had_not_taken_are_lost(crash: Path) -> None:
    run(crash, 15, "--fenced")


def test_applications_move_between_stores(crash: Path) -> None:
    run(crash, 15, "--race")
    run(crash, 15, "--race-kill")


def test_applications_move_while_the_successor_starts(crash: Path) -> None:
    """Whoever looks before the successor has published the last word is told again."""
    run(crash, 5, "--depth", "2", "--race-start", "--inner", "20", *brief(crash))


def test_the_successor_is_killed_too(crash: Path) -> None:
    """NEATSOCK_LONG: at every point of its start, and for the longer scenarios at every tenth."""
    run(crash, 5, "--depth", "2", "--inner", "1" if LONG else "40", *brief(crash))
    if LONG:
        run(crash, 0, "--depth", "2", "--inner", "10")


def test_stateless_leaves_nothing_behind(crash: Path) -> None:
    run(crash, 15, "--stateless")
