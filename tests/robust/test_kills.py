"""All but the keeper is killed at random under load; clients that check every byte notice nothing.

`python -m bench kills` does it; this is a bounded run of it. NEATSOCK_LONG=20: 20 times as long.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..long import TIMES
from ..worlds import ROOT


@pytest.mark.parametrize(
    "options",
    [
        ("--replicas", "1", "--peer", "local"),
        ("--replicas", "2", "--peer", "both"),
        ("--replicas", "3", "--peer", "local", "--early", "0.5"),
        ("--replicas", "1", "--peer", "both", "--components", "multi"),
    ],
    ids=[
        "1-replica",
        "2-replicas-and-a-kernel-peer",
        "3-replicas-killed-twice",
        "4-processes-and-a-kernel-peer",
    ],
)
def test_nobody_notices(options: tuple[str, ...], tmp_path: Path) -> None:
    """No failed request, reset or wrong byte, and nothing is left of the programs at the end."""
    size = ("--kills", str(50 * TIMES), "--rate", "10", "--phase", str(5 * TIMES))
    command = [sys.executable, "-m", "bench", "kills", *size, *options]
    done = subprocess.run(
        [*command, "--connections", "100", "--json", str(tmp_path / "kills.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120 + 30 * TIMES,
    )
    if done.stderr.startswith("skipped:"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
