"""What a benchmark run yields. Plain values: rates in 1/s, times in us, CPU in us per operation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

COMPANY = 0.1  # cores in use by others from which on a run counts as disturbed


@dataclass(frozen=True)
class Reading:
    """What the load generator said: the case's own value, operations per second, latencies (us)."""

    value: float
    ops: float
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None


@dataclass(frozen=True)
class Split:
    """One quantity per operation, by who caused it. The kernel's side has no stack processes."""

    server: float
    client: float
    replicas: float = 0.0
    control: float = 0.0  # keeper, neatd, nic

    @property
    def total(self) -> float:
        """All of it."""
        return self.server + self.client + self.replicas + self.control


@dataclass(frozen=True)
class Sample:
    """One run of the load in one world."""

    reading: Reading
    cpu: Split | None  # us per operation
    foreign: float  # cores that other processes of the machine were using meanwhile
    stray: float = 0.0  # kernel runs: cores used by the idle neatsock instance


@dataclass(frozen=True)
class Calls:
    """System calls per operation, from a separate short run."""

    per_op: Split
    files: Split  # of these, those that only concern files (open, stat, pread and its like, close)
    tool: str


@dataclass(frozen=True)
class Spread:
    """Median and range."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread | None:
    """Median and range of `values`, None if there are none."""
    if not values:
        return None
    return Spread(median(values), min(values), max(values))


def middle(splits: list[Split]) -> Split | None:
    """Component-wise median."""
    if not splits:
        return None
    return Split(
        *(
            median(getattr(s, f) for s in splits)
            for f in ("server", "client", "replicas", "control")
        )
    )


@dataclass(frozen=True)
class Side:
    """All samples of one world."""

    world: str
    samples: tuple[Sample, ...]
    calls: Calls | None = None

    @property
    def value(self) -> Spread | None:
        """Median and range of the case's value."""
        return spread([s.reading.value for s in self.samples])

    @property
    def cpu(self) -> Split | None:
        """Median CPU in us per operation."""
        return middle([s.cpu for s in self.samples if s.cpu])

    def latency(self, which: str) -> float | None:
        """Median over the samples of p50, p99 or p999, in us."""
        found = spread([v for s in self.samples if (v := getattr(s.reading, which)) is not None])
        return found.median if found else None


@dataclass(frozen=True)
class Result:
    """One case in both worlds; `problem` says why there is nothing (or only half) to compare."""

    case: str
    title: str
    unit: str
    op: str  # what CPU and system calls are counted per
    higher_is_better: bool
    kernel: Side | None = None
    neatsock: Side | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those of both worlds."""
        return tuple(s for side in (self.kernel, self.neatsock) if side for s in side.samples)

    @property
    def noisy(self) -> bool:
        """Whether other processes took part of the CPUs in any run: not a number to quote."""
        return any(s.foreign > COMPANY for s in self.samples)

    @property
    def ratio(self) -> Spread | None:
        """neatsock against the kernel round by round, turned so that more than 1 is better."""
        if not self.kernel or not self.neatsock:
            return None
        pairs = zip(self.kernel.samples, self.neatsock.samples, strict=False)
        each = [(n.reading.value, k.reading.value) for k, n in pairs]
        if not self.higher_is_better:
            each = [(k, n) for n, k in each]
        return spread([a / b for a, b in each if b > 0])


@dataclass(frozen=True)
class Report:
    """A whole run."""

    started: str  # ISO 8601, UTC
    machine: dict[str, str]
    settings: dict[str, str]
    results: tuple[Result, ...]

    def as_json(self) -> dict[str, Any]:
        """The report with the medians that the text output shows beside the raw samples."""
        raw = asdict(self)
        for result, out in zip(self.results, raw["results"], strict=True):
            out["ratio"] = asdict(result.ratio) if result.ratio else None
            out["noisy"] = result.noisy
            for name, side in (("kernel", result.kernel), ("neatsock", result.neatsock)):
                if side:
                    out[name]["value"] = asdict(side.value) if side.value else None
                    out[name]["cpu_us"] = asdict(side.cpu) if side.cpu else None
        return dict(raw)
