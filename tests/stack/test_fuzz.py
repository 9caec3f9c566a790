"""Hostile segments under ASan and UBSan (fuzz.c).

To go on for longer: build it and run it by hand with other seeds, or
NEAT_FUZZ_SECONDS=600 python -m pytest tests/stack/test_fuzz.py."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.stack.host import ROOT, compile_c, stack_sources

from ..long import TIMES

STEPS = "30000"


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "fuzz"
    build(out, "fuzz.c")
    return out


def build(out: Path, source: str) -> None:
    sanitize = "-fsanitize=address,undefined"
    compile_c(out, [ROOT / "tests/stack" / source, *stack_sources()], "-O1", sanitize,
              "-fno-sanitize-recover=all")  # fmt: skip


def run(fuzz: Path, seed: int) -> None:
    result = subprocess.run([fuzz, str(seed), STEPS], capture_output=True, text=True, check=False)
    again = f"seed {seed}, {STEPS} steps:\n"
    assert result.returncode == 0, again + result.stderr[-4000:]
    assert int(result.stdout.split()[1]) > 10000


# 2, 30, 34, 58: broke an invariant once (SACK below zero, two ranges filled at once, MSS, back-off)
@pytest.mark.parametrize("seed", [1, 2, 30, 34, 58])
def test_invariants_hold(fuzz: Path, seed: int) -> None:
    run(fuzz, seed)


def test_other_seeds(fuzz: Path) -> None:
    deadline = time.monotonic() + 2 * TIMES
    seed = int.from_bytes(os.urandom(6), "big")
    while time.monotonic() < deadline:
        run(fuzz, seed)
        seed += 1


def test_datagrams(tmp_path: Path) -> None:
    """UDP, ICMP errors about it, and applications that write anything into their words."""
    out = tmp_path / "fuzz_udp"
    build(out, "fuzz_udp.c")
    deadline = time.monotonic() + 2 * TIMES
    seed = 1
    while seed < 3 or time.monotonic() < deadline:
        result = subprocess.run([out, str(seed), "20000"], capture_output=True, text=True)
        assert result.returncode == 0, f"seed {seed}, 20000 steps:\n{result.stderr[-4000:]}"
        seed = seed + 1 if seed < 2 else int.from_bytes(os.urandom(6), "big") | 4
