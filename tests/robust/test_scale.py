"""Replicas come and go under load (paper 6.3.4): no reset, no refusal, no wrong byte."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from neatsock.instance import ask

from ..churn import Churn
from ..long import TIMES
from ..system.programs import free_port
from .rig import Rig, wait_until

CYCLES = 2 * TIMES


def processes(rig: Rig, *states: str) -> set[int]:
    """All processes of all replicas, or of those in one of `states`."""
    replicas = wait_until(rig.status, "neatd answers")["replicas"]
    found = [r for r in replicas if not states or r["state"] in states]
    return {p["pid"] for r in found for p in (r, *r["components"]) if p["pid"]}


def kill(pids: set[int], sig: int = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it had nothing left to do
            os.kill(pid, sig)


def ended(pids: set[int]) -> None:
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "processes end")


def states(rig: Rig) -> list[str]:
    found = wait_until(rig.status, "neatd answers")
    return [r["state"] for r in found["replicas"]]


def scale(rig: Rig, count: int) -> None:
    ask(rig.path, {"cmd": "scale", "replicas": count}, 5)
    wait_until(lambda: states(rig).count("ready") == count, f"{count} replicas are ready")


def gone(rig: Rig, count: int) -> None:
    """Nothing drains any more."""
    try:
        wait_until(lambda: len(states(rig)) == count, f"only {count} replicas are left", 30)
    except AssertionError as err:
        raise AssertionError(f"{err}\n{rig.evidence()}") from None


@pytest.fixture
def churn(scaled: Rig, request: pytest.FixtureRequest) -> Iterator[Churn]:
    kind = getattr(request, "param", "events")
    made = Churn(scaled.world, scaled.world, free_port(), kind, log=scaled.log)
    yield made
    made.close()


@pytest.mark.parametrize("churn", ["events", "threads", "forked"], indirect=True)
def test_one_to_four_to_one_under_load(scaled: Rig, churn: Churn) -> None:
    for _ in range(CYCLES):
        scale(scaled, 4)
        churn.goes_on(1000)
        assert all(r["accepted"] for r in scaled.status()["replicas"]), "new ones are used"
        scale(scaled, 1)
        gone(scaled, 1)
        churn.goes_on()


def test_scale_events_one_after_another_without_a_pause(scaled: Rig, churn: Churn) -> None:
    for count in (3, 1, 4, 2, 4, 1, 2, 1, 3, 1) * CYCLES:
        ask(scaled.path, {"cmd": "scale", "replicas": count}, 5)
        churn.goes_on(20)
    wait_until(lambda: states(scaled).count("ready") == 1, "one is ready")
    gone(scaled, 1)
    churn.goes_on()


def test_a_draining_replica_is_had_back_before_a_new_one_is_started(scaled: Rig) -> None:
    held = scaled.world.start(
        sys.executable, "-c", HOLD, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert held.stdout and held.stdin
    assert held.stdout.readline() == "ready\n"
    scale(scaled, 2)
    held.stdin.write("connect\n")
    held.stdin.flush()
    assert held.stdout.readline() == "connected\n"
    before = {r["index"]: r["pid"] for r in scaled.status()["replicas"]}
    ask(scaled.path, {"cmd": "scale", "replicas": 1}, 5)
    assert sorted(states(scaled)) == ["draining", "ready"]
    scale(scaled, 2)
    assert {r["index"]: r["pid"] for r in scaled.status()["replicas"]} == before
    held.stdin.write("check\n")
    held.stdin.flush()
    assert held.stdout.readline() == "all alive\n"
    held.kill()
    held.wait()


# A listener; "connect" makes idle connections until both replicas have some.
HOLD = """
import socket, sys
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(100)
print("ready", flush=True)
sys.stdin.readline()
pairs = []
for _ in range(40):
    c = socket.create_connection(l.getsockname()); pairs.append((c, l.accept()[0]))
print("connected", flush=True)
sys.stdin.readline()
for a, b in pairs:
    a.sendall(b"x"); assert b.recv(1) == b"x"; b.sendall(b"y"); assert a.recv(1) == b"y"
print("all alive", flush=True)
sys.stdin.readline()
"""


def test_idle_connections_hold_a_draining_replica_and_their_end_ends_it(scaled: Rig) -> None:
    held = scaled.world.start(
        sys.executable, "-c", HOLD, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert held.stdout and held.stdin and held.stdout.readline() == "ready\n"
    scale(scaled, 4)
    for order, answer in (("connect", "connected\n"), ("check", "all alive\n")):
        if order == "check":
            scale(scaled, 1)
            assert states(scaled).count("draining") == 3
        held.stdin.write(order + "\n")
        held.stdin.flush()
        assert held.stdout.readline() == answer
    assert states(scaled).count("draining") == 3
    held.stdin.write("end\n")
    held.stdin.flush()
    assert held.wait(10) == 0
    gone(scaled, 1)


def test_a_killed_draining_replica_still_drains(scaled: Rig, churn: Churn) -> None:
    """Stateful: its connections go on in the successor, which drains in turn."""
    for _ in range(CYCLES):
        scale(scaled, 3)
        churn.goes_on(300)
        ask(scaled.path, {"cmd": "scale", "replicas": 1}, 5)
        kill({r["pid"] for r in scaled.status()["replicas"] if r["state"] == "draining"} - {None})
        gone(scaled, 1)
        churn.goes_on()


def test_neatd_dies_in_the_middle_of_scale_events(scaled: Rig, churn: Churn) -> None:
    for count in (4, 1) * CYCLES:
        ask(scaled.path, {"cmd": "scale", "replicas": count}, 5)
        os.kill(wait_until(scaled.status, "neatd answers")["neatd"]["pid"], signal.SIGKILL)
        wait_until(lambda n=count: states(scaled).count("ready") == n, f"{count} ready")  # type: ignore[misc]
        churn.goes_on()
    gone(scaled, 1)


LISTENERS = """
import socket, threading, time
def once(port_of_last=[0]):
    l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind(("127.0.0.1", 0)); l.listen(8)
    for _ in range(6):
        c = socket.create_connection(l.getsockname(), 20); s = l.accept()[0]
        c.sendall(b"1"); assert s.recv(1) == b"1"; c.close(); s.close()
    l.close()
    try:
        socket.create_connection(l.getsockname() if False else where(l), 20)
    except (ConnectionRefusedError, OSError):
        pass
def where(l): return ("127.0.0.1", 1)
n = 0
while True:
    once(); n += 1; print(n, flush=True)
"""


def test_bind_listen_connect_accept_race_with_scale_events(scaled: Rig) -> None:
    program = scaled.world.start(sys.executable, "-c", LISTENERS, stdout=subprocess.PIPE)
    rounds = [0]

    def read() -> None:
        assert program.stdout
        for line in program.stdout:
            rounds[0] = int(line)

    threading.Thread(target=read, daemon=True).start()
    for count in (4, 2, 3, 1) * (2 * CYCLES):
        ask(scaled.path, {"cmd": "scale", "replicas": count}, 5)
        now = rounds[0]
        wait_until(lambda n=now: rounds[0] >= n + 2 or program.poll() is not None, "rounds")  # type: ignore[misc]
        assert program.poll() is None
    program.kill()
    program.wait()


def test_new_local_connections_are_equally_likely_on_all_replicas(scaled: Rig) -> None:
    """Chi-square with 3 degrees of freedom, upper 0.1 % point 16.27."""
    program = scaled.world.start(
        sys.executable, "-c", SPREAD, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert program.stdout and program.stdin and program.stdout.readline() == "ready\n"
    scale(scaled, 4)
    program.stdin.write("go\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"

    def accepted() -> list[int]:
        return [r["accepted"] for r in scaled.status()["replicas"]]

    wait_until(lambda: sum(accepted()) == 2000, "counters are published when replicas sleep")
    counts = accepted()
    assert sum((n - 500) ** 2 / 500 for n in counts) < 16.27, counts
    program.kill()
    program.wait()


SPREAD = """
import socket, sys, time
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(100)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2000):
    c = socket.create_connection(l.getsockname()); l.accept()[0].close(); c.close()
time.sleep(0)
print("done", flush=True)
sys.stdin.readline()
"""


def test_scaling_beyond_the_room_is_refused_with_the_way_out(scaled: Rig) -> None:
    done = scaled.cli("scale", "5")
    assert done.returncode == 1 and "--replicas-max" in done.stderr
    assert scaled.cli("scale", "0").returncode == 2


def test_idle_replicas_cost_nothing_and_leave_nothing(scaled: Rig) -> None:
    keeper, held = Path(f"/proc/{scaled.pids()['keeper']}/fd"), 0
    for _ in range(3):
        scale(scaled, 4)
        pids = processes(scaled)
        scale(scaled, 1)
        gone(scaled, 1)
        ended(pids - processes(scaled) - {scaled.status()["standby"]["pid"]})
        assert [r["last_death"] for r in scaled.status()["replicas"]] == [None]
        wait_until(lambda: scaled.status()["standby"]["pid"], "a standby is there again")
        # The first time, epochs and health of three replicas are known and nothing is open more.
        held = held or len(os.listdir(keeper))
        assert len(os.listdir(keeper)) == held
    assert "faults within" not in scaled.log()


@pytest.mark.parametrize("layout", ["single", "multi"])
def test_scaled_by_the_load(tmp_path_factory: pytest.TempPathFactory, layout: str) -> None:
    options = ["--components", layout, "--replicas-max", "2", "--scale", "auto"]
    options += ["--scale-up-at", "1"]
    rig = Rig(tmp_path_factory.mktemp("auto"), 1, *options, "--scale-down-at", "0.9")
    try:
        churn = Churn(rig.world, rig.world, free_port(), log=rig.log)
        wait_until(lambda: states(rig).count("ready") == 2, "load brings a second replica")
        churn.goes_on()
        churn.close()
        wait_until(lambda: states(rig) == ["ready"], "it goes with the load", 60)
    finally:
        rig.down()


def test_pinned_replicas_stay_on_their_cores(tmp_path_factory: pytest.TempPathFactory) -> None:
    rig = Rig(tmp_path_factory.mktemp("pin"), 1, "--replicas-max", "3", "--pin")
    try:
        scale(rig, 3)
        cpus = sorted(os.sched_getaffinity(0))
        for replica in rig.status()["replicas"]:
            assert os.sched_getaffinity(replica["pid"]) == {cpus[replica["index"] % len(cpus)]}
    finally:
        rig.down()


def test_a_client_of_the_kernel_is_none_of_ours(scaled: Rig) -> None:
    """A scale event does not make a port of the kernel's ours."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        for count in (2, 1):
            scale(scaled, count)
            code = f"import socket; socket.create_connection({listener.getsockname()!r}, 10)"
            assert scaled.world.run(sys.executable, "-c", code).returncode == 0
            listener.accept()[0].close()


TUPLES = """
import errno, socket
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(100)
said = set()
for _ in range(40):
    one, other = socket.socket(), socket.socket()
    for s in (one, other): s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0)); other.bind(one.getsockname()); one.connect(l.getsockname())
    try:
        other.connect(l.getsockname())
    except OSError as err:
        said.add(errno.errorcode[err.errno])
    else:
        said.add("twice")
    one.close(); other.close()
print(*said)
"""


def test_the_same_tuple_is_never_live_in_two_replicas(scaled: Rig) -> None:
    """Both ports bound (L7): what the second connect() reports is what Linux reports."""
    scale(scaled, 4)
    kernel = subprocess.run([sys.executable, "-c", TUPLES], capture_output=True, text=True)
    ours = scaled.world.run(sys.executable, "-c", TUPLES)
    assert ours.stdout == kernel.stdout == "EADDRNOTAVAIL\n"


# ---- replicas of several processes ----


@pytest.fixture
def multi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    options = ("--replicas-max", "4", "--components", "multi", "--stopped", "0")
    made = Rig(tmp_path_factory.mktemp("multi"), 1, *options)
    yield made
    made.down()


@pytest.fixture
def load(multi: Rig) -> Iterator[Churn]:
    made = Churn(multi.world, multi.world, free_port(), log=multi.log)
    yield made
    made.close()


PARTS = ("udp", "filter", "ip")  # in the order of their ends


def part_pids(rig: Rig, name: str) -> set[int]:
    replicas = wait_until(rig.status, "neatd answers")["replicas"]
    return {p["pid"] for r in replicas for p in r["components"] if p["name"] == name} - {None}


@pytest.mark.parametrize("name", PARTS)
def test_components_die_while_replicas_come_and_go(multi: Rig, load: Churn, name: str) -> None:
    for _ in range(CYCLES):
        ask(multi.path, {"cmd": "scale", "replicas": 4}, 5)
        kill(part_pids(multi, name))
        wait_until(lambda: states(multi).count("ready") == 4, "four are ready")
        load.goes_on(200)
        pids = processes(multi)
        ask(multi.path, {"cmd": "scale", "replicas": 1}, 5)
        kill(part_pids(multi, name))
        gone(multi, 1)
        wait_until(lambda: states(multi) == ["ready"], "all of it is back")
        ended(pids - processes(multi) - {multi.status()["standby"]["pid"]})
        load.goes_on()


def test_all_processes_die_while_replicas_come_and_go(multi: Rig, load: Churn) -> None:
    for _ in range(CYCLES):
        ask(multi.path, {"cmd": "scale", "replicas": 3}, 5)
        kill(processes(multi))
        wait_until(lambda: states(multi).count("ready") == 3, "three are ready")
        load.goes_on(100)
        ask(multi.path, {"cmd": "scale", "replicas": 1}, 5)
        kill(processes(multi, "draining"))
        gone(multi, 1)
        load.goes_on()


@pytest.mark.parametrize("name", PARTS)
def test_a_component_that_does_not_end_is_killed(multi: Rig, name: str) -> None:
    scale(multi, 2)
    both = processes(multi)
    drained = multi.status()["replicas"][1]  # neither has a connection: the last one goes
    parts = {part["name"]: part["pid"] for part in drained["components"]}
    pid = parts[name]
    earlier = {drained["pid"], *(parts[part] for part in PARTS[: PARTS.index(name)])}
    kill({pid}, signal.SIGSTOP)
    scale(multi, 1)
    gone(multi, 1)
    ended(earlier)  # a component that was not told yet would go on in the new life
    scale(multi, 2)  # at once: the new life waits for that end of the old one
    ended({pid})
    scale(multi, 1)
    gone(multi, 1)
    stay = processes(multi)
    assert len(stay) == 4 and stay < both
    ended(both - stay)


def test_upgrade_while_replicas_drain(multi: Rig, load: Churn) -> None:
    for count in (3, 1) * CYCLES:
        ask(multi.path, {"cmd": "scale", "replicas": count}, 5)
        done = multi.cli("upgrade")
        assert done.returncode == 0, done.stderr
        wait_until(lambda n=count: states(multi).count("ready") == n, f"{count} are ready")  # type: ignore[misc]
        load.goes_on(100)
    gone(multi, 1)
