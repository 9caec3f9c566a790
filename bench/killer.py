"""Who is killed, when: a seeded sequence of SIGKILLs at the processes of one instance."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import CaseFailed
from neatsock.instance import InstanceError, ask

COMPONENTS = ("ip", "udp", "filter")  # of replicas that are several processes
VICTIMS = ("replica", "nic", "neatd", "standby", *COMPONENTS)
# Python takes 0.2 s to start: killed as often as the others neatd would never be up.
WEIGHTS = {"replica": 12, "nic": 4, "neatd": 1, "standby": 3, "ip": 6, "udp": 4, "filter": 6}
RECOVERY_S = 0.003  # about how long a successor takes: where a second kill hurts most
NEATD_S = 0.15
PATIENCE_S = 60.0
RECENT = 200  # kills back, for which neatd may not know the successor yet


@dataclass(frozen=True)
class Kill:
    """One SIGKILL that reached its victim."""

    at_ns: int  # CLOCK_MONOTONIC
    role: str
    index: int
    pid: int
    early: bool = False  # the victim was not ready, or another one had just died

    def __str__(self) -> str:
        name = (
            self.role if self.role in ("nic", "neatd", "standby") else f"{self.role} {self.index}"
        )
        return f"{name} (pid {self.pid}{', early' if self.early else ''})"


@dataclass(frozen=True)
class Process:
    """A process of the instance, as status names it."""

    role: str
    index: int
    pid: int
    ready: bool = True


def processes(status: dict[str, Any]) -> list[Process]:
    """The victims that run."""
    found = [
        Process("replica", r["index"], r["pid"], r["state"] == "ready")
        for r in status["replicas"]
        if r["pid"]
    ]
    for r in status["replicas"]:
        for part in r["components"]:
            if part["pid"]:
                up = part["state"] == "ready"
                found.append(Process(part["name"], r["index"], part["pid"], up))
    for role in ("nic", "neatd", "standby"):
        if status[role]["pid"]:
            found.append(Process(role, 0, status[role]["pid"]))
    return found


def _child_of(pid: int, parent: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return int(stat.rpartition(")")[2].split()[1]) == parent


class Killer:
    """Kills by pid as the control socket tells it, sometimes before the victim has recovered."""

    def __init__(
        self,
        control: Path,
        victims: tuple[str, ...],
        early: float,
        rng: random.Random,
        killed: Callable[[Kill], None] = lambda kill: None,
    ) -> None:
        self.control = control
        self.victims = victims
        self.early = early
        self.rng = rng
        self.killed = killed
        self.done: list[Kill] = []
        self.keeper = 0

    def look(self) -> list[Process]:
        """Who runs now. Waits for a neatd that is being replaced."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = ask(self.control, {"cmd": "status"}, 5)
                self.keeper = int(found["keeper"]["pid"])
                return processes(found)
            except InstanceError as err:
                if time.monotonic() > end:
                    raise CaseFailed(f"the instance does not answer: {err}") from err
                time.sleep(0.005)

    def one(self) -> None:
        """Kill somebody; with probability `early` once more while that is being repaired."""
        victim = self._choose()
        double = self.rng.random() < self.early
        everybody = self.look() if double else []
        if not self._kill(victim, False) or not double:
            return
        time.sleep(self.rng.uniform(0, NEATD_S if victim.role == "neatd" else RECOVERY_S))
        # The successor of a replica is the standby: its pid is known before the death.
        after = "standby" if victim.role == "replica" else "replica"
        others = [p for p in everybody if p.role == after and p.pid != victim.pid]
        if others:
            second = self.rng.choice(others)
            if after == "standby":
                second = Process("replica", victim.index, second.pid)
            self._kill(second, True)

    def _choose(self) -> Process:
        roles = [r for r in self.victims if r in WEIGHTS]
        end = time.monotonic() + PATIENCE_S
        while True:
            role = self.rng.choices(roles, [WEIGHTS[r] for r in roles])[0]
            found = [p for p in self.look() if p.role == role and p.ready]
            if found:
                return self.rng.choice(found)
            if time.monotonic() > end:
                raise CaseFailed(f"no {role} was ready within {PATIENCE_S:.0f} s")
            time.sleep(0.001)

    def _kill(self, victim: Process, early: bool) -> bool:
        """False: it had been killed before, and neatd did not know yet."""
        if victim.pid in (kill.pid for kill in self.done[-RECENT:]):
            return False
        try:
            fd = os.pidfd_open(victim.pid)
        except ProcessLookupError:
            return False
        try:
            # The number may be another program's by now.
            if not _child_of(victim.pid, self.keeper):
                return False
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        kill = Kill(time.monotonic_ns(), victim.role, victim.index, victim.pid, early)
        self.done.append(kill)
        self.killed(kill)
        return True

    def run(self, count: int, rate: float) -> None:
        """About `count` kills, on average `rate` a second, at irregular intervals."""
        goal = len(self.done) + count
        due = time.monotonic()
        while len(self.done) < goal:
            due = max(due, time.monotonic() - 1) + self.rng.uniform(0.2, 1.8) / rate
            time.sleep(max(0.0, due - time.monotonic()))
            self.one()
