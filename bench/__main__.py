"""``python -m bench GROUP...``: kernel sockets against neatsock."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from bench import (
    cases,
    components,
    faults,
    idle,
    kills,
    preserved,
    programs,
    render,
    scale,
    stalls,
    svg,
)
from bench.cases import Case, Timing
from bench.errors import CaseFailed, SkipCase
from bench.measure import Plan, run_case
from bench.model import Report, Result
from bench.worlds import KERNEL, PLACEMENTS, World, machine, neat_up

GROUPS = (
    "echo",
    "latency",
    "bulk",
    "idle",
    "lighttpd",
    "nginx",
    "redis",
    "memcached",
    "python",
    "connect",
)  # connect last: it leaves 100 000 sockets in TIME_WAIT for a minute
RESULTS = Path(__file__).parent / "results"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="`python -m bench kills`, `faults`, `scale`, `components`, `preserved`, "
        "`stalls` have their own options.",
    )
    p.add_argument(
        "groups",
        nargs="+",
        choices=(*GROUPS, "all"),
        metavar="GROUP",
        help=", ".join((*GROUPS, "all")),
    )
    p.add_argument("--quick", action="store_true", help="shorter runs: all in under 10 minutes")
    p.add_argument("--replicas", type=int, default=1, metavar="N", help="default 1")
    p.add_argument("--rounds", type=int, metavar="K", help="default 5, with --quick 3")
    p.add_argument(
        "--place",
        choices=PLACEMENTS,
        default="free",
        help="CPUs of server and client, in both worlds: the scheduler's choice, both "
        "on CPU 0, or one each (default free)",
    )
    p.add_argument("--kernel-only", action="store_true", help="without neatsock")
    p.add_argument("--case", help="only the cases whose name contains this")
    p.add_argument("--json", type=Path, metavar="FILE", help="default bench/results/TIME.json")
    p.add_argument("--svg", type=Path, metavar="FILE", help="default bench/results/TIME.svg")
    args = p.parse_args(argv)
    for name in ("replicas", "rounds"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            p.error(f"--{name} must be at least 1")
    return args


def plan_of(args: argparse.Namespace) -> Plan:
    """How to measure."""
    timing = Timing(0.2, 0.8) if args.quick else Timing(0.5, 2.5)
    return Plan(
        args.rounds or (3 if args.quick else 5),
        timing,
        Timing(0.3, 0.8),
        PLACEMENTS[args.place],
        progress,
    )


def progress(text: str) -> None:
    """What is going on, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _idle(worlds: list[Callable[[], World]], size: idle.Size, plan: Plan, _: list[World]) -> Result:
    return idle.run(worlds, size, plan)


def jobs(
    args: argparse.Namespace, worlds: list[Callable[[], World]], plan: Plan
) -> list[tuple[Case | None, Callable[[list[World]], Result]]]:
    """What to run, in order."""
    wanted = GROUPS if "all" in args.groups else [g for g in GROUPS if g in args.groups]
    every = (*cases.CASES, *programs.CASES)
    found: list[tuple[Case | None, Callable[[list[World]], Result]]] = []
    for group in wanted:
        if group == "idle" and args.case in (None, "idle"):
            size = idle.QUICK if args.quick else idle.FULL
            found.append((None, partial(_idle, worlds, size, plan)))
        for case in every:
            if case.group == group and (args.case or "") in case.name:
                found.append((case, partial(run_case, case, plan=plan)))
    return found


def failed(case: Case | None, problem: str) -> Result:
    """The result of a case that could not run."""
    if case is None:
        return Result(
            "idle", "idle connections", "B/connection", "connection", False, problem=problem
        )
    return Result(case.name, case.title, case.unit, case.op, case.higher_is_better, problem=problem)


def run_jobs(args: argparse.Namespace, report: Callable[[Result], None]) -> None:
    """Run everything; every result goes to `report` at once."""
    plan = plan_of(args)
    makers: list[Callable[[], World]] = [lambda: KERNEL]
    worlds: list[World] = [KERNEL]
    with contextlib.ExitStack() as stack:
        if not args.kernel_only:
            progress("starting neatsock")
            try:
                neat = neat_up(args.replicas)
            except SkipCase as why:
                print(f"kernel side only: {why}", file=sys.stderr)
            else:
                stack.callback(neat.down)
                worlds.append(neat)
                makers.append(lambda: neat_up(args.replicas))
        for case, job in jobs(args, makers, plan):
            try:
                result = job(worlds)
            except SkipCase as why:
                result = failed(case, f"skipped: {why}")
            except CaseFailed as why:
                result = failed(case, f"failed: {why}")
            progress("")
            report(result)


def save(report: Report, args: argparse.Namespace) -> None:
    """Write JSON and SVG."""
    stem = RESULTS / report.started.replace(":", "").split("+")[0]
    for path, text in (
        (args.json or stem.with_suffix(".json"), json.dumps(report.as_json(), indent=1)),
        (args.svg or stem.with_suffix(".svg"), svg.plot(report)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        print(f"written: {os.path.relpath(path)}")


def _stop(_number: int, _frame: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # cleaning up has deadlines: let it finish
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Entry point. 0: all ran (or were skipped with a reason), 1: something failed, 130: Ctrl-C."""
    args = parse()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    results: list[Result] = []
    settings = {
        "replicas": str(args.replicas),
        "placement": args.place,
        "rounds": str(plan_of(args).rounds),
        "quick": "yes" if args.quick else "no",
    }
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    this_machine = machine()

    def report() -> Report:
        return Report(started, this_machine, settings, tuple(results))

    def show(result: Result) -> None:
        results.append(result)
        print(render.block(result), end="\n\n", flush=True)

    print(render.heading(report()), end="\n\n", flush=True)
    try:
        run_jobs(args, show)
        print(render.summary(report()))
    except KeyboardInterrupt:
        print("\ninterrupted; everything started here has been ended", file=sys.stderr)
        return 130
    finally:
        if results:  # what was measured is kept, whatever ended the run
            save(report(), args)
    return (
        1
        if any(
            (r.problem or "").strip() and not (r.problem or "").startswith("skipped")
            for r in results
        )
        else 0
    )


if __name__ == "__main__":
    own = {
        "kills": kills.main,
        "faults": faults.main,
        "scale": scale.main,
        "components": components.main,
        "preserved": preserved.main,
        "stalls": stalls.main,
    }
    alone = own.get("".join(sys.argv[1:2]))
    sys.exit(alone(sys.argv[2:]) if alone else main())
