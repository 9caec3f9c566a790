"""Faults inside one replica never reach another replica, or a program (issue 3, proof).

`python -m bench faults` is the campaign; this is a bounded run. NEATSOCK_LONG=20: 20 times as long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..long import TIMES
from ..worlds import ROOT

FAULTS = 40


def test_no_fault_reaches_anybody_else(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    size = ("--lasting", "4", "--churning", "2", "--blocking", "1")
    limits = ("--faults", str(FAULTS * TIMES), "--seconds", str(8 * TIMES))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "faults", *size, *limits, "--json", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180 + 30 * TIMES,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["faults"] and not found["problems"]
    assert found["table"]["sum"].get("all", 0) == 0
