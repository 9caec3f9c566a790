"""Linux is the oracle: each scenario runs on the kernel and on neatsock, with the same result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..worlds import KERNEL, World
from . import scenarios

SCRIPT = str(Path(__file__).with_name("scenarios.py"))


@pytest.mark.parametrize("name", list(scenarios.SCENARIOS))
def test_same_as_linux(name: str, neat: World) -> None:
    expected = KERNEL.run(sys.executable, SCRIPT, name)
    got = neat.run(sys.executable, SCRIPT, name)
    assert got.stdout == expected.stdout, f"again: {neat.again((sys.executable, SCRIPT, name))}"
    assert got.stderr == expected.stderr
