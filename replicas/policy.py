"""How many replicas an instance should have: pure decisions (paper 6.3.4).

The load of a replica is the share of time in which it had something to do. One number that is
too high or too low says nothing: it must stay so for some periods, and after each change all is
measured anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    minimum: int = 1
    maximum: int = 4
    up_at: float = 0.75  # mean load above which one more is started
    down_at: float = 0.40  # load that the others would have, below which one is drained
    up_after: int = 2  # periods in a row
    down_after: int = 10
    period_s: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Periods in a row that called for more, and for fewer."""

    above: int = 0
    below: int = 0


def decide(policy: Policy, memory: Memory, loads: Sequence[float]) -> tuple[int, Memory]:
    """(replicas wanted, what to remember) from the load of each that takes new connections."""
    count = len(loads)
    if count < policy.minimum:
        return policy.minimum, Memory()
    total = sum(loads)
    above = memory.above + 1 if total / count > policy.up_at else 0
    # Judged by what would be left to do for the others: so one step down never calls for one up.
    fewer = count > policy.minimum and total / (count - 1) < min(policy.down_at, policy.up_at)
    below = memory.below + 1 if fewer else 0
    if above >= policy.up_after and count < policy.maximum:
        return count + 1, Memory()
    if below >= policy.down_after:
        return count - 1, Memory()
    return count, Memory(above, below)


def spread(cpus: Sequence[int], replica: int) -> int:
    """Core of a replica that is pinned: as many cores as there are, then colocated in turns."""
    return cpus[replica % len(cpus)]
