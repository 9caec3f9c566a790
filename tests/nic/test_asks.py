"""SYNs that wait until the owner of their tuple has said whether it still has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

REFUSED, NEW, WAITS = range(3)
PLACES, LATE_US, LOOK = 16, 500_000, 192


class Asks:
    def __init__(self, lib: Any) -> None:
        self.lib, self.at = lib, lib.asks_new()

    def open(self, port: int, by: int = 1, of: int = 2, now: int = 0, length: int = 74) -> int:
        return int(self.lib.ask(self.at, port, by, of, length, now))

    def answer(self, port: int, of: int = 2) -> int | None:
        """The replica whose SYN waited."""
        by = int(self.lib.answer(self.at, port, of))
        return None if by < 0 else by


@pytest.fixture
def asks(lib: Any) -> Iterator[Asks]:
    made = Asks(lib)
    yield made
    lib.asks_free(made.at)


def test_an_answer_ends_the_question(asks: Asks) -> None:
    assert [asks.open(7, by=1), asks.open(8, by=3)] == [NEW, NEW]
    assert asks.answer(8) == 3
    assert asks.answer(8) is None
    assert asks.answer(7) == 1
    assert asks.open(7) == NEW


def test_only_who_was_asked_may_answer(asks: Asks) -> None:
    assert asks.open(7, of=2) == NEW
    assert asks.answer(7, of=3) is None
    assert asks.answer(9, of=2) is None
    assert asks.answer(7, of=2) == 1


def test_nobody_is_asked_twice_and_no_answer_is_one(asks: Asks) -> None:
    assert asks.open(7) == NEW
    assert asks.open(7, now=LATE_US - 1) == WAITS
    assert asks.open(7, now=LATE_US) == REFUSED
    assert asks.answer(7) is None
    assert asks.open(7, now=LATE_US) == NEW


def test_a_second_replica_is_refused_and_the_first_still_waits(asks: Asks) -> None:
    assert asks.open(7, by=1) == NEW
    assert asks.open(7, by=3) == REFUSED
    assert asks.answer(7) == 1


def test_places_are_bounded_and_come_free_again(asks: Asks) -> None:
    assert [asks.open(i) for i in range(PLACES)] == [NEW] * PLACES
    assert asks.open(100, now=LATE_US - 1) == REFUSED
    assert asks.open(100, now=LATE_US) == NEW
    assert [asks.answer(i) for i in range(PLACES)].count(None) == 1
    assert asks.answer(100) == 1


def test_a_syn_that_is_longer_than_a_place(asks: Asks) -> None:
    assert asks.open(7, length=LOOK + 1) == REFUSED
    assert asks.open(7, length=LOOK) == NEW
