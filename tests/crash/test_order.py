"""The shipped object code stores in the order of the sources (docs/rules.md T2): it runs a scenario
single-stepped, and each word that the replica stores atomically changes as it does between the
stores at which crash.c kills."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from .build import build_order

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the trap flag of x86-64"),
]
SCENARIOS = ("inbound", "local", "udp_in")
Change = tuple[str, str]


@pytest.fixture(scope="module")
def programs(crash: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_order(crash.parent, tmp_path_factory.mktemp("order"))


def run(program: Path, what: str, scenario: str, given: str = "") -> str:
    return subprocess.run(
        [program, what, scenario], input=given, capture_output=True, text=True, check=True
    ).stdout


def looks(text: str) -> list[list[Change]]:
    """What changed between two instants at which others can look."""
    groups = (group.splitlines() for group in text.split("\n\n"))
    return [[(w, v) for w, v in (line.split() for line in group if line)] for group in groups]


def disorder(expected: list[list[Change]], seen: list[list[Change]]) -> str:
    """Empty if `seen` passes through the same states, perhaps more finely or more coarsely."""
    todo = [list(group) for group in expected if group]
    for number, group in enumerate(seen):
        left = list(group)
        while left:
            if not todo:
                return f"look {number}: {left} after everything"
            matching = [change for change in left if change in todo[0]]
            if not matching:
                return f"look {number}: {left} before {todo[0]}"
            for change in matching:
                left.remove(change)
                todo[0].remove(change)
            if not todo[0]:
                todo.pop(0)
    return f"never: {todo[0]}" if todo else ""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_object_code_stores_in_order(programs: tuple[Path, Path], scenario: str) -> None:
    seen, shipped = programs
    words = run(seen, "words", scenario)
    expected = looks(run(seen, "changes", scenario, words))
    stepped = looks(run(shipped, "steps", scenario, words))
    assert len(expected) > 50
    assert disorder(expected, stepped) == ""


def test_a_swap_is_seen() -> None:
    a, b, c = ("a", "1"), ("b", "1"), ("c", "1")
    assert disorder([[a], [b], [c]], [[a], [b], [c]]) == ""
    assert disorder([[a, b], [c]], [[b], [a], [c]]) == ""
    assert disorder([[a], [b], [c]], [[a, b], [c]]) == ""
    assert disorder([[a], [b], [c]], [[b], [a], [c]]) != ""
    assert disorder([[a], [b]], [[a]]) != ""
