"""The timing wheel (replicas/stack/timer.c) against a dictionary of deadlines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.units import ffi, units

NEVER = 2**64 - 1
TIMERS = 12
DAY = 86400 * 10**6


class Wheel:
    def __init__(self, now: int = 0, timers: int = TIMERS) -> None:
        self.lib, self.n = units(), timers
        self.w = self.lib.wheel_new(now, timers)
        self.ran = ffi.new("uint32_t[4096]")

    def set(self, i: int, at: int) -> None:
        self.lib.wheel_set(self.w, i, at)

    def delete(self, i: int) -> None:
        self.lib.wheel_del(self.w, i)

    def run(self, now: int, budget: int = 1000) -> list[int]:
        n = self.lib.wheel_run(self.w, now, budget, self.ran, 4096)
        return [int(self.ran[i]) for i in range(n)]

    @property
    def next(self) -> int:
        return int(self.lib.wheel_next(self.w))

    def pending(self) -> frozenset[int]:
        return frozenset(i for i in range(self.n) if self.lib.wheel_pending(self.w, i))

    def free(self) -> None:
        self.lib.wheel_free(self.w)


@pytest.fixture
def wheel() -> Iterator[Wheel]:
    w = Wheel()
    yield w
    w.free()


EDGES = [0, 1, 999, 1000, 1001, 255_000, 256_000, 256_001, 65_535_000, 65_536_000, 65_537_000,
         2**24 * 1000 - 1000, 2**24 * 1000, 2**24 * 1000 + 1000, 2**32 * 1000 - 1000]  # fmt: skip


@pytest.mark.parametrize("start", [0, 1, 999, 255_999, 65_535_999, 123_456_789_012])
@pytest.mark.parametrize("after", EDGES)
def test_runs_at_its_deadline_or_up_to_a_tick_later(start: int, after: int) -> None:
    w = Wheel(start)
    w.set(0, start + after)
    due = start + after
    if due > start:
        assert w.run(due - 1) == [] or due - 1 >= -(-due // 1000) * 1000
    assert w.run(due + 1000) == [0]
    assert w.next == NEVER
    w.free()


def test_never_early(wheel: Wheel) -> None:
    wheel.set(0, 5500)
    assert wheel.run(5499) == []
    assert wheel.run(5500) == []
    assert wheel.run(6000) == [0]


def test_deadline_in_the_past_runs_with_the_next_tick(wheel: Wheel) -> None:
    wheel.run(10_000)
    wheel.set(0, 3)
    assert wheel.run(10_999) == []
    assert wheel.run(11_000) == [0]


def test_budget_leaves_the_rest_due(wheel: Wheel) -> None:
    for i in range(TIMERS):
        wheel.set(i, 1000)
    first = wheel.run(5000, 5)
    assert len(first) == 5
    assert wheel.next <= 5000
    rest = wheel.run(5000)
    assert sorted(first + rest) == list(range(TIMERS))


def test_a_handler_may_delete_one_that_is_due_too(wheel: Wheel) -> None:
    wheel.set(0, 1000)
    wheel.set(1, 1000)
    wheel.lib.wheel_again(wheel.w, 0, 1, 0)
    wheel.lib.wheel_again(wheel.w, 1, 0, 0)
    assert len(wheel.run(2000)) == 1
    assert wheel.pending() == set()


def test_a_handler_may_set_itself_again(wheel: Wheel) -> None:
    wheel.set(0, 1000)
    wheel.lib.wheel_again(wheel.w, 0, 0, 3000)
    assert wheel.run(2000) == [0]
    assert wheel.run(3000) == [0]


def test_beyond_the_reach_of_the_wheel(wheel: Wheel) -> None:
    """49.7 days; a timer further away is carried on."""
    wheel.set(0, 120 * DAY)
    wheel.set(1, 50 * DAY)
    wheel.set(2, 10 * DAY)
    order = []
    now = 0
    while wheel.next != NEVER:
        now = max(now, wheel.next)
        order += [(i, now) for i in wheel.run(now)]
    assert [i for i, _ in order] == [2, 1, 0]
    assert [at for _, at in order] == [10 * DAY, 50 * DAY, 120 * DAY]


times = st.one_of(
    st.integers(0, 5_000), st.integers(0, 600_000), st.integers(0, 70_000_000),
    st.integers(0, 17_000_000_000), st.integers(0, 100 * DAY), st.sampled_from(EDGES),
)  # fmt: skip
commands = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, TIMERS - 1), times),
        st.tuples(st.just("delete"), st.integers(0, TIMERS - 1), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), times),
        st.tuples(st.just("sleep until next"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(start=times, steps=commands)
def test_against_a_model(start: int, steps: list[tuple[str, int, int]]) -> None:
    """Model: the deadline of each timer, rounded up to a tick."""
    wheel, now = Wheel(start), start
    model: dict[int, int] = {}
    for command, i, us in steps:
        if command == "set":
            wheel.set(i, now + us)
            # Also when it is due already: with the tick after the one that was processed.
            model[i] = max(-(-(now + us) // 1000), now // 1000 + 1) * 1000
        elif command == "delete":
            wheel.delete(i)
            model.pop(i, None)
        else:
            if command == "wait":
                now += us
            elif wheel.next != NEVER:
                now = max(now, wheel.next)
            ran = wheel.run(now)
            assert sorted(ran) == sorted(i for i, at in model.items() if at <= now)
            assert [model[i] for i in ran] == sorted(model[i] for i in ran)
            for i in ran:
                del model[i]
        assert wheel.pending() == set(model)
        assert wheel.lib.wheel_count(wheel.w) == len(model)
        assert wheel.next <= min(model.values(), default=NEVER)
    wheel.free()


@pytest.mark.parametrize("after", [1_000, 300_000, 70_000_000, 20_000_000_000])
def test_next_gets_there_in_few_steps(wheel: Wheel, after: int) -> None:
    """`next` may be early by a cascade: at most one for each level."""
    wheel.set(0, after)
    steps = 0
    while not wheel.run(wheel.next):
        steps += 1
    assert steps <= 3
