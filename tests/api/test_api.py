"""Linux is the oracle: each scenario runs on the kernel and on neatsock, with the same result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..worlds import KERNEL, World
from . import (
    scenarios_bound,
    scenarios_edge,
    scenarios_moves,
    scenarios_nested,
    scenarios_opts,
    scenarios_orders,
    scenarios_process,
    scenarios_ready,
    scenarios_tcp,
    scenarios_threads,
    scenarios_udp,
)
from .tools import SCENARIOS

RUN = Path(__file__).with_name("scenarios.py")
SUBJECTS = {
    module.__name__: module.__name__.rpartition("scenarios_")[2]
    for module in (
        scenarios_tcp,
        scenarios_ready,
        scenarios_nested,
        scenarios_moves,
        scenarios_process,
        scenarios_edge,
        scenarios_opts,
        scenarios_orders,
        scenarios_bound,
        scenarios_threads,
        scenarios_udp,
    )
}


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_same_as_linux(name: str, neat: World) -> None:
    command = (sys.executable, str(RUN), SUBJECTS[SCENARIOS[name].__module__], name)
    expected = KERNEL.run(*command)
    got = neat.run(*command)
    assert got.stdout == expected.stdout, f"again: {neat.again(command)}"
    assert got.stderr == expected.stderr
