"""``python -m bench stalls``: requests that wait for a timer, which medians of rates hide.

Every pattern is asked in a closed loop, on the kernel and on neatsock in turns, and all latencies
above 30 ms are listed by size. A stall is one at a round figure (40 ms: a delayed ACK; 200 ms: a
retransmission, CORK; 1 s: a lost SYN) that the kernel does not have, and it repeats.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.cases import last_json
from bench.errors import CaseFailed, SkipCase
from bench.measure import Server, serving, start_in
from bench.stall_targets import Probe, Target, all_targets
from bench.worlds import HOST, KERNEL, PLACEMENTS, Neat, World, neat_up
from neatsock.instance import ask

BANDS_MS = (30.0, 60.0, 180.0, 300.0, 900.0)  # lower bounds
SLACK_S = 30.0
COUNTERS = ("retransmits", "drops", "resets")


@dataclass(frozen=True)
class Seen:
    """What one client saw."""

    count: int
    p50_ms: float
    p99_ms: float
    slow_ms: tuple[float, ...]

    def bands(self) -> tuple[int, ...]:
        """How many latencies each band of BANDS_MS has."""
        ends = (*BANDS_MS[1:], float("inf"))
        return tuple(
            sum(low <= ms < high for ms in self.slow_ms)
            for low, high in zip(BANDS_MS, ends, strict=True)
        )


def suspicious(kernel: Seen, neat: Seen) -> bool:
    """More slow answers than on the kernel, by share, and more than one."""
    k, n = sum(kernel.bands()), sum(neat.bands())
    return n > 1 and n / max(neat.count, 1) > 2 * k / max(kernel.count, 1)


def see(server: Server, probe: Probe, seconds: float) -> Seen:
    """Run one client. CaseFailed if it fails or hangs."""
    argv = probe.argv(HOST, server.ports[0], seconds)
    child = start_in(server.world, PLACEMENTS["free"], "client", argv, server.where)
    try:
        status = child.popen.wait(seconds + SLACK_S)
        if status:
            raise CaseFailed(f"the client ended with status {status}: {child.complaint()}")
        found: dict[str, Any] = last_json(child.stdout())
        return Seen(
            int(found["count"]),
            float(found["p50_ms"]),
            float(found["p99_ms"]),
            tuple(found["slow_ms"]),
        )
    except subprocess.TimeoutExpired:
        raise CaseFailed(f"the client hangs: {child.complaint()}") from None
    finally:
        child.stop()


def counters(world: World) -> dict[str, int]:
    """Sums over all replicas; all 0 on the kernel."""
    if not isinstance(world, Neat):
        return dict.fromkeys(COUNTERS, 0)
    replicas = ask(world.control, {"cmd": "status"})["replicas"]
    return {name: sum(int(r.get(name, 0)) for r in replicas) for name in COUNTERS}


def line(world: str, seen: Seen, counted: dict[str, int]) -> str:
    """One world's part of a report."""
    bands = " ".join(f"{n:5}" if n else "    ." for n in seen.bands())
    worst = max(seen.slow_ms, default=0.0)
    more = " ".join(f"{name} {n}" for name, n in counted.items() if n)
    typical = f"{seen.p50_ms:8.2f} {seen.p99_ms:8.2f}"
    return f"  {world:8} {seen.count:7} {typical} {worst:8.1f}  {bands}  {more}"


def hunt(target: Target, worlds: Sequence[World], seconds: float) -> int:
    """Serve one target in every world, ask in turns, print; how many probes look like stalls."""
    found = 0
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(target, w, PLACEMENTS["free"])) for w in worlds]
        for probe in target.probes:
            print(f"{target.name} {probe.name}".strip(), flush=True)
            seen = []
            for server in servers:
                before = counters(server.world)
                try:
                    seen.append(see(server, probe, seconds))
                except CaseFailed as why:
                    print(f"  {server.world.name:8} FAILED {why}", flush=True)
                    found += 1
                    continue
                after = counters(server.world)
                counted = {name: after[name] - before[name] for name in COUNTERS}
                print(line(server.world.name, seen[-1], counted), flush=True)
            if len(seen) == 2 and suspicious(*seen):
                slow = " ".join(f"{ms:.0f}" for ms in seen[1].slow_ms[:20])
                print(f"  STALL?   {slow}", flush=True)
                found += 1
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench stalls", description=__doc__)
    p.add_argument("targets", nargs="*", metavar="TARGET", help="default all")
    p.add_argument("--list", action="store_true", help="names of the targets")
    p.add_argument("--seconds", type=float, default=1.0, help="of each client (default 1)")
    p.add_argument("--replicas", type=int, default=1)
    p.add_argument("--up", default="", metavar="OPTIONS", help="for `neatsock up`, in one word")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point. 0: nothing looks like a stall."""
    args = parse(argv)
    targets = {t.name: t for t in all_targets()}
    if args.list:
        print("\n".join(targets))
        return 0
    if unknown := [name for name in args.targets if name not in targets]:
        print(f"no such target: {', '.join(unknown)}; see --list", file=sys.stderr)
        return 2
    found = 0
    neat = neat_up(args.replicas, *shlex.split(args.up))
    try:
        bands = " ".join(f"{low:4.0f}+" for low in BANDS_MS)
        print(f"  {'world':8} {'count':>7} {'p50 ms':>8} {'p99 ms':>8} {'worst':>8}  {bands}")
        for name in args.targets or targets:
            try:
                found += hunt(targets[name], (KERNEL, neat), args.seconds)
            except (CaseFailed, SkipCase) as why:
                print(f"{name}: {why}", flush=True)
                found += isinstance(why, CaseFailed)
    finally:
        neat.down()
    print(f"{found} of these look like stalls" if found else "no stalls")
    return 1 if found else 0
