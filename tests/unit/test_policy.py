"""How many replicas: decisions without an instance (replicas/policy.py)."""

from __future__ import annotations

import random

import pytest

from neatsock.replicas.policy import Memory, Policy, decide, spread

POLICY = Policy(minimum=1, maximum=4, up_at=0.75, down_at=0.4, up_after=2, down_after=3)


def follow(policy: Policy, demand: list[float]) -> list[int]:
    """Replica counts while `demand` (in replicas' worth of work) is spread evenly over them."""
    count, memory, counts = policy.minimum, Memory(), []
    for work in demand:
        wanted, memory = decide(policy, memory, [min(1.0, work / count)] * count)
        assert abs(wanted - count) <= 1 and policy.minimum <= wanted <= policy.maximum
        count = wanted
        counts.append(count)
    return counts


def test_a_peak_is_no_load() -> None:
    assert follow(POLICY, [1.0, 0.1] * 10) == [1] * 20


def test_more_work_brings_more_replicas_up_to_the_limit() -> None:
    counts = follow(POLICY, [8.0] * 20)
    assert counts[1] == 2 and counts[-1] == 4
    assert counts == sorted(counts)


def test_less_work_lets_them_go_one_by_one_and_later() -> None:
    counts = follow(POLICY, [8.0] * 10 + [0.05] * 30)
    assert counts[9] == 4 and counts[-1] == 1
    assert counts.index(3, 10) - 10 >= POLICY.down_after - 1


@pytest.mark.parametrize("work", [i / 20 for i in range(81)])
def test_steady_work_never_makes_it_swing(work: float) -> None:
    for start in ([0.0] * 30, [8.0] * 30):
        counts = follow(POLICY, start + [work] * 60)[30:]
        changes = [b - a for a, b in zip(counts, counts[1:], strict=False) if a != b]
        assert all(c > 0 for c in changes) or all(c < 0 for c in changes)
        assert len(set(counts[-20:])) == 1


def test_never_outside_of_the_limits_whatever_the_load() -> None:
    dice = random.Random(2)
    policy = Policy(minimum=2, maximum=3, up_after=1, down_after=1)
    count, memory = 2, Memory()
    for _ in range(1000):
        loads = [dice.random() * 1.2 for _ in range(count)]
        count, memory = decide(policy, memory, loads)
        assert 2 <= count <= 3


def test_fewer_than_the_minimum_is_made_good_at_once() -> None:
    assert decide(Policy(minimum=3), Memory(), [0.0])[0] == 3


def test_pinned_replicas_are_spread_then_colocated() -> None:
    assert [spread([0, 2, 5], i) for i in range(7)] == [0, 2, 5, 0, 2, 5, 0]
