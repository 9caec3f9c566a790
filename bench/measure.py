"""Runs one case: both servers up, then loads that alternate between the worlds."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench import calls, proc
from bench.build import load_program
from bench.cases import Case, Load, Timing
from bench.errors import CaseFailed
from bench.model import Calls, Reading, Result, Sample, Side, Split
from bench.worlds import HOST, Placement, World

READY_S = 20.0
LAUNCH_S = 30.0
ATTACH_S = 1.0  # perf's own start, on a machine that is busy
SLACK_S = 20.0  # a load that takes so much longer than it should is stopped
POLL_S = 0.1
LEAST_CORES = 0.001  # replicas that serve a load use more than this
CALIBRATE_OPS = 20000.0  # first run of a client that wants a number instead of a time


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    rounds: int
    timing: Timing
    calls_timing: Timing
    placement: Placement
    say: Callable[[str], None]


class Served(Protocol):
    """What can be served: how many ports it takes, and the command for them in a directory."""

    @property
    def ports(self) -> int: ...

    @property
    def serve(self) -> Callable[[Path, list[int]], list[str]]: ...


@dataclass(frozen=True)
class Server:
    """A server that is ready, in one world."""

    world: World
    child: proc.Child
    ports: list[int]
    where: Path


@dataclass(frozen=True)
class Window:
    """CPU so far, in ns: of each role, and of the machine."""

    at: float
    cpu: dict[str, int]
    busy: int


def start_in(
    world: World, placement: Placement, role: str, argv: list[str], where: Path, stdin: bool = False
) -> proc.Child:
    """Start `argv` as `role` in `world`."""
    name = f"{role}-{time.monotonic_ns()}"
    return proc.start([*placement.prefix(role), *world.wrap, *argv], where, name, world.env, stdin)


def wait_ready(server: Server) -> None:
    """Connect to every port from inside the server's world. CaseFailed after READY_S."""
    probe = load_program("probe")
    for port in server.ports:
        argv = [*server.world.wrap, probe, HOST, str(port), str(READY_S)]
        child = proc.start(argv, server.where, "probe", server.world.env)
        try:
            while child.popen.poll() is None:
                if server.child.popen.poll() is not None:
                    raise CaseFailed(
                        f"the {server.world.name} server ended at once with status "
                        f"{server.child.popen.returncode}:\n"
                        f"{server.child.complaint()}"
                    )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.popen.wait(POLL_S)
            if child.popen.returncode:
                raise CaseFailed(
                    f"the {server.world.name} server is not reachable: "
                    f"{child.complaint()}\nthe server printed:\n"
                    f"{server.child.complaint()}"
                )
        finally:
            child.stop()


@contextlib.contextmanager
def serving(case: Served, world: World, placement: Placement) -> Iterator[Server]:
    """The case's server in `world`, ready; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{world.name}-") as tmp:
        where = Path(tmp)
        ports = proc.free_ports(case.ports)
        child = start_in(world, placement, "server", case.serve(where, ports), where)
        try:
            server = Server(world, child, ports, where)
            wait_ready(server)
            yield server
        finally:
            child.stop()


def roles(server: Server, client: proc.Child) -> dict[str, list[int]]:
    """Processes by role."""
    return {
        "server": proc.tree([server.child.pid]),
        "client": proc.tree([client.pid]),
        "replicas": server.world.replica_pids(),
        "control": server.world.control_pids(),
    }


def look(who: dict[str, list[int]]) -> Window:
    """CPU use so far. Reads a handful of files: cheap enough to be repeated during a run."""
    return Window(
        time.monotonic(), {role: proc.cpu_ns(pids) for role, pids in who.items()}, proc.busy_ns()
    )


def wait_launched(child: proc.Child, load: Load) -> None:
    """Until the client's process has become the load program: launchers are not measured."""
    deadline = time.monotonic() + LAUNCH_S
    while child.popen.poll() is None and time.monotonic() < deadline:
        if any(proc.runs_program(p, load.argv[0]) for p in proc.tree([child.pid])):
            return
        time.sleep(0.005)
    if child.popen.poll() is None:
        raise CaseFailed(f"{load.argv[0]} was not started within {LAUNCH_S:.0f} s")


def read(child: proc.Child, load: Load, server: Server, limit_s: float) -> Reading:
    """Wait for the client and read its result. CaseFailed if it fails, hangs or did nothing."""
    try:
        status = child.popen.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise CaseFailed(
            f"the {server.world.name} client hangs: {load.argv[0]}\n{child.complaint()}"
        ) from None
    if status:
        raise CaseFailed(
            f"the {server.world.name} client ended with status {status}:\n"
            f"{child.complaint()}\nthe server printed:\n{server.child.complaint()}"
        )
    reading = load.read(child.stdout())
    if reading.ops <= 0:
        raise CaseFailed(
            f"not one operation of the {server.world.name} client was answered; "
            f"the server printed:\n{server.child.complaint()}"
        )
    return reading


def watch(child: proc.Child, server: Server, timing: Timing) -> tuple[Window, Window] | None:
    """Two looks inside the steady part of the load; None if it was over too soon."""
    time.sleep(timing.warm)
    who = roles(server, child)
    first = last = look(who)
    end = first.at + timing.run * 0.8
    while time.monotonic() < end and child.popen.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.popen.wait(POLL_S)
        window = look(who)
        if child.popen.poll() is None:  # else its CPU has left /proc with it
            last = window
    return (first, last) if last.at - first.at >= POLL_S else None


def shares(pair: tuple[Window, Window], ops: float) -> Split:
    """CPU in us per operation between two looks."""
    a, b = pair
    done = ops * (b.at - a.at) * 1e3
    return Split(**{role: (b.cpu[role] - a.cpu[role]) / done for role in a.cpu})


def foreign(pair: tuple[Window, Window], stray_ns: int) -> float:
    """Cores that processes outside of this benchmark used between two looks."""
    a, b = pair
    own = sum(b.cpu.values()) - sum(a.cpu.values()) + stray_ns
    return max(0.0, (b.busy - a.busy - own) / ((b.at - a.at) * 1e9))


def check_through(world: World, pair: tuple[Window, Window]) -> None:
    """CaseFailed if the load left the replicas idle: then the kernel carried it, unnoticed."""
    a, b = pair
    used = (b.cpu["replicas"] - a.cpu["replicas"]) / ((b.at - a.at) * 1e9)
    if world.name != "kernel" and used < LEAST_CORES:
        raise CaseFailed(
            f"not on neatsock: the replicas used {used:.4f} cores during the load, so "
            "the kernel served it. Can the server reach the instance (a changed user, "
            "a cleared environment)?"
        )


def run_load(
    case: Case, server: Server, plan: Plan, ops: float, other: World | None = None
) -> Sample:
    """One run of the load. `other` is the instance that should be idle meanwhile."""
    load = case.load(server.ports, plan.timing, ops)
    idle = [*other.replica_pids(), *other.control_pids()] if other else []
    child = start_in(server.world, plan.placement, "client", list(load.argv), server.where)
    try:
        wait_launched(child, load)
        before = proc.cpu_ns(idle)
        pair = watch(child, server, plan.timing)
        stray = proc.cpu_ns(idle) - before
        reading = read(child, load, server, plan.timing.run + SLACK_S)
    finally:
        child.stop()
    if not pair:
        return Sample(reading, None, 0.0)
    check_through(server.world, pair)
    return Sample(
        reading,
        shares(pair, reading.ops),
        foreign(pair, stray),
        stray / ((pair[1].at - pair[0].at) * 1e9),
    )


def count_calls(case: Case, server: Server, plan: Plan, ops: float) -> Calls | None:
    """System calls per operation in a run of its own: counting slows things down.

    None without a tool, and for a client that ended before the counting did.
    """
    tool = calls.tool()
    if not tool:
        return None
    timing = plan.calls_timing
    # Enough, when a number of operations counts; tracing makes them some 20 times slower.
    longer = Timing(timing.warm, timing.run + ATTACH_S)
    load = case.load(server.ports, longer, ops * (3 if tool == "perf" else 0.1))
    child = start_in(server.world, plan.placement, "client", list(load.argv), server.where)
    try:
        wait_launched(child, load)
        if tool == "perf":
            time.sleep(timing.warm)
        found = calls.count(roles(server, child), child, timing.run * 0.6, SLACK_S, server.where)
        if not found:
            return None
        reading = read(child, load, server, longer.run + SLACK_S)
    finally:
        child.stop()
    done = reading.ops * found.window_s
    return Calls(
        Split(**{r: n / done for r, n in found.every.items()}),
        Split(**{r: n / done for r, n in found.files.items()}),
        "perf" if tool == "perf" else "strace, within 20 %",
    )


def first_rate(case: Case, server: Server, plan: Plan) -> float:
    """Operations per second to expect of a client that takes a number of them."""
    if not case.by_count:
        return 0.0
    load = case.load(server.ports, Timing(0.0, 1.0), CALIBRATE_OPS)
    child = start_in(server.world, plan.placement, "client", list(load.argv), server.where)
    try:
        return read(child, load, server, SLACK_S).ops
    finally:
        child.stop()


def alternate(case: Case, servers: list[Server], plan: Plan) -> dict[str, Side]:
    """`plan.rounds` rounds; the world that goes first changes every round."""
    samples: dict[str, list[Sample]] = {s.world.name: [] for s in servers}
    rates = {s.world.name: first_rate(case, s, plan) for s in servers}
    instance = next((s.world for s in servers if s.world.name != "kernel"), None)
    for number in range(plan.rounds):
        for server in servers if number % 2 == 0 else servers[::-1]:
            plan.say(f"{case.name}: round {number + 1} of {plan.rounds}, {server.world.name}")
            other = instance if server.world.name == "kernel" else None
            sample = run_load(case, server, plan, rates[server.world.name], other)
            samples[server.world.name].append(sample)
            rates[server.world.name] = sample.reading.ops
    found = {}
    for server in servers:
        name = server.world.name
        plan.say(f"{case.name}: system calls, {name}")
        found[name] = Side(name, tuple(samples[name]), count_calls(case, server, plan, rates[name]))
    return found


def run_case(case: Case, worlds: list[World], plan: Plan) -> Result:
    """Measure one case. SkipCase and CaseFailed come out; a neatsock-only failure does not."""
    problem = None
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(case, worlds[0], plan.placement))]
        sides: dict[str, Side] | None = None
        if len(worlds) > 1:
            try:
                servers.append(stack.enter_context(serving(case, worlds[1], plan.placement)))
                sides = alternate(case, servers, plan)
            except CaseFailed as failed:
                problem = str(failed)
        if sides is None:
            sides = alternate(case, servers[:1], plan)
    return Result(
        case.name,
        case.title,
        case.unit,
        case.op,
        case.higher_is_better,
        sides.get("kernel"),
        sides.get("neatsock"),
        problem,
    )
