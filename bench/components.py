"""``python -m bench components``: a replica as one process against four (figure 6.13's x axis).

The same loads on two private instances, alternating. Beside the throughput stands what the paper's
model says is preserved when a failure hits a random byte of code and tcp's connections are lost
with it (stateless): 1 - 1/N for one process, 1 - (code of tcp / code of all) / N for four.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import cases, programs
from bench.cases import Case, Timing
from bench.errors import CaseFailed, SkipCase
from bench.measure import Plan, alternate, serving
from bench.model import Side, spread
from bench.worlds import PLACEMENTS, Neat, machine, native_dir, neat_up

RESULTS = Path(__file__).parent / "results"
LAYOUTS = ("single", "multi")
CASES = ("echo-8", "echo-50", "latency-closed", "bulk-64k", "lighttpd", "redis-get")
PROGRAMS = {
    "single": ("neat-replica",),
    "multi": ("neat-tcp", "neat-ip", "neat-udp", "neat-filter"),
}
PF_X = 1


def code_bytes(program: Path) -> int:
    """Bytes of machine code of a 64-bit little-endian ELF file: its executable segments."""
    with open(program, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{program} is no 64-bit little-endian ELF file")
        (at,), size, count = (
            struct.unpack_from("<Q", head, 32),
            *struct.unpack_from("<HH", head, 54),
        )
        file.seek(at)
        table = [struct.unpack_from("<IIQQQQ", file.read(size)) for _ in range(count)]
    return sum(filesz for kind, flags, _, _, _, filesz in table if kind == 1 and flags & PF_X)


def preserved(code: dict[str, int], replicas: int) -> float:
    """Expected share of connections that survive one fault, stateless (paper 6.6)."""
    first = next(iter(code.values()))
    return 1 - first / sum(code.values()) / replicas


def model(layout: str, replicas: int) -> dict[str, Any]:
    code = {name: code_bytes(native_dir() / name) for name in PROGRAMS[layout]}
    return {"code_bytes": code, "preserved_stateless": preserved(code, replicas)}


def wanted(text: str | None) -> list[Case]:
    """All cases, or those whose name contains `text`."""
    every = {case.name: case for case in (*cases.CASES, *programs.CASES)}
    return [every[n] for n in every if (n in CASES if text is None else text in n)]


@contextlib.contextmanager
def instances(replicas: int) -> Iterator[list[Neat]]:
    with contextlib.ExitStack() as stack:
        found = []
        for layout in LAYOUTS:
            world = neat_up(replicas, "--components", layout)
            stack.callback(world.down)
            found.append(replace(world, name=layout))
        yield found


def run(case: Case, worlds: list[Neat], plan: Plan) -> dict[str, Side]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(case, w, plan.placement)) for w in worlds]
        return alternate(case, servers, plan)


def row(case: Case, sides: dict[str, Side]) -> dict[str, Any]:
    """What goes to the file, and the ratio multi / single turned so that more is better."""
    pairs = zip(sides["single"].samples, sides["multi"].samples, strict=True)
    each = [(s.reading.value, m.reading.value) for s, m in pairs]
    ratio = spread([m / s if case.higher_is_better else s / m for s, m in each])
    out: dict[str, Any] = {"case": case.name, "title": case.title, "unit": case.unit}
    out["ratio"] = asdict(ratio) if ratio else None
    for layout in LAYOUTS:
        side = sides[layout]
        out[layout] = {
            "value": asdict(side.value) if side.value else None,
            "p50_us": side.latency("p50"),
            "p99_us": side.latency("p99"),
            "cpu_us": asdict(side.cpu) if side.cpu else None,
            "foreign_cores": max(s.foreign for s in side.samples),
        }
    return out


def line(found: dict[str, Any]) -> str:
    values = ", ".join(f"{n} {found[n]['value']['median']:.0f}" for n in LAYOUTS)
    ratio = found["ratio"]
    noisy = " noisy" if max(found[n]["foreign_cores"] for n in LAYOUTS) > 0.1 else ""
    text = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return f"{found['title']}: {values} {found['unit']}; multi/single {text}{noisy}"


def parse(argv: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m bench components", description=__doc__)
    p.add_argument("--quick", action="store_true", help="shorter runs")
    p.add_argument("--replicas", type=int, default=1, metavar="N", help="default 1")
    p.add_argument("--rounds", type=int, metavar="K", help="default 5, with --quick 3")
    p.add_argument("--case", help="only the cases whose name contains this")
    p.add_argument("--json", type=Path, metavar="FILE", help="default bench/results/components-…")
    return p.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point. 0: all ran or were skipped with a reason."""
    args = parse(argv)
    timing = Timing(0.2, 0.8) if args.quick else Timing(0.5, 2.5)
    rounds = args.rounds or (3 if args.quick else 5)
    plan = Plan(rounds, timing, Timing(0.3, 0.8), PLACEMENTS["free"], lambda _: None)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report: dict[str, Any] = {"started": started, "machine": machine(), "replicas": args.replicas}
    report["model"] = {layout: model(layout, args.replicas) for layout in LAYOUTS}
    report["results"], failed = [], False
    try:
        with instances(args.replicas) as worlds:
            for case in wanted(args.case):
                try:
                    found = row(case, run(case, worlds, plan))
                    print(line(found), flush=True)
                except SkipCase as why:
                    found = {"case": case.name, "problem": f"skipped: {why}"}
                    print(f"{case.title}: skipped: {why}")
                except CaseFailed as why:
                    failed, found = True, {"case": case.name, "problem": f"failed: {why}"}
                    print(f"{case.title}: FAILED: {why}")
                report["results"].append(found)
    except SkipCase as why:
        print(f"skipped: {why}", file=sys.stderr)
        return 1
    for layout, found in report["model"].items():
        print(f"{layout}: preserved after a fault, modelled: {found['preserved_stateless']:.2f}")
    path = args.json or RESULTS / f"components-{started.replace(':', '').split('+')[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {path}")
    return 1 if failed else 0
