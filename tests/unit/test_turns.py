"""When a replica moves to the core of the programs that it serves (replicas/stack/turns.h)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.units import units

ENOUGH = 64
PAUSE_US = 20_000
START_US = 10**9


@pytest.fixture
def turns() -> Iterator[Any]:
    turns = units().turns_new()
    yield turns
    units().turns_free(turns)


def woke(turns: Any, wakes: list[tuple[int, int]], own: int = 1, now_us: int = START_US) -> int:
    """Wakes of (program, its core) by a replica on `own`; the one that moves it, 0 for none."""
    for n, (who, cpu) in enumerate(wakes, 1):
        if units().turns_woke(turns, who, cpu, own, now_us):
            return n
    return 0


ALTERNATING = [(1, 0), (2, 0)] * ENOUGH


def test_two_programs_that_take_turns_on_another_core(turns: Any) -> None:
    assert woke(turns, ALTERNATING) == ENOUGH  # whatever was there before


def test_one_program_alone_is_not_followed(turns: Any) -> None:
    assert woke(turns, [(1, 0)] * 10 * ENOUGH) == 0


def test_programs_on_our_core_are_company(turns: Any) -> None:
    assert woke(turns, ALTERNATING * 10, own=0) == 0


@pytest.mark.parametrize("other", [1, 2])
def test_a_wake_on_another_core_begins_anew(turns: Any, other: int) -> None:
    almost = ALTERNATING[: ENOUGH - 2]
    assert woke(turns, [*almost, (3, other)] * 10) == 0


def test_a_pause_between_two_moves(turns: Any) -> None:
    assert woke(turns, ALTERNATING)
    assert not woke(turns, ALTERNATING * 5, now_us=START_US + PAUSE_US - 1)
    assert woke(turns, ALTERNATING, now_us=START_US + PAUSE_US) == 1
