"""``python -m bench faults``: a fault inside one replica, and who notices, again and again.

Bit flips, wild writes, NULL, loops, leaks, garbage in rings and signals hit one replica process
under clients that check every byte. A replica that lives on is killed from outside in the end, so
that what lies there unnoticed shows at the next adoption and is counted with its own fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.errors import CaseFailed, SkipCase
from bench.inject import KINDS, GoneError, inject
from bench.peers import start_instance
from bench.witness import CLOSED, Connection, Size, Witnesses
from bench.worlds import Neat, machine
from neatsock.instance import InstanceError, ask

RESULTS = Path(__file__).parent / "results"
CLASSES = ("transparent", "one connection", "one replica", "all")
ROUNDS = 2  # requests of each connection, at the fault, after it, and after the kill
STALL_S = 2.5  # without an answer for so long a connection counts as lost
SERVE_S = 10.0  # until everybody is served again
PATIENCE_MOST = 8  # times as long on a loaded machine
LITTLE_NS = 300_000_000  # of CPU time: three times what makes a hang
DETECT = ("--hang", "0.1", "--stopped", "0.05", "--time-wait-ms", "1000")
# Each fault is judged by itself: neither quarantine nor the stateless start of a second fault.
ALONE = ("--faults", "64", "--fault-window", "0.001")


@dataclass(frozen=True)
class Loss:
    """A connection that broke, or got no answer."""

    who: str
    replica: int | None
    how: str
    wrong: bool = False


@dataclass
class Trial:
    """One fault and what came of it."""

    number: int
    kind: str
    victim: int
    what: str
    losses: list[Loss] = field(default_factory=list)
    disasters: list[str] = field(default_factory=list)  # what reached anybody else
    wrong: list[str] = field(default_factory=list)  # what servers say of bytes
    deaths: int = 0  # of the victim, by itself
    cause: str = ""
    served_ms: float = 0.0  # until all connections had gone on, or were opened anew
    down: bool = False  # the victim did not serve any more
    fell_back: bool = False

    @property
    def cls(self) -> str:
        return classify(self.victim, self.losses, self.disasters, self.down)

    @property
    def corrupt(self) -> bool:
        """Somebody read bytes that nobody had sent to him."""
        return bool(self.wrong) or any(loss.wrong for loss in self.losses)


def classify(victim: int, losses: Iterable[Loss], disasters: Iterable[str], down: bool) -> str:
    """Who noticed the fault in replica `victim`."""
    lost = list(losses)
    if list(disasters) or any(loss.replica != victim for loss in lost):
        return "all"
    if down or len({loss.who for loss in lost}) > 1:
        return "one replica"
    return "one connection" if lost else "transparent"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    p.add_argument("--faults", type=int, default=200, metavar="N", help="default 200")
    p.add_argument("--seconds", type=float, default=1e9, metavar="S", help="no more than this")
    p.add_argument("--rate", type=float, default=0, metavar="R", help="at most R a second")
    p.add_argument(
        "--kinds", default=",".join(KINDS), metavar="LIST", help=f"default {','.join(KINDS)}"
    )
    p.add_argument("--replicas", type=int, default=2, metavar="N", help="default 2")
    p.add_argument("--lasting", type=int, default=10, metavar="C", help="connections of a client")
    p.add_argument("--churning", type=int, default=4, metavar="C", help="opened anew now and then")
    p.add_argument("--blocking", type=int, default=2, metavar="C", help="in threads of their own")
    p.add_argument("--fresh", type=int, default=200, metavar="K", help="faults of one instance")
    p.add_argument("--peer", choices=("local", "both"), default="local", help="both: TAP, too")
    p.add_argument("--defaults", action="store_true", help="usual quarantine and limit of faults")
    p.add_argument("--seed", type=int, help="default: random, printed")
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="default bench/results/faults-TIME.json"
    )
    args = p.parse_args(argv)
    args.kinds = tuple(args.kinds.split(","))
    if not args.kinds or not set(args.kinds) <= set(KINDS):
        p.error(f"--kinds is a list of {', '.join(KINDS)}")
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 16)
    return args


def again(args: argparse.Namespace) -> str:
    """The command that repeats this run: same kinds in the same order at the same places of memory
    that is not the same."""
    names = ("faults", "replicas", "lasting", "churning", "blocking", "fresh", "peer", "seed")
    words = [f"--{name} {getattr(args, name)}" for name in names]
    words += ["--defaults"] if args.defaults else []
    return " ".join(["python -m bench faults", *words, "--kinds", ",".join(args.kinds)])


def _ready(pid: int) -> bool:
    """It runs, or would if it had a core."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    return False


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


class Patience:
    """Time in which a process could have run: less than the clock's on a loaded machine."""

    def __init__(self, pids: list[int], seconds: float) -> None:
        self.pids = pids
        self.seconds = seconds
        self.begin = self.looked = time.monotonic()
        self.before = self._times()

    def over(self) -> bool:
        """Looks twenty times a second."""
        now = time.monotonic()
        if now - self.looked < 0.05:
            return False
        self.looked = now
        if now - self.begin < self.seconds:
            return False
        after = self._times()
        used = {pid: after[pid][0] - self.before[pid][0] for pid in after if pid in self.before}
        starved = [after[pid][1] - self.before[pid][1] for pid in used]
        # Somebody waits for a core right now, which is counted when he gets it: a loop is not
        # noticed before it has run for a while.
        if now - self.begin < PATIENCE_MOST * self.seconds and any(
            ns < LITTLE_NS and _ready(pid) for pid, ns in used.items()
        ):
            return False
        return now - self.begin - max(starved, default=0) / 1e9 > self.seconds

    def _times(self) -> dict[int, tuple[int, int]]:
        """ns for which each process ran, and for which it was ready and had no core."""
        found = {}
        for pid in self.pids:
            with contextlib.suppress(OSError, IndexError):
                ran, waited, *_ = Path(f"/proc/{pid}/schedstat").read_text().split()
                found[pid] = int(ran), int(waited)
        return found


class Instance:
    """One instance, its programs, and the faults it is to bear."""

    def __init__(self, args: argparse.Namespace, neat: Neat, witnesses: Witnesses) -> None:
        self.args = args
        self.neat = neat
        self.witnesses = witnesses
        self.usable = True
        self.workers: list[int] = []  # replicas and the standby, which is the next replica

    def status(self) -> dict[str, Any]:
        end = time.monotonic() + SERVE_S
        while True:
            try:
                return ask(self.neat.control, {"cmd": "status"}, 5)
            except InstanceError as err:
                if time.monotonic() > end:
                    raise CaseFailed(f"the instance does not answer: {err}") from err
                time.sleep(0.01)

    def ready(self) -> dict[str, Any] | None:
        """Status once all replicas are ready; None: that does not happen."""
        end = time.monotonic() + SERVE_S
        while time.monotonic() < end:
            found = self.status()
            if all(r["state"] == "ready" and r["pid"] for r in found["replicas"]):
                everybody = [*found["replicas"], found["standby"] or {}]
                self.workers = [pid for r in everybody if (pid := r.get("pid"))]
                return found
            time.sleep(0.003)
        return None

    def serve(self) -> None:
        """Before the first fault: everybody is served."""
        trial = Trial(0, "none", -1, "nothing")
        self.watch(trial, {}, SERVE_S)
        if trial.losses or trial.disasters:
            raise CaseFailed(f"without any fault: {trial.losses} {trial.disasters}")

    def trial(self, number: int, kind: str, dice: random.Random) -> Trial | None:
        """One fault. None: the replica was gone before it happened."""
        before = self.ready()
        if not before:
            raise CaseFailed("a replica is not ready")
        victim = dice.randrange(len(before["replicas"]))
        pid = before["replicas"][victim]["pid"]
        places = {
            (c.client, c.number, c.opened): self.witnesses.replica_of(c)
            for c in self.witnesses.look()
        }
        try:
            life = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        try:
            goals = self.go()
            trial = Trial(number, kind, victim, inject(pid, kind, dice))
            begin = time.monotonic()
            self.watch(trial, places, STALL_S, goals)
            # What the fault met on its way may hide it: once more with the connections at rest,
            # unless all is known and the successor is what is to be looked at.
            if not trial.losses and not _ended(life):
                self.watch(trial, places, STALL_S)
            trial.served_ms = (time.monotonic() - begin) * 1e3
            self._flush(trial, life, before, places)
        except GoneError:
            return None
        finally:
            os.close(life)
        self._others(trial, before)
        return trial

    def _flush(
        self,
        trial: Trial,
        life: int,
        before: dict[str, Any],
        places: dict[tuple[int, int, int], int | None],
    ) -> None:
        """How the victim ended; one that lives is killed, and its successor has to serve all."""
        if not _ended(life):
            signal.pidfd_send_signal(life, signal.SIGKILL)
        else:
            found = self.ready() or self.status()
            now = found["replicas"][trial.victim]
            trial.deaths = now["epoch"] - before["replicas"][trial.victim]["epoch"]
            trial.cause = str(now["last_death_cause"])
            trial.fell_back = bool(now["fell_back"])
        # A connection that was lost at rest shows when it is used: now, not at the next fault.
        self.watch(trial, places, SERVE_S)
        self._served(trial, places)

    def _served(self, trial: Trial, places: dict[tuple[int, int, int], int | None]) -> None:
        # Connections that got no answer were opened anew: are those served?
        if any(loss.how.startswith("stalled") for loss in trial.losses):
            seen = len(trial.losses)
            self.watch(trial, places, SERVE_S)
            trial.down = any(loss.how.startswith("stalled") for loss in trial.losses[seen:])
            self.usable = not trial.down

    def go(self) -> dict[tuple[int, int], int]:
        """Each connection makes some requests; how many will have been answered then."""
        goals = {}
        for c in self.witnesses.look():
            goals[c.client, c.number] = c.rounds + ROUNDS
            self.witnesses.go(c, c.rounds + ROUNDS)
        return goals

    def watch(
        self,
        trial: Trial,
        places: dict[tuple[int, int, int], int | None],
        patience_s: float,
        goals: dict[tuple[int, int], int] | None = None,
    ) -> None:
        """Until all requests are answered. What breaks, or stalls, is noted."""
        goals = goals or self.go()
        turns = self.witnesses.turns()
        programs = [child.pid for child in self.witnesses.children()]
        patience = Patience([*self.workers, *programs], patience_s)
        late: list[Connection] = []
        while True:
            over = patience.over()
            if not over and self.witnesses.quiet(goals):
                time.sleep(0.001)
                continue
            conns = self.witnesses.look()
            for c in conns:
                if c.broken:
                    why = f": {os.strerror(c.err)}" if c.err else ""
                    self._lost(trial, c, places, c.what + why)
            late = [c for c in conns if c.rounds < goals[c.client, c.number]]
            if not late or over:
                break
        try:
            self.witnesses.alive()
        except CaseFailed as why:
            trial.disasters.append(str(why))
            self.usable = False
        for client, was in zip(self.witnesses.clients, turns, strict=True):
            if late and client.turns == was:
                trial.disasters.append(f"{client.name} hangs")
                self.usable = False
        for c in late:
            self._lost(trial, c, places, f"stalled in state {c.state}")
        trial.wrong += self.witnesses.wrong()

    def _lost(
        self,
        trial: Trial,
        c: Connection,
        places: dict[tuple[int, int, int], int | None],
        how: str,
    ) -> None:
        where = self.witnesses.replica_of(c)
        if where is None:
            where = places.get((c.client, c.number, c.opened))
        trial.losses.append(Loss(self.witnesses.name(c), where, how, c.wrong))
        end = time.monotonic() + SERVE_S
        self.witnesses.release(c)
        while True:
            now = self.witnesses.clients[c.client].look()[c.number]
            if now.opened != c.opened or now.state == CLOSED:
                return
            if time.monotonic() > end or self.witnesses.clients[c.client].child.popen.poll():
                trial.disasters.append(f"{self.witnesses.name(c)} cannot be closed")
                self.usable = False
                return
            time.sleep(0.0005)

    def _others(self, trial: Trial, before: dict[str, Any]) -> None:
        """Nobody else was restarted."""
        after = self.ready()
        if not after:
            trial.down, self.usable = True, False
            return
        for role in ("keeper", "neatd", "nic"):
            if before[role]["pid"] != after[role]["pid"]:
                trial.disasters.append(f"{role} was restarted")
        for was, now in zip(before["replicas"], after["replicas"], strict=True):
            if was["index"] != trial.victim and was["pid"] != now["pid"]:
                trial.disasters.append(f"replica {was['index']} was restarted")


class Campaign:
    """All faults of a run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dice = random.Random(args.seed)
        self.trials: list[Trial] = []
        self.problems: list[str] = []
        self.end = 0.0  # set when the first instance serves

    @property
    def over(self) -> bool:
        enough: bool = len(self.trials) >= self.args.faults
        return enough or (len(self.trials) > 0 and time.monotonic() > self.end)

    def run(self) -> None:
        """Instance after instance."""
        while not self.over:
            try:
                with contextlib.ExitStack() as stack:
                    self._instance(stack)
            except CaseFailed as why:
                self.problems.append(str(why))
                print(f"PROBLEM {why}", flush=True)
                if len(self.problems) > 20:
                    return

    def _instance(self, stack: contextlib.ExitStack) -> None:
        args = self.args
        options = [*DETECT, *(() if args.defaults else ALONE)]
        neat, net = start_instance(stack, args.replicas, args.peer == "both", *options)
        where = Path(tempfile.mkdtemp(prefix="neat-faults-"))
        stack.callback(shutil.rmtree, where, ignore_errors=True)
        size = Size(args.lasting, args.churning, args.blocking)
        witnesses = Witnesses(neat, net, where, size, args.seed * 64 + len(self.trials))
        stack.callback(witnesses.stop)
        try:
            self._faults(Instance(args, neat, witnesses), where)
        except CaseFailed:
            self._keep(neat, where, f"problem-{len(self.problems)}")
            raise

    def _faults(self, instance: Instance, where: Path) -> None:
        instance.serve()
        self.end = self.end or time.monotonic() + self.args.seconds
        for _ in range(self.args.fresh):
            due = time.monotonic() + (1 / self.args.rate if self.args.rate else 0)
            kind = self.dice.choice(self.args.kinds)
            trial = instance.trial(len(self.trials), kind, self.dice)
            if trial:
                self.trials.append(trial)
                self._show(trial)
                truncated = any(loss.how == "end of file" for loss in trial.losses)
                if trial.cls == "all" or trial.corrupt or trial.down or truncated:
                    self._keep(instance.neat, where, f"fault-{trial.number}")
            if self.over or not instance.usable:
                return
            time.sleep(max(0.0, due - time.monotonic()))

    def _show(self, trial: Trial) -> None:
        if trial.cls == "transparent" and not trial.corrupt:
            return
        losses = ", ".join(f"{x.who} on {x.replica}: {x.how}" for x in trial.losses[:3])
        print(
            f"{trial.number} {trial.kind} in replica {trial.victim}: {trial.cls}"
            f"{', WRONG BYTES' if trial.corrupt else ''}{', down' if trial.down else ''}; "
            f"{trial.what}; deaths {trial.deaths} {trial.cause}; {len(trial.losses)} lost: {losses}"
            f"{' '.join(['', *trial.disasters, *trial.wrong])}",
            flush=True,
        )

    def _keep(self, neat: Neat, where: Path, name: str) -> None:
        kept = Path(tempfile.gettempdir()) / f"neat-faults-{self.args.seed}" / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for path in (neat.control.with_suffix(".log"), *where.glob("*.out"), *where.glob("*.err")):
            with contextlib.suppress(OSError):
                shutil.copy(path, kept)
        with contextlib.suppress(OSError):
            shutil.copytree(neat.directory / "evidence", kept / "evidence")
        print(f"kept: {kept}", flush=True)


COLUMNS = ("faults", "died", *CLASSES, "wrong bytes", "down")


def tally(trials: Iterable[Trial]) -> dict[str, Counter[str]]:
    """Kind -> column -> faults; the last row is of all."""
    rows: dict[str, Counter[str]] = {}
    for trial in trials:
        for row in (rows.setdefault(trial.kind, Counter()), rows.setdefault("all", Counter())):
            row["faults"] += 1
            row["died"] += trial.deaths > 0
            row[trial.cls] += 1
            row["wrong bytes"] += trial.corrupt
            row["down"] += trial.down
    total = rows.pop("all", Counter())
    return {**{kind: rows[kind] for kind in KINDS if kind in rows}, "sum": total}


def table(rows: dict[str, Counter[str]]) -> str:
    """Text for people, and for Markdown."""
    lines = ["| kind | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [
        f"| {kind} | " + " | ".join(str(row[column]) for column in COLUMNS) + " |"
        for kind, row in rows.items()
    ]
    return "\n".join(lines)


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt  # what was started is ended, the namespace removed


def save(campaign: Campaign, started: str) -> Path:
    """The JSON file."""
    args = campaign.args
    path = args.json or RESULTS / f"faults-{started.replace(':', '').split('+')[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    trials = [{"class": t.cls, "corrupt": t.corrupt, **asdict(t)} for t in campaign.trials]
    whole = {
        "started": started,
        "again": again(args),
        "machine": machine(),
        "table": tally(campaign.trials),
        "problems": campaign.problems,
        "faults": trials,
    }
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return Path(path)


def main(argv: list[str]) -> int:
    """Entry point. 0: no fault reached another replica or a program."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, _stop)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(f"again: {again(args)}", flush=True)
    campaign = Campaign(args)
    try:
        campaign.run()
    except SkipCase as why:
        print(f"skipped: {why}", file=sys.stderr)
        return 1
    finally:
        if campaign.trials:
            print(table(tally(campaign.trials)))
            print(f"written: {save(campaign, started)}\nagain: {again(args)}")
    return 1 if campaign.problems or any(t.cls == "all" for t in campaign.trials) else 0
