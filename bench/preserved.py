"""``python -m bench preserved``: what a crash leaves of the connections, against throughput.

Figure 6.13 of the paper. Its model (6.5.4): a failure hits a random byte of a replica's code, so a
component fails as often as its code is long, and without recovery of state tcp's connections are
lost with it: 1 - 1/N for one process, 1 - (code of tcp / code of all) / N for four. Measured is the
same: components drawn by the length of their code get SIGSEGV under load, and the connections that
break are counted. The third series is the stateful recovery, which the paper does not have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import components, programs
from bench.cases import Timing
from bench.errors import CaseFailed, SkipCase
from bench.faults import SERVE_S, STALL_S, Instance, Trial
from bench.killer import Process, processes
from bench.measure import Plan
from bench.scatter import Point, scatter
from bench.witness import Size, Witnesses
from bench.worlds import PLACEMENTS, Neat, machine, neat_up

RESULTS = Path(__file__).parent / "results"
CASE = "lighttpd"  # the paper's load
# Each crash is judged by itself: no quarantine, and no stateless start after many of them.
ALONE = ("--faults", "64", "--fault-window", "0.001")
PARTS = {"neat-tcp": "replica", "neat-replica": "replica"}  # their role; the others': their name


@dataclass(frozen=True)
class Setup:
    """How an instance is started."""

    layout: str  # of components.LAYOUTS
    mode: str
    replicas: int

    @property
    def name(self) -> str:
        return f"{self.layout} {self.replicas}x {self.mode}"

    @property
    def code(self) -> dict[str, int]:
        """Role -> bytes of machine code of a replica's processes; what holds TCP comes first."""
        sizes = components.model(self.layout, self.replicas)["code_bytes"]
        return {PARTS.get(name, name.removeprefix("neat-")): size for name, size in sizes.items()}

    @property
    def modelled(self) -> float:
        """Expected share of connections that one crash leaves."""
        return 1.0 if self.mode == "stateful" else components.preserved(self.code, self.replicas)


@dataclass
class Measured:
    """What crashes did to the connections of one setup."""

    crashes: dict[str, int]  # by role
    connections: int = 0  # that were there, summed over all crashes
    lost: int = 0

    @property
    def preserved(self) -> float:
        return 1 - self.lost / self.connections if self.connections else float("nan")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench preserved", description=__doc__)
    p.add_argument("--crashes", type=int, default=1000, metavar="K", help="of each setup (1000)")
    p.add_argument("--replicas", default="1,2", metavar="LIST", help="default 1,2")
    p.add_argument("--connections", type=int, default=32, metavar="C", help="default 32")
    p.add_argument("--seed", type=int, help="default: random, printed")
    p.add_argument("--json", type=Path, metavar="FILE", help="default bench/results/preserved-…")
    p.add_argument("--svg", type=Path, metavar="FILE", help="default beside it")
    args = p.parse_args(argv)
    args.replicas = [int(n) for n in args.replicas.split(",")]
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 16)
    return args


class Crashes:
    """An instance whose components crash one after another under clients that check every byte."""

    def __init__(self, setup: Setup, neat: Neat, witnesses: Witnesses, dice: random.Random) -> None:
        self.code = setup.code
        self.instance = Instance(argparse.Namespace(), neat, witnesses)
        self.witnesses = witnesses
        self.dice = dice
        self.measured = Measured(dict.fromkeys(self.code, 0))
        self.expected = setup.replicas * len(self.code)

    def ready(self) -> list[Process]:
        """All processes of all replicas. Blocks until they are ready, CaseFailed if they do not."""
        end = time.monotonic() + SERVE_S
        while time.monotonic() < end:
            found = [p for p in processes(self.instance.status()) if p.role in self.code]
            if len(found) == self.expected and all(p.ready for p in found):
                return found
            time.sleep(0.003)
        raise CaseFailed("a component is not ready")

    def one(self) -> None:
        """One crash, in the middle of requests of all connections."""
        role = self.dice.choices([*self.code], [*self.code.values()])[0]
        victim = self.dice.choice([p for p in self.ready() if p.role == role])
        trial = Trial(sum(self.measured.crashes.values()), role, victim.index, "SIGSEGV")
        there = len(self.witnesses.look())
        goals = self.instance.go()
        os.kill(victim.pid, signal.SIGSEGV)
        self.instance.watch(trial, {}, STALL_S, goals)
        self.instance.watch(trial, {}, STALL_S)
        if trial.disasters or trial.corrupt:
            raise CaseFailed(f"{role} {victim.index}: {trial.disasters or trial.losses}")
        self.measured.crashes[role] += 1
        self.measured.connections += there
        self.measured.lost += len({loss.who for loss in trial.losses})


def measure(setup: Setup, args: argparse.Namespace, dice: random.Random) -> Measured:
    """The crashes of one setup, on an instance of its own."""
    with contextlib.ExitStack() as stack:
        neat = neat_up(setup.replicas, "--components", setup.layout, "--mode", setup.mode, *ALONE)
        stack.callback(neat.down)
        where = Path(tempfile.mkdtemp(prefix="neat-preserved-"))
        stack.callback(shutil.rmtree, where, ignore_errors=True)
        size = Size(args.connections // 2, 0, 0)  # of each of two clients
        witnesses = Witnesses(neat, None, where, size, dice.randrange(1 << 30))
        stack.callback(witnesses.stop)
        crashes = Crashes(setup, neat, witnesses, dice)
        crashes.instance.serve()
        while sum(crashes.measured.crashes.values()) < args.crashes:
            crashes.one()
        return crashes.measured


def throughput(replicas: int) -> dict[str, float]:
    """Layout -> requests a second, both layouts alternating."""
    case = next(c for c in programs.CASES if c.name == CASE)
    plan = Plan(3, Timing(0.3, 1.0), Timing(0.3, 0.8), PLACEMENTS["free"], lambda _: None)
    with components.instances(replicas) as worlds:
        found = components.row(case, components.run(case, worlds, plan))
    return {layout: found[layout]["value"]["median"] for layout in components.LAYOUTS}


def points(rows: list[dict[str, Any]]) -> list[Point]:
    """Modelled and measured, for the plot."""
    out = []
    for row in rows:
        series = "stateful" if row["mode"] == "stateful" else f"{row['layout']}, stateless"
        label = f"{row['layout']} {row['replicas']}x"
        for key in ("modelled", "preserved"):
            out.append(Point(series, label, row["per_s"] / 1e3, row[key], key == "preserved"))
    return out


def _run(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    dice = random.Random(args.seed)
    for replicas in args.replicas:
        rates = throughput(replicas)
        for layout in components.LAYOUTS:
            for mode in ("stateless", "stateful"):
                setup = Setup(layout, mode, replicas)
                found = measure(setup, args, dice)
                row = {**asdict(setup), **asdict(found), "per_s": rates[layout]}
                row |= {"modelled": setup.modelled, "preserved": found.preserved}
                rows.append(row)
                print(
                    f"{setup.name}: {rates[layout] / 1e3:.1f} k req/s; preserved after a crash: "
                    f"modelled {setup.modelled:.3f}, measured {found.preserved:.3f} "
                    f"({sum(found.crashes.values())} crashes)",
                    flush=True,
                )


def main(argv: list[str]) -> int:
    """Entry point. 0: all was measured."""
    args = parse(argv)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    rows: list[dict[str, Any]] = []
    again = f"python -m bench preserved --crashes {args.crashes} --seed {args.seed}"
    print(f"again: {again}", flush=True)
    problem = ""
    try:
        _run(args, rows)
    except (CaseFailed, SkipCase) as why:
        problem = str(why)
        print(f"PROBLEM {why}", flush=True)
    path = args.json or RESULTS / f"preserved-{started.replace(':', '').split('+')[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"started": started, "again": again, "machine": machine(), "rows": rows}
    path.write_text(json.dumps({**whole, "problem": problem}, indent=1) + "\n")
    picture = args.svg or path.with_suffix(".svg")
    picture.write_text(
        scatter(
            "state preserved after a crash, against throughput",
            (f"{CASE}, k requests/s", "share of connections that go on"),
            points(rows),
            f"{started}   hollow: modelled, filled: measured",
        )
        + "\n"
    )
    print(f"written: {path}, {picture}")
    return 1 if problem else 0
