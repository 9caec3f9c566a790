"""What the keeper tells the successor of a replica, and which process it is."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .client import LIB, ROOT, Instance, wait_for
from .conftest import WARNINGS, compile_c

OUTSIDE, FAULT, HANG = LIB.NEAT_DEATH_OUTSIDE, LIB.NEAT_DEATH_FAULT, LIB.NEAT_DEATH_HANG


class Config(NamedTuple):
    """What of R_CONFIG the keeper decides, as the fake replica wrote it down."""

    index: int
    epoch: int
    mode: int
    adopt: int
    death: int


class Fakes:
    """An instance whose replicas are fake_replica.c."""

    def __init__(self, native: Path, directory: Path) -> None:
        self.native, self.directory = native, directory
        self.written = directory / "configs"
        self.instance: Instance | None = None

    def up(self, *options: str, at: str = "") -> Instance:
        env = {"NEATSOCK_NATIVE": str(self.native), "FAKE_LOG": str(self.written), "FAKE_AT": at}
        self.instance = Instance(self.directory / "run", **env)
        return self.instance.up("--replicas", "1", *options)

    def configs(self) -> list[Config]:
        lines = self.written.read_text().splitlines()
        return [Config(*map(int, line.split())) for line in lines]

    def ready(self, epoch: int) -> dict[str, Any]:
        assert self.instance
        return ready(self.instance, epoch)

    def kill(self, number: int, epoch: int) -> dict[str, Any]:
        """Replica 0 gets a signal; blocks until `epoch` is ready."""
        assert self.instance
        os.kill(self.instance.quick_status()["replicas"][0]["pid"], number)
        return self.ready(epoch)


def ready(instance: Instance, epoch: int, index: int = 0) -> dict[str, Any]:
    def there() -> Any:
        found = instance.quick_status()
        one = found["replicas"][index] if found else {"epoch": 0}
        return one["epoch"] == epoch and one["state"] == "ready" and one

    found: dict[str, Any] = wait_for(there, f"replica {index} is ready in epoch {epoch}")
    return found


@pytest.fixture(scope="session")
def fake_native(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fake") / "native"
    shutil.copytree(native, directory)
    compile_c(directory / "neat-replica", [ROOT / "tests/control/fake_replica.c"], *WARNINGS)
    return directory


@pytest.fixture
def fakes(fake_native: Path, tmp_path: Path) -> Iterator[Fakes]:
    made = Fakes(fake_native, tmp_path)
    yield made
    if made.instance:
        made.instance.down()


# ---- modes ----


def test_a_successor_adopts_whatever_ended_its_predecessor(fakes: Fakes) -> None:
    fakes.up()
    fakes.kill(signal.SIGKILL, 2)
    fakes.kill(signal.SIGSEGV, 3)
    fakes.kill(signal.SIGABRT, 4)
    fakes.kill(signal.SIGTERM, 5)
    stateful = LIB.NEAT_STATEFUL
    assert fakes.configs() == [
        (0, 1, stateful, 0, 0),
        (0, 2, stateful, 1, OUTSIDE),
        (0, 3, stateful, 1, FAULT),
        (0, 4, stateful, 1, FAULT),
        (0, 5, stateful, 1, OUTSIDE),
    ]


def test_stateless_mode_never_adopts(fakes: Fakes) -> None:
    instance = fakes.up("--mode", "stateless")
    assert instance.quick_status()["mode"] == "stateless"
    fakes.kill(signal.SIGKILL, 2)
    fakes.kill(signal.SIGSEGV, 3)
    assert [(c.mode, c.adopt) for c in fakes.configs()] == [(LIB.NEAT_STATELESS, 0)] * 3
    done = instance.cli("up", "--name", "t", "--mode", "stateful")
    assert done.returncode == 1 and "already up with --mode stateless" in done.stderr


def test_nothing_to_adopt_before_the_first_ready(fakes: Fakes) -> None:
    fakes.up(at="1:segv,2:exit")
    fakes.ready(3)
    fakes.kill(signal.SIGKILL, 4)
    assert [(c.adopt, c.death) for c in fakes.configs()] == [
        (0, 0),
        (0, FAULT),
        (0, FAULT),
        (1, OUTSIDE),
    ]


def test_a_death_during_the_recovery_is_recovered_from(fakes: Fakes) -> None:
    fakes.up(at="2:segv,3:wait")
    os.kill(fakes.ready(1)["pid"], signal.SIGKILL)
    wait_for(lambda: len(fakes.configs()) == 3, "the third incarnation")
    assert fakes.instance
    os.kill(fakes.instance.quick_status()["replicas"][0]["pid"], signal.SIGKILL)
    fakes.ready(4)
    assert [(c.adopt, c.death) for c in fakes.configs()[1:]] == [
        (1, OUTSIDE),
        (1, FAULT),
        (1, OUTSIDE),
    ]


def test_too_many_faults_end_in_a_stateless_start_and_then_in_delays(fakes: Fakes) -> None:
    instance = fakes.up("--faults", "3")
    for epoch in (2, 3, 4, 5):
        last = fakes.kill(signal.SIGSEGV, epoch)
    assert [c.adopt for c in fakes.configs()] == [0, 1, 1, 0, 0]
    assert (last["fell_back"], last["strikes"], last["last_death"]) == (True, 4, "fault")
    log = instance.log()
    assert log.count("its next start is stateless") == 1 and log.count("restart delayed") == 1
    text = instance.cli("status", "--name", "t").stdout
    assert "4 strikes" in text and "stateless because of them" in text


def test_adoption_comes_back_when_the_faults_are_old(fakes: Fakes) -> None:
    fakes.up("--faults", "2", "--fault-window", "0.5")
    for epoch in (2, 3):
        fakes.kill(signal.SIGSEGV, epoch)
    assert [c.adopt for c in fakes.configs()] == [0, 1, 0]
    wait_for(lambda: fakes.ready(3)["strikes"] == 0, "the window is over")
    fakes.kill(signal.SIGSEGV, 4)
    assert fakes.configs()[-1].adopt == 1


def test_kills_from_outside_never_leave_the_stateful_mode(fakes: Fakes) -> None:
    fakes.up("--faults", "2")
    for epoch in range(2, 12):
        last = fakes.kill(signal.SIGKILL, epoch)
    assert [c.adopt for c in fakes.configs()] == [0] + [1] * 10
    assert (last["strikes"], last["restarts"], last["fell_back"]) == (0, 10, False)
    assert (last["last_death"], last["last_death_cause"]) == ("outside", "SIGKILL")
    assert last["recovery_ms"] > 0


def test_a_stateless_start_that_was_not_finished_leaves_nothing_to_adopt(fakes: Fakes) -> None:
    fakes.up("--faults", "1", "--fault-window", "1", at="2:wait")
    os.kill(fakes.ready(1)["pid"], signal.SIGSEGV)
    wait_for(lambda: len(fakes.configs()) == 2, "the stateless start")
    assert fakes.instance
    found = fakes.instance.quick_status
    wait_for(lambda: found()["replicas"][0]["strikes"] == 0, "the window is over")
    os.kill(found()["replicas"][0]["pid"], signal.SIGKILL)
    fakes.ready(3)
    assert [c.adopt for c in fakes.configs()] == [0, 0, 0]


@pytest.mark.parametrize("option", [("--faults", "0"), ("--faults", "65"), ("--mode", "x")])
def test_impossible_options(fresh: Instance, option: tuple[str, str]) -> None:
    done = fresh.cli("up", "--name", "t", *option)
    assert done.returncode == 2 and option[0] in done.stderr


# ---- standby ----


def standby(instance: Instance) -> int:
    pid: int = wait_for(
        lambda: (s := instance.quick_status()) and s["standby"]["pid"], "a standby is there"
    )
    return pid


def test_the_standby_becomes_the_successor(instance: Instance) -> None:
    for epoch in range(2, 6):
        spare = standby(instance)
        os.kill(instance.quick_status()["replicas"][epoch % 2]["pid"], signal.SIGKILL)
        assert ready(instance, (epoch + 2) // 2, epoch % 2)["pid"] == spare
        wait_for(lambda s=spare: standby(instance) != s, "the next standby")


def test_a_killed_standby_is_replaced(instance: Instance) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
        spare = standby(instance)
        os.kill(spare, number)
        wait_for(
            lambda s=spare: (now := instance.quick_status()["standby"]["pid"]) and now != s,
            "another standby",
        )
    assert [r["epoch"] for r in instance.quick_status()["replicas"]] == [1, 1]


def test_replica_and_standby_killed_at_once(instance: Instance) -> None:
    os.kill(standby(instance), signal.SIGKILL)
    os.kill(instance.quick_status()["replicas"][0]["pid"], signal.SIGKILL)
    ready(instance, 2)
    standby(instance)


def test_the_standby_maps_nothing_of_the_instance_and_sleeps(instance: Instance) -> None:
    pid = standby(instance)
    wait_for(lambda: "S (sleeping)" in Path(f"/proc/{pid}/status").read_text(), "it sleeps")
    assert "memfd:" not in Path(f"/proc/{pid}/maps").read_text()
    kept = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum("socket:" in name for name in kept) == 1 and not any("memfd" in n for n in kept)
    bases = set()
    for one in (pid, *(r["pid"] for r in instance.quick_status()["replicas"])):
        bases.add(Path(f"/proc/{one}/maps").read_text().split("-")[0])
    assert len(bases) == 3, "address layouts of their own"
