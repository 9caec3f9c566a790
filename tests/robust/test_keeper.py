"""The keeper restarts what dies, alone: under load, planned and unplanned, with neatd in any state.

In all of these the bystanders have connections in every replica and must not lose one.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.inject import LOOP, Target
from neatsock.instance import native

from ..long import TIMES
from .rig import Bystander, Rig, stopped, wait_until

SECONDS = 15 * TIMES
BYSTANDERS = 4


@contextmanager
def bystanders(rig: Rig) -> Iterator[list[Bystander]]:
    """Some applications; in the end none of them has lost a connection."""
    made = [Bystander(rig.world) for _ in range(BYSTANDERS)]
    try:
        yield made
        for one in made:
            one.lively()
        assert [one.broken for one in made] == [[]] * BYSTANDERS, rig.log()[-3000:]
    finally:
        for one in made:
            one.close()


class Children:
    """The keeper's children by what its log says; works while neatd does not answer."""

    STARTED = r"(?m)neat-keeper: {} (?:started|goes on in the standby).*?, pid (\d+), epoch (\d+)$"

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.keeper = rig.pids()["keeper"]

    def last(self, name: str) -> tuple[int, int]:
        """(pid, epoch) of a child's latest process; (0, 0) before the first."""
        found = re.findall(self.STARTED.format(name), self.rig.log())
        return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)

    def kill(self, name: str) -> None:
        try:
            os.kill(self.last(name)[0], signal.SIGKILL)
        except ProcessLookupError:
            pass  # killed already, or on its way to be replaced

    def recovered(self, replica: int) -> int:
        return self.rig.log().count(f"replica {replica} is ready, ")

    def kill_and_wait(self, replica: int) -> None:
        before = self.recovered(replica)
        self.kill(f"replica {replica}")
        wait_until(lambda: self.recovered(replica) > before, f"replica {replica} is ready again")


@pytest.fixture
def own(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Callable[..., Rig]]:
    """Starts rigs of the test's own."""
    made: list[Rig] = []

    def start(replicas: int, *options: str) -> Rig:
        made.append(Rig(scratch, replicas, *options))
        return made[-1]

    yield start
    for rig in made:
        rig.down()


# ---- planned ----


def test_upgrade_under_open_connections_to_the_quarantine_build_and_back(rig2: Rig) -> None:
    """The quarantine build serves as well as the normal one."""
    with bystanders(rig2) as all_:
        for program in ("neat-replica-quarantine", "neat-replica") * 2:
            done = rig2.cli("upgrade", "--replica-bin", str(native(program)))
            assert done.returncode == 0, done.stderr
            for pid in (rig2.pids()[f"replica{i}"] for i in (0, 1)):
                assert os.readlink(f"/proc/{pid}/exe") == str(native(program))
            for one in all_:
                one.lively(50)


def test_rerandomize_under_open_connections(own: Callable[..., Rig]) -> None:
    rig = own(2, "--rerandomize", "1")
    with bystanders(rig):
        wait_until(lambda: min(rig.epochs()) >= 3, "each was replaced twice")
    assert all(r["strikes"] == 0 for r in rig.status()["replicas"])


def test_upgrade_and_rerandomize_replace_every_component(own: Callable[..., Rig]) -> None:
    rig = own(1, "--components", "multi", "--rerandomize", "1")
    with bystanders(rig) as all_:
        before = parts(rig)
        assert len(before) == 4
        done = rig.cli("upgrade")
        assert done.returncode == 0, done.stderr
        after = parts(rig)
        assert not set(before.values()) & set(after.values()), (before, after)
        for one in all_:
            one.lively(50)
        wait_until(lambda: not set(parts(rig).values()) & set(after.values()), "all again")
    assert "strike" not in rig.log()


def parts(rig: Rig) -> dict[str, int]:
    """Processes of replica 0 by name."""
    found = rig.status()["replicas"][0]
    return {"tcp": found["pid"]} | {part["name"]: part["pid"] for part in found["components"]}


@pytest.mark.parametrize(
    ("layout", "program", "kind"),
    [("multi", "neat-replica", "neat-tcp"), ("single", "neat-tcp", "neat-replica")],
)
def test_upgrade_to_a_program_of_the_other_kind_is_refused(
    own: Callable[..., Rig], layout: str, program: str, kind: str
) -> None:
    rig = own(1, "--components", layout)
    before = rig.pids()
    done = rig.cli("upgrade", "--replica-bin", str(native(program)))
    assert done.returncode == 1 and f"{native(program)} is no {kind}" in done.stderr, done.stderr
    assert rig.pids() == before


# ---- the nic ----


def wire(scratch: Path) -> tuple[str, ...]:
    """There is a nic only with an uplink."""
    return "--wire", str(scratch / "wire"), "--address", "10.98.9.1/24"


def nic(rig: Rig) -> int:
    return int(wait_until(rig.status, "neatd answers")["nic"]["pid"] or 0)


def test_a_stopped_nic_is_replaced(own: Callable[..., Rig], scratch: Path) -> None:
    rig = own(1, "--stopped", "0.2", *wire(scratch))
    before = nic(rig)
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: nic(rig) not in (0, before), "another nic")


def test_a_nic_that_hangs_is_replaced(own: Callable[..., Rig], scratch: Path) -> None:
    """An endless loop is written into its code, as a bug of its own would be."""
    rig = own(1, "--hang", "0.1", *wire(scratch))
    before = nic(rig)
    target = Target(before)
    base, known = target.code()
    target.write(base + known["control_receive"][0], LOOP)
    target.close()
    os.kill(rig.pids()["replica0"], signal.SIGKILL)  # the nic is told
    wait_until(lambda: nic(rig) not in (0, before), "another nic")
    assert "nic" in rig.log() and "hangs" in rig.log()


# ---- neatd in any state ----


def test_replicas_are_restarted_while_neatd_is_stopped(rig2: Rig) -> None:
    children = Children(rig2)
    with bystanders(rig2) as all_, stopped(rig2.pids()["neatd"]):
        for kill in range(20):
            children.kill_and_wait(kill % 2)
            all_[kill % BYSTANDERS].lively(10)
    for index in (0, 1):
        rig2.ready(index, children.last(f"replica {index}")[1])


def test_replicas_are_restarted_while_neatd_dies_and_comes_back(rig2: Rig) -> None:
    """neatd is killed before, during and after a replica's recovery, and while it starts itself."""
    children = Children(rig2)
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    with bystanders(rig2) as all_:
        for kill in range(10):
            pid, _ = children.last("neatd")
            before = children.recovered(kill % 2)
            victims = ["neatd", f"replica {kill % 2}"]
            dice.shuffle(victims)
            for victim in victims:
                children.kill(victim)
            wait_until(lambda p=pid: children.last("neatd")[0] != p, "neatd starts")
            if kill % 2:
                end = time.monotonic() + dice.uniform(0, 0.3)
                wait_until(lambda e=end: time.monotonic() > e, "somewhere in its start")
                children.kill("neatd")
            wait_until(
                lambda i=kill % 2, n=before: children.recovered(i) > n, "the replica is ready"
            )
            all_[kill % BYSTANDERS].lively(10)
    for index in (0, 1):
        rig2.ready(index, children.last(f"replica {index}")[1])
    newcomer = Bystander(rig2.world)
    newcomer.close()
    assert newcomer.broken == []


# ---- everybody ----


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_random_combinations_of_kills(own: Callable[..., Rig], scratch: Path) -> None:
    """The keeper alone is spared."""
    rig = own(2, "--wire", str(scratch / "wire"), "--address", "10.77.0.1/24")
    children = Children(rig)
    wait_until(lambda: children.last("standby")[0], "the standby")
    seed = int(os.environ.get("NEATSOCK_SEED", random.randrange(2**32)))
    print(f"again: NEATSOCK_SEED={seed}")
    dice = random.Random(seed)
    files, kills = open_files(children.keeper), 0
    with bystanders(rig) as all_:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            names = ["replica 0", "replica 1", "standby", "nic", "neatd"]
            victims = dice.sample(names, dice.choice([1, 1, 1, 2, 3, 5]))
            for victim in victims:
                children.kill(victim)
                kills += 1
            pause = time.monotonic() + dice.choice([0.0, 0.002, 0.02, 0.2])
            wait_until(lambda p=pause: time.monotonic() > p, "the next one")
            if dice.random() < 0.3:
                dice.choice(all_).lively(5)
        print(kills, "kills")
    for index in (0, 1):
        rig.ready(index, children.last(f"replica {index}")[1])
    standby = wait_until(lambda: rig.status()["standby"]["pid"], "the standby")
    assert standby == children.last("standby")[0]
    wait_until(
        lambda: rig.status()["apps"] == [] and open_files(children.keeper) <= files,
        "the keeper holds no more than before",
    )
    assert "stateless" not in rig.log() and "delayed" not in rig.log()


# ---- isolation (issue 3, item 6) ----


def writable_inodes(pid: int) -> set[str]:
    """Shared objects that the process may write."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if "w" in words[1] and "s" in words[1]:
            found.add(words[4])
    return found


def isolated(rig: Rig) -> None:
    """No two of replicas and standby may write the same memory; one thread each."""
    found = rig.status()
    pids = [r["pid"] for r in found["replicas"]] + [found["standby"]["pid"]]
    inodes = [writable_inodes(pid) for pid in pids]
    assert inodes[0] and inodes[1] and not inodes[2]
    assert not inodes[0] & inodes[1]
    for pid in pids:
        assert "Threads:\t1\n" in Path(f"/proc/{pid}/status").read_text()


def layout(pid: int) -> tuple[str, ...]:
    """Where the program, its heap, its stack and libc lie."""
    kept = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        name = words[5] if len(words) > 5 else ""
        if name in ("[heap]", "[stack]") or "neat-replica" in name or "libc" in name:
            kept.setdefault(name, words[0].split("-")[0])
    return tuple(kept.values())


def test_two_hundred_restarts_have_two_hundred_layouts(rig2: Rig) -> None:
    children = Children(rig2)
    layouts: list[tuple[str, ...]] = []
    with bystanders(rig2):
        wait_until(lambda: rig2.status()["standby"]["pid"], "the standby")
        isolated(rig2)
        for kill in range(200):
            children.kill_and_wait(kill % 2)
            layouts.append(layout(children.last(f"replica {kill % 2}")[0]))
            if kill % 100 == 99:
                rig2.ready(kill % 2, children.last(f"replica {kill % 2}")[1])
                wait_until(lambda: rig2.status()["standby"]["pid"], "the standby")
                isolated(rig2)
    assert all(len(one) == 4 for one in layouts)
    assert len(set(layouts)) == 200
    for place in range(4):
        # The stack has 2^22 places (mm/util.c, randomize_stack_top): in one run of 200, two of 200
        # share one; three such pairs, in one of 10^7.
        assert len({one[place] for one in layouts}) > 197
