"""Idle connections: memory and CPU of many of them, and whether each one still answers."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import proc
from bench.build import load_program
from bench.errors import CaseFailed
from bench.measure import Plan, Server, start_in, wait_ready
from bench.model import Reading, Result, Sample, Side
from bench.worlds import HOST, World

STEP_S = 120.0
SETTLE_S = 2.0  # retransmission timers of what was sent are left to run out: one no-op for each end
QUIET_S = 1.0
TITLE = "idle connections, {} (memory of both ends)"


@dataclass(frozen=True)
class Size:
    """How many processes hold how many connections each; hard RLIMIT_NOFILE is often 20 000."""

    pairs: int
    each: int

    @property
    def total(self) -> int:
        """All connections."""
        return self.pairs * self.each


QUICK, FULL = Size(2, 10000), Size(6, 16667)


@dataclass(frozen=True)
class Outcome:
    """One world, once. Bytes are for one connection, that is for both of its ends."""

    opened: float  # connections per second
    before: float  # bytes, nothing sent yet
    after: float  # bytes, after one echo on each
    p50: float  # us of that echo, 64 at a time in each process
    p99: float
    idle_cores: float
    foreign: float  # cores used by others meanwhile: who also take and give back memory


def _answers(clients: list[proc.Child], step: str) -> list[dict[str, float]]:
    """Wait until every client has printed its line of `step`."""
    deadline = time.monotonic() + STEP_S
    while time.monotonic() < deadline:
        lines = [
            [
                json.loads(line)
                for line in c.stdout().splitlines(keepends=True)
                if line.endswith("\n")
            ]
            for c in clients
        ]
        done = [line for each in lines for line in each if line["step"] == step]
        if len(done) == len(clients):
            return done
        for client in clients:
            if client.popen.poll() is not None:
                raise CaseFailed(
                    f"a client with idle connections ended (status "
                    f"{client.popen.returncode}):\n{client.complaint()}"
                )
        time.sleep(0.02)
    raise CaseFailed(f"step '{step}' took more than {STEP_S:.0f} s:\n{clients[0].complaint()}")


def _next(clients: list[proc.Child]) -> None:
    for client in clients:
        assert client.popen.stdin
        client.popen.stdin.write(b"\n")
        client.popen.stdin.flush()


def _quiet(world: World, children: list[proc.Child]) -> tuple[float, float]:
    """Cores used by ours and by others while nothing is sent. Blocks for SETTLE_S and QUIET_S."""
    time.sleep(SETTLE_S)
    pids = [*proc.tree(c.pid for c in children), *world.replica_pids(), *world.control_pids()]
    began, before, busy = time.monotonic(), proc.cpu_ns(pids), proc.busy_ns()
    time.sleep(QUIET_S)
    ours, all_ = proc.cpu_ns(pids) - before, proc.busy_ns() - busy
    passed = (time.monotonic() - began) * 1e9
    return ours / passed, max(0.0, (all_ - ours) / passed)


def run_world(world: World, size: Size, plan: Plan) -> Outcome:
    """Open, look, echo, look. Blocks for some seconds."""
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(TemporaryDirectory(prefix=f"bench-{world.name}-")))
        ports = proc.free_ports(size.pairs)
        servers, clients = [], []
        for port in ports:
            argv = [load_program("echo_server"), str(port)]
            servers.append(start_in(world, plan.placement, "server", argv, where))
            stack.callback(servers[-1].stop)
            wait_ready(Server(world, servers[-1], [port], where))
        base = proc.memory_used()
        for port in ports:
            argv = [load_program("idle"), HOST, str(port), str(size.each)]
            clients.append(start_in(world, plan.placement, "client", argv, where, stdin=True))
            stack.callback(clients[-1].stop)
        opened = _answers(clients, "open")
        before = proc.memory_used() - base
        idle_cores, others = _quiet(world, [*servers, *clients])
        _next(clients)
        echoed = _answers(clients, "echo")
        after = proc.memory_used() - base
        return Outcome(
            size.total / max(o["seconds"] for o in opened),
            before / size.total,
            after / size.total,
            max(e["p50_us"] for e in echoed),
            max(e["p99_us"] for e in echoed),
            idle_cores,
            others,
        )


def _side(name: str, outcomes: list[Outcome]) -> Side:
    return Side(
        name,
        tuple(Sample(Reading(o.after, o.opened, o.p50, o.p99), None, o.foreign) for o in outcomes),
    )


def _note(name: str, outcomes: list[Outcome]) -> str:
    o = outcomes[-1]
    return (
        f"{name}: {o.before:.0f} B before the first byte, {o.after:.0f} B after one echo; "
        f"{o.opened:.0f} connections/s opened; {o.idle_cores:.4f} cores while idle"
    )


def run(worlds: list[Callable[[], World]], size: Size, plan: Plan) -> Result:
    """Each world `plan.rounds` times (at most 3), with an instance of its own every time:

    memory that an instance keeps from the round before would make the next one look cheaper.
    """
    found: dict[str, list[Outcome]] = {}
    problem = None
    for number in range(min(plan.rounds, 3)):
        for make in worlds if number % 2 == 0 else worlds[::-1]:
            world = make()
            plan.say(f"idle: round {number + 1}, {size.total} connections, {world.name}")
            try:
                found.setdefault(world.name, []).append(run_world(world, size, plan))
            except CaseFailed as failed:
                if world.name == "kernel":
                    raise
                problem = str(failed)
            finally:
                world.down()
        if problem:
            break
    sides = {name: _side(name, outcomes) for name, outcomes in found.items() if outcomes}
    return Result(
        "idle",
        TITLE.format(size.total),
        "B/connection",
        "connection",
        False,
        sides.get("kernel"),
        sides.get("neatsock"),
        problem,
        tuple(_note(name, o) for name, o in found.items() if o),
    )
