"""Linux is the oracle: each scenario runs on the kernel and on neatsock, with the same result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..worlds import KERNEL, World
from . import scenarios, scenarios_udp

HERE = Path(__file__).parent
ALL = [("scenarios.py", name) for name in scenarios.SCENARIOS]
ALL += [("scenarios_udp.py", name) for name in scenarios_udp.SCENARIOS]


@pytest.mark.parametrize(("script", "name"), ALL, ids=[name for _, name in ALL])
def test_same_as_linux(script: str, name: str, neat: World) -> None:
    command = (sys.executable, str(HERE / script), name)
    expected = KERNEL.run(*command)
    got = neat.run(*command)
    assert got.stdout == expected.stdout, f"again: {neat.again(command)}"
    assert got.stderr == expected.stderr
