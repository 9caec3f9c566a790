"""``python -m bench scale``: replicas come and go under load, and nobody may notice.

An instance is scaled 1 -> N -> 1 again and again while clients compare every byte. What breaks is
counted; how long each step takes, and what the load does meanwhile, is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.errors import CaseFailed, SkipCase
from bench.worlds import Neat, machine, neat_up
from neatsock.instance import ask

CHURN = Path(__file__).parent / "loads" / "churn.py"
STEP_S = 60.0


@dataclass
class Outcome:
    """All of a run. Times are seconds."""

    replicas: int
    cycles: int = 0
    exchanges: int = 0
    connections: int = 0
    broken: int = 0
    seconds: float = 0.0
    up: list[float] = field(default_factory=list)  # from the command until all are ready
    drained: list[float] = field(default_factory=list)  # until the last of them has ended
    wrong: list[str] = field(default_factory=list)


class Churn:
    """A server and its clients in the instance."""

    def __init__(self, world: Neat, kind: str) -> None:
        self.world = world
        self.last: dict[str, Any] = {"exchanges": 0, "connections": 0, "broken": 0, "wrong": []}
        port = str(20000 + os.getpid() % 10000)
        self.server = self._start("serve", port, kind)
        if not self.server.stdout or self.server.stdout.readline() != "ready\n":
            raise CaseFailed("the server did not start")
        self.load = self._start("load", port)
        threading.Thread(target=self._read, daemon=True).start()
        wait(lambda: self.last["exchanges"] > 100, "the load starts")

    def _start(self, *args: str) -> subprocess.Popen[str]:
        command = [*self.world.wrap, sys.executable, str(CHURN), *args]
        env = {**os.environ, **self.world.env}
        return subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, start_new_session=True
        )

    def _read(self) -> None:
        assert self.load.stdout
        for line in self.load.stdout:
            self.last = json.loads(line)

    def close(self) -> None:
        for process in (self.load, self.server):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait(condition: Callable[[], Any], what: str) -> None:
    """CaseFailed when it does not come true."""
    deadline = time.monotonic() + STEP_S
    while not condition():
        if time.monotonic() > deadline:
            raise CaseFailed(f"not within {STEP_S:.0f} s: {what}")
        time.sleep(0.002)


def cycle(world: Neat, out: Outcome, hold_s: float) -> None:
    """1 -> N -> 1."""
    control = world.directory / "bench.sock"

    def states() -> list[str]:
        return [r["state"] for r in ask(control, {"cmd": "status"})["replicas"]]

    start = time.monotonic()
    ask(control, {"cmd": "scale", "replicas": out.replicas})
    wait(lambda: states().count("ready") == out.replicas, "all replicas are ready")
    out.up.append(time.monotonic() - start)
    time.sleep(hold_s)
    start = time.monotonic()
    ask(control, {"cmd": "scale", "replicas": 1})
    wait(lambda: states() == ["ready"], "replicas drain")
    out.drained.append(time.monotonic() - start)
    out.cycles += 1


def run(args: argparse.Namespace, out: Outcome) -> None:
    world = neat_up(1, "--replicas-max", str(args.replicas), "--components", args.components)
    try:
        churn = Churn(world, args.server)
        start = time.monotonic()
        try:
            for _ in range(args.cycles):
                cycle(world, out, args.hold)
            before = churn.last["exchanges"]
            wait(lambda: churn.last["exchanges"] > before, "the load goes on")
        finally:
            out.seconds = time.monotonic() - start
            out.exchanges, out.connections = churn.last["exchanges"], churn.last["connections"]
            out.broken, out.wrong = churn.last["broken"], churn.last["wrong"]
            churn.close()
    finally:
        world.down()


def line(name: str, times: list[float]) -> str:
    if not times:
        return f"{name}: none"
    return f"{name}: median {statistics.median(times) * 1e3:.0f} ms, max {max(times) * 1e3:.0f} ms"


def main(argv: list[str]) -> int:
    """0: nothing broke."""
    p = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    p.add_argument("--cycles", type=int, default=20, metavar="K", help="default 20")
    p.add_argument("--replicas", type=int, default=4, metavar="N", help="default 4")
    p.add_argument("--hold", type=float, default=1.0, metavar="S", help="at N, default 1")
    p.add_argument("--server", choices=("events", "threads", "forked"), default="events")
    p.add_argument("--components", choices=("single", "multi"), default="single")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args(argv)
    out = Outcome(args.replicas)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    problem = ""
    try:
        run(args, out)
    except (CaseFailed, SkipCase) as why:
        problem = str(why)
    print(
        f"1 -> {out.replicas} -> 1, {out.cycles} times in {out.seconds:.1f} s\n"
        f"connections {out.connections}, exchanges {out.exchanges}, broken {out.broken}\n"
        + "\n".join((line("up", out.up), line("drained", out.drained), *out.wrong))
        + (f"\nfailed: {problem}" if problem else "")
    )
    if args.json:
        report = {"started": started, "machine": machine(), "problem": problem, **asdict(out)}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if problem or out.broken else 0
