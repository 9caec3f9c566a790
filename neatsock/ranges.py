"""Numbers that options take: `neatsock up` and neatd read them by this one table.

A converter is a `type` of argparse. What it refuses, it refuses with the range.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from neatsock.instance import REPLICAS_MAX

APPS_MOST = 160  # of 825 GB of address space each, a replica has room for 170
FAULTS_MOST = 64  # FAULTS_KEPT of the keeper
DAY_S = 86400
UP_AT, DOWN_AT = 75.0, 40.0  # percent, see replicas/policy.py


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def seconds(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 7 * DAY_S:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to {7 * DAY_S} seconds")
    return value


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(f"{value} is not {self.low} to {self.high}")
        return value


@dataclass(frozen=True)
class Milliseconds:
    """Seconds in, whole milliseconds out."""

    low_ms: int
    high_ms: int

    def __call__(self, text: str) -> int:
        value = number(text) * 1000
        if not self.low_ms <= value <= self.high_ms:
            low, high = self.low_ms / 1000, self.high_ms / 1000
            raise argparse.ArgumentTypeError(f"{text} is not {low:g} to {high:g} seconds")
        return round(value)


@dataclass(frozen=True)
class Percent:
    """More than 0, at most 100; with or without the sign."""

    def __call__(self, text: str) -> float:
        value = number(text.removesuffix("%"))
        if not 0 < value <= 100:
            raise argparse.ArgumentTypeError(f"{text} is not 0 to 100")
        return value


REPLICA = Whole(0, REPLICAS_MAX - 1)
REPLICAS = Whole(1, REPLICAS_MAX)
SPIN_US = Whole(0, 1_000_000)
TIME_WAIT_MS = Whole(1, DAY_S * 1000)  # 0 means the default to a replica
BATCH = Whole(1, 4096)
SCALE_PERIOD_MS = Whole(1, DAY_S * 1000)
FAULTS = Whole(1, FAULTS_MOST)
RERANDOMIZE_S = Whole(1, 10**6)
FAULT_WINDOW = QUARANTINE = Milliseconds(1, 7 * DAY_S * 1000)
PATIENCE = Milliseconds(0, 7 * DAY_S * 1000)  # --hang, --stopped; 0 = never
LOAD = Percent()
APPS = Whole(1, APPS_MOST)
APP_SOCKETS = Whole(1, 65535)
APP_PORTS = Whole(1, 4095)
APP_BUFFERS_MIB = Whole(1, 1 << 20)
