"""``python -m bench kills``: kill -9 of all but the keeper, under clients that check every byte."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from bench.errors import CaseFailed, SkipCase
from bench.killer import COMPONENTS, VICTIMS, Kill, Killer
from bench.peers import Loads, start_instance
from bench.worlds import Neat, machine
from neatsock.instance import InstanceError, ask

RESULTS = Path(__file__).parent / "results"
READY = re.compile(r"replica (\d+) is ready, (\d+) us after the death")
PRECEDING = 3  # kills named with a failure
SHOWN = 40  # failures printed
DRAIN_S = 20.0
OPENING_S = 120.0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench kills", description=__doc__)
    p.add_argument("--kills", type=int, default=500, metavar="N", help="default 500")
    p.add_argument("--rate", type=float, default=10, metavar="R", help="kills a second, default 10")
    p.add_argument("--victims", metavar="LIST", help=f"default all of {','.join(VICTIMS)}")
    p.add_argument("--components", choices=("single", "multi"), default="single")
    p.add_argument("--connections", type=int, default=200, metavar="C", help="default 200")
    p.add_argument(
        "--threads", type=int, default=4, metavar="T", help="blocking connections beside them"
    )
    p.add_argument(
        "--active", type=int, default=16, metavar="A", help="requests at a time, of each client"
    )
    p.add_argument("--replicas", type=int, default=2, metavar="N", help="default 2")
    p.add_argument("--peer", choices=("local", "tap", "both"), default="local")
    p.add_argument("--early", type=float, default=0.1, help="share of double kills, default 0.1")
    p.add_argument("--phase", type=float, default=10, metavar="S", help="seconds with kills")
    p.add_argument("--seconds", type=float, default=1e9, metavar="S", help="no more than this")
    p.add_argument("--mode", choices=("stateful", "stateless"), default="stateful")
    p.add_argument("--seed", type=int, help="default: random, printed")
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="default bench/results/kills-TIME.json"
    )
    args = p.parse_args(argv)
    there = tuple(v for v in VICTIMS if v not in COMPONENTS or args.components == "multi")
    args.victims = tuple(args.victims.split(",")) if args.victims else there
    if not set(args.victims) <= set(there):
        p.error(f"--victims is a list of {', '.join(there)}")
    if args.peer == "local" and set(args.victims) == {"nic"}:
        p.error("--victims nic needs --peer tap or both")
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 16)
    return args


def again(args: argparse.Namespace) -> str:
    """The command that repeats this run."""
    names = (
        "kills", "rate", "connections", "threads", "active", "replicas",
        "peer", "early", "phase", "mode", "components", "seed",
    )  # fmt: skip
    words = [f"--{name} {getattr(args, name)}" for name in names]
    return " ".join(["python -m bench kills", *words, "--victims", ",".join(args.victims)])


class Run:
    """One instance, its loads, its killer, and what came of it."""

    def __init__(self, args: argparse.Namespace, neat: Neat, loads: Loads) -> None:
        self.args = args
        self.neat = neat
        self.loads = loads
        victims = tuple(v for v in args.victims if v != "nic" or args.peer != "local")
        rng = random.Random(args.seed)
        self.killer = Killer(neat.control, victims, args.early, rng, self._killed)
        self.phases: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def _killed(self, kill: Kill) -> None:
        # With one replica the next request served is served by its successor.
        if kill.role == "replica" and self.args.replicas == 1:
            self.loads.signal(signal.SIGUSR2)

    def everything(self) -> None:
        """Phases without and with kills in turn. Blocks until all kills are done."""
        args = self.args
        self._open()
        end = time.monotonic() + args.seconds
        while len(self.killer.done) < args.kills and time.monotonic() < end:
            time.sleep(args.phase / 3)
            self._end_phase(False, 0)
            before = len(self.killer.done)
            self.killer.run(
                min(args.kills - before, max(1, round(args.rate * args.phase))), args.rate
            )
            self._end_phase(True, len(self.killer.done) - before)
        time.sleep(args.phase / 3)
        self._end_phase(False, 0)
        self._look_at_instance()

    def _open(self) -> None:
        """Wait until every connection is open; that is not part of any phase."""
        opened, end = 0, time.monotonic() + OPENING_S
        while opened < self.args.connections and time.monotonic() < end:
            time.sleep(0.2)
            found, failures = self.loads.phase()
            self._note(failures)
            opened += sum(line["connects"] for line in found.values())

    def _end_phase(self, killing: bool, kills: int) -> None:
        found, failures = self.loads.phase()
        self._note(failures)
        self.phases.append({"killing": killing, "kills": kills, "clients": found})
        word = "kills" if killing else "quiet"
        for name, line in found.items():
            cells = (
                f"{word} {line['seconds']:6.2f} s {kills:5} kills  {name:<8}",
                f"{line['requests']:8} requests {line['connects']:6} connects",
                f"{line['bytes'] >> 20:6} MiB  p50 {line['p50_us']:8.0f} p99 {line['p99_us']:8.0f}",
                f"p99.9 {line['p999_us']:8.0f} max {line['max_us']:8.0f} us",
                f"failures {line['failures']}",
            )
            print(*cells, flush=True)

    def _note(self, failures: list[dict[str, Any]]) -> None:
        for failure in failures:
            before = [k for k in self.killer.done if k.at_ns <= failure["at_ns"]][-PRECEDING:]
            failure["kills"] = [
                f"{(failure['at_ns'] - k.at_ns) / 1e6:.2f} ms before: {k}" for k in reversed(before)
            ]
            self.failures.append(failure)
            if len(self.failures) <= SHOWN:
                print(f"FAILURE {json.dumps(failure)}", flush=True)

    def _look_at_instance(self) -> None:
        found = ask(self.neat.control, {"cmd": "status"}, 30)
        for r in found["replicas"]:
            if r["state"] != "ready" or r.get("fell_back") or r.get("strikes"):
                self.problems.append(f"replica {r['index']} is not well: {r}")

    def drained(self) -> None:
        """The programs have ended: nothing of them may be left anywhere."""
        end = time.monotonic() + DRAIN_S
        while left := self._left():
            if time.monotonic() > end:
                self.problems.append(f"{DRAIN_S:.0f} s after the last program: {left}")
                return
            time.sleep(0.1)

    def _left(self) -> str:
        try:
            found = ask(self.neat.control, {"cmd": "status"}, 30)
        except InstanceError as err:
            return str(err)
        if found["apps"]:
            return f"applications {[app['app_id'] for app in found['apps']]}"
        for r in found["replicas"]:
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{r['pid']}/maps").read_text()
                if segments := maps.count("neat_seg"):
                    return f"replica {r['index']} still maps {segments} segments"
            if r["connections"]:
                return f"replica {r['index']} has {r['connections']} connections"
        return ""

    def recoveries(self) -> list[int]:
        """us from a replica's death to its successor's R_READY, from the keeper's log."""
        log = self.neat.control.with_suffix(".log").read_text(errors="replace")
        return [int(us) for _, us in READY.findall(log)]


def quantile(values: list[float], q: float) -> float:
    """Of a list that is not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def spread(name: str, values: list[float]) -> str:
    """One line."""
    if not values:
        return f"{name}: none"
    return (
        f"{name}: p50 {median(values):.0f}, p99 {quantile(values, 0.99):.0f}, "
        f"max {max(values):.0f} us ({len(values)})"
    )


def middle(phases: list[dict[str, Any]], killing: bool) -> list[str]:
    """The median phase of each client."""
    lines = []
    names = list(phases[0]["clients"]) if phases else []
    for name in names:
        rows = [p["clients"][name] for p in phases if p["killing"] == killing]
        if not rows:
            continue
        cells = [
            f"{label} {median(row[key] for row in rows):.0f}"
            for label, key in (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"))
        ]
        rate = median(row["requests"] / row["seconds"] for row in rows)
        total = sum(row["requests"] for row in rows)
        word = "with kills" if killing else "without"
        lines.append(
            f"{name:<8} {word:<10} {', '.join(cells)} us; {rate:.0f} requests/s; {total} requests"
        )
    return lines


def report(run: Run) -> dict[str, Any]:
    """Print the end of it; what goes to the JSON file."""
    counts = {v: sum(k.role == v for k in run.killer.done) for v in VICTIMS}
    recoveries = run.recoveries()
    firsts = [us for p in run.phases for line in p["clients"].values() for us in line["firsts_us"]]
    print(f"\n{len(run.killer.done)} kills: {', '.join(f'{v} {n}' for v, n in counts.items())}")
    for line in (*middle(run.phases, False), *middle(run.phases, True)):
        print(line)
    print(spread("death to R_READY (keeper)", [float(us) for us in recoveries]))
    if run.args.replicas == 1:
        print(spread("kill to the first request served after it", firsts))
    print(f"failures: {len(run.failures)}")
    for problem in run.problems:
        print(f"PROBLEM {problem}")
    return {
        "again": again(run.args),
        "machine": machine(),
        "kills": counts,
        "early": sum(k.early for k in run.killer.done),
        "phases": run.phases,
        "recovery_us": recoveries,
        "first_us": firsts,
        "failures": run.failures,
        "problems": run.problems,
    }


def execute(args: argparse.Namespace, stack: contextlib.ExitStack) -> Run:
    """Start everything, kill, end everything but the instance."""
    options = ["--mode", args.mode, "--components", args.components]
    neat, net = start_instance(stack, args.replicas, args.peer != "local", *options)
    where = Path(tempfile.mkdtemp(prefix="neat-kills-"))
    stack.callback(shutil.rmtree, where, ignore_errors=True)
    loads = Loads(neat, net, where)
    stack.callback(loads.stop)
    run = Run(args, neat, loads)
    try:
        loads.start(args.peer, args.connections, args.threads, args.active, args.seed)
        run.everything()
    except CaseFailed as why:
        run.problems.append(str(why))
    loads.stop()
    run.drained()
    return run


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt  # what was started is ended, the namespace removed


def main(argv: list[str]) -> int:
    """Entry point. 0: nobody noticed anything."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, _stop)
    print(f"again: {again(args)}", flush=True)
    with contextlib.ExitStack() as stack:
        try:
            run = execute(args, stack)
        except SkipCase as why:
            print(f"skipped: {why}", file=sys.stderr)
            return 1
        result = report(run)
        if run.failures or run.problems:
            kept = Path(tempfile.mkdtemp(prefix="neat-kills-failed-"))
            shutil.copy(neat_log := run.neat.control.with_suffix(".log"), kept)
            print(f"the instance's log is kept: {kept / neat_log.name}")
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = args.json or RESULTS / f"kills-{started.replace(':', '').split('+')[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"started": started, **result}, indent=1) + "\n")
    print(f"written: {path}\nagain: {again(args)}")
    return 1 if run.failures or run.problems else 0
