"""What the keeper tells the successor of a replica, and which process it is."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ..waiting import wait_until
from .client import LIB, ROOT, Client, Instance
from .conftest import WARNINGS, compile_c

OUTSIDE, FAULT, HANG = LIB.NEAT_DEATH_OUTSIDE, LIB.NEAT_DEATH_FAULT, LIB.NEAT_DEATH_HANG


class Config(NamedTuple):
    """What of R_CONFIG the keeper decides, as the fake replica wrote it down."""

    index: int
    epoch: int
    mode: int
    adopt: int
    death: int
    program: str = "neat-replica"


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
        words = [line.split() for line in lines]
        return [Config(*map(int, numbers), program) for *numbers, program in words]

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

    found: dict[str, Any] = wait_until(there, f"replica {index} is ready in epoch {epoch}")
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
        Config(0, 1, stateful, 0, 0),
        Config(0, 2, stateful, 1, OUTSIDE),
        Config(0, 3, stateful, 1, FAULT),
        Config(0, 4, stateful, 1, FAULT),
        Config(0, 5, stateful, 1, OUTSIDE),
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
    wait_until(lambda: len(fakes.configs()) == 3, "the third incarnation")
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


def test_a_kill_after_too_many_faults_is_no_further_one(fakes: Fakes) -> None:
    fakes.up("--faults", "3")
    for epoch in (2, 3, 4):
        fakes.kill(signal.SIGSEGV, epoch)
    last = fakes.kill(signal.SIGKILL, 5)
    assert [c.adopt for c in fakes.configs()] == [0, 1, 1, 0, 1]
    assert (last["fell_back"], last["strikes"]) == (False, 3)


def test_adoption_comes_back_when_the_faults_are_old(fakes: Fakes) -> None:
    fakes.up("--faults", "2", "--fault-window", "0.5")
    for epoch in (2, 3):
        fakes.kill(signal.SIGSEGV, epoch)
    assert [c.adopt for c in fakes.configs()] == [0, 1, 0]
    wait_until(lambda: fakes.ready(3)["strikes"] == 0, "the window is over")
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
    wait_until(lambda: len(fakes.configs()) == 2, "the stateless start")
    assert fakes.instance
    found = fakes.instance.quick_status
    wait_until(lambda: found()["replicas"][0]["strikes"] == 0, "the window is over")
    os.kill(found()["replicas"][0]["pid"], signal.SIGKILL)
    fakes.ready(3)
    assert [c.adopt for c in fakes.configs()] == [0, 0, 0]


@pytest.mark.parametrize("option", [("--faults", "0"), ("--faults", "65"), ("--mode", "x")])
def test_impossible_options(fresh: Instance, option: tuple[str, str]) -> None:
    done = fresh.cli("up", "--name", "t", *option)
    assert done.returncode == 2 and option[0] in done.stderr


# ---- standby ----


def standby(instance: Instance) -> int:
    pid: int = wait_until(
        lambda: (s := instance.quick_status()) and s["standby"]["pid"], "a standby is there"
    )
    return pid


def test_the_standby_becomes_the_successor(instance: Instance) -> None:
    for epoch in range(2, 6):
        spare = standby(instance)
        os.kill(instance.quick_status()["replicas"][epoch % 2]["pid"], signal.SIGKILL)
        assert ready(instance, (epoch + 2) // 2, epoch % 2)["pid"] == spare
        wait_until(lambda s=spare: standby(instance) != s, "the next standby")


def test_a_killed_standby_is_replaced(instance: Instance) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
        spare = standby(instance)
        os.kill(spare, number)
        wait_until(
            lambda s=spare: (now := instance.quick_status()["standby"]["pid"]) and now != s,
            "another standby",
        )
    assert [r["epoch"] for r in instance.quick_status()["replicas"]] == [1, 1]


def test_replica_and_standby_killed_at_once(instance: Instance) -> None:
    """A standby that is dying when it is promoted is one more death (so the epoch is 2 or 3)."""
    os.kill(standby(instance), signal.SIGKILL)
    os.kill(instance.quick_status()["replicas"][0]["pid"], signal.SIGKILL)
    wait_until(
        lambda: (
            (r := instance.quick_status()["replicas"][0])["epoch"] > 1 and r["state"] == "ready"
        ),
        "replica 0 is ready again",
    )
    standby(instance)


def test_the_standby_maps_nothing_of_the_instance_and_sleeps(instance: Instance) -> None:
    pid = standby(instance)
    wait_until(lambda: "S (sleeping)" in Path(f"/proc/{pid}/status").read_text(), "it sleeps")
    assert "memfd:" not in Path(f"/proc/{pid}/maps").read_text()
    kept = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum("socket:" in name for name in kept) == 1 and not any("memfd" in n for n in kept)
    bases = set()
    for one in (pid, *(r["pid"] for r in instance.quick_status()["replicas"])):
        bases.add(Path(f"/proc/{one}/maps").read_text().split("-")[0])
    assert len(bases) == 3, "address layouts of their own"


# ---- hangs, stops, evidence ----


def test_a_replica_that_burns_cpu_without_a_heartbeat_is_replaced(fakes: Fakes) -> None:
    instance = fakes.up("--hang", "0.1")
    last = fakes.kill(signal.SIGUSR1, 2)
    assert fakes.configs()[-1] == Config(0, 2, LIB.NEAT_STATEFUL, 1, HANG)
    assert (last["last_death"], last["strikes"]) == ("hang", 1)
    assert "hangs: no heartbeat" in instance.log()


def test_a_hang_during_the_recovery_ends_too(fakes: Fakes) -> None:
    fakes.up("--hang", "0.1", at="2:hang")
    fakes.kill(signal.SIGKILL, 3)
    assert [(c.adopt, c.death) for c in fakes.configs()[1:]] == [(1, OUTSIDE), (1, HANG)]


def test_busy_with_a_heartbeat_is_no_hang(fakes: Fakes) -> None:
    instance = fakes.up("--hang", "0.1")
    pid = fakes.ready(1)["pid"]
    os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: run_s(pid) > 0.5, "half a second of its CPU time")
    assert fakes.ready(1)["pid"] == pid
    assert "hangs" not in instance.log()


def test_a_real_replica_under_load_is_no_hang(fresh: Instance) -> None:
    """Control messages as fast as they go, with a limit of 20 ms: every loop has its heartbeat."""
    instance = fresh.up("--replicas", "1", "--hang", "0.02")
    client = Client(instance.path)
    pid = ready(instance, 1)["pid"]
    for sock in range(1, 400):
        client.listen(sock)
        client.unbind(sock)
    assert ready(instance, 1)["pid"] == pid


def run_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_a_stopped_replica_is_replaced_and_that_is_no_strike(fakes: Fakes) -> None:
    instance = fakes.up("--stopped", "0.2")
    last = fakes.kill(signal.SIGSTOP, 2)
    assert fakes.configs()[-1] == Config(0, 2, LIB.NEAT_STATEFUL, 1, OUTSIDE)
    assert (last["last_death"], last["strikes"]) == ("outside", 0)
    assert "was stopped for" in instance.log()


def test_stopped_for_a_moment_is_none_of_our_business(fakes: Fakes) -> None:
    """The second stop starts the time anew: together they would be too long."""
    instance = fakes.up("--stopped", "0.6")
    pid = fakes.ready(1)["pid"]
    for _ in range(2):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.4)  # the measurement itself
        os.kill(pid, signal.SIGCONT)
        assert instance.quick_status()["replicas"][0]["pid"] == pid
    assert "was stopped" not in instance.log()


def test_a_stopped_standby_is_not_promoted(fakes: Fakes) -> None:
    instance = fakes.up("--stopped", "0.3")
    spare = standby(instance)
    os.kill(spare, signal.SIGSTOP)
    wait_until(lambda: "T (stopped)" in Path(f"/proc/{spare}/status").read_text(), "it is stopped")
    assert fakes.kill(signal.SIGKILL, 2)["pid"] != spare
    wait_until(lambda: standby(instance) != spare, "another standby")


def test_evidence_of_faults_and_hangs_but_not_of_kills(fakes: Fakes) -> None:
    instance = fakes.up("--hang", "0.1")
    pid = fakes.ready(1)["pid"]
    fakes.kill(signal.SIGSEGV, 2)
    fakes.kill(signal.SIGUSR1, 3)
    fakes.kill(signal.SIGKILL, 4)
    folder = instance.directory / "evidence"
    wait_until(lambda: len(list(folder.iterdir())) == 2, "two files")
    fault, hang = ((folder / f"t-0-{epoch}.txt").read_text() for epoch in (1, 2))
    assert f"pid {pid}," in fault and "killed by signal 11" in fault
    assert "strikes within the window: 1" in fault
    assert "no heartbeat" in hang and "had adopted" in hang
    assert "0000  0000000100000001" in fault, "the fake replica's mark in its arena"
    assert "replica 0 started" in fault, "the end of the log"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_evidence_is_bounded(fakes: Fakes) -> None:
    instance = fakes.up("--fault-window", "0.001")
    for epoch in range(2, 40):
        fakes.kill(signal.SIGSEGV, epoch)
    folder = instance.directory / "evidence"
    wait_until(lambda: (folder / "t-0-38.txt").exists(), "the last one")
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 32 and "t-0-1.txt" not in names


# ---- quarantine ----


@pytest.fixture
def hospital(fakes: Fakes, tmp_path: Path) -> Fakes:
    """Fakes of which there is a quarantine build, too; their files may be changed."""
    native = tmp_path / "native"
    shutil.copytree(fakes.native, native)
    shutil.copy(native / "neat-replica", native / "neat-replica-quarantine")
    fakes.native = native
    return fakes


def programs(fakes: Fakes) -> list[str]:
    return [c.program.removeprefix("neat-replica") for c in fakes.configs()]


def test_the_second_fault_leads_into_quarantine_and_quiet_out_of_it(hospital: Fakes) -> None:
    instance = hospital.up("--quarantine", "4")
    hospital.kill(signal.SIGSEGV, 2)
    assert hospital.kill(signal.SIGABRT, 3)["build"] == "quarantine"
    text = instance.cli("status", "--name", "t").stdout
    assert "runs the quarantine build" in text
    hospital.kill(signal.SIGKILL, 4)  # not planned: stays
    assert hospital.ready(5)["build"] == "normal"
    assert programs(hospital) == ["", "", "-quarantine", "-quarantine", ""]
    assert [(c.adopt, c.death) for c in hospital.configs()][-2:] == [(1, OUTSIDE), (1, OUTSIDE)]


def test_faults_far_apart_are_no_case_for_quarantine(hospital: Fakes) -> None:
    hospital.up("--fault-window", "0.1")
    for epoch in (2, 3, 4):
        hospital.kill(signal.SIGSEGV, epoch)
        wait_until(lambda e=epoch: hospital.ready(e)["strikes"] == 0, "the window is over")
    assert programs(hospital) == [""] * 4


def test_a_quarantine_build_that_does_not_start_is_given_up(hospital: Fakes) -> None:
    hospital.up(at="3:segv")
    hospital.kill(signal.SIGSEGV, 2)
    hospital.kill(signal.SIGSEGV, 4)
    assert programs(hospital) == ["", "", "-quarantine", ""]
    assert [c.adopt for c in hospital.configs()] == [0, 1, 1, 1]


# ---- planned replacements ----


def executable(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/exe")


def test_upgrade_takes_the_new_file_and_a_crash_does_not(hospital: Fakes) -> None:
    instance = hospital.up()
    path = hospital.native / "neat-replica"
    shutil.copy(path, tmp := path.with_suffix(".new"))
    tmp.rename(path)
    standby(instance)
    for epoch in (2, 3):
        assert executable(hospital.kill(signal.SIGKILL, epoch)["pid"]) == f"{path} (deleted)"
        standby(instance)
    done = instance.cli("upgrade", "--name", "t")
    assert (done.returncode, done.stderr) == (0, "neatsock: instance 't': 1 replica replaced\n")
    last = hospital.ready(4)
    assert executable(last["pid"]) == str(path) and last["generation"] == 1
    assert hospital.configs()[-1] == Config(0, 4, LIB.NEAT_STATEFUL, 1, OUTSIDE)
    assert executable(hospital.kill(signal.SIGKILL, 5)["pid"]) == str(path)


def test_upgrade_replaces_one_replica_after_the_other(instance: Instance) -> None:
    before = instance.quick_status()
    other = instance.directory / "neat-replica"
    shutil.copy(Path(instance.env["NEATSOCK_NATIVE"]) / "neat-replica", other)
    done = instance.cli("upgrade", "--name", "t", "--replica-bin", str(other))
    assert done.returncode == 0, done.stderr
    after = instance.quick_status()
    assert [r["epoch"] for r in after["replicas"]] == [2, 2]
    assert all(executable(r["pid"]) == str(other) for r in after["replicas"])
    assert {r["pid"] for r in after["replicas"]}.isdisjoint(r["pid"] for r in before["replicas"])
    log = instance.log()
    first, second = (log.index(f"replica {i} (pid ") for i in (0, 1))
    assert first < log.index("replica 0 is ready") < second < log.index("replica 1 is ready")


def test_upgrade_to_something_else_changes_nothing(fakes: Fakes, tmp_path: Path) -> None:
    instance = fakes.up()
    pid = fakes.ready(1)["pid"]
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho neat-replica ABI 1 fingerprint 0\n")
    old.chmod(0o755)
    for path, complaint in (
        ("/bin/true", "is no neat-replica"),
        (str(tmp_path), f"cannot run {tmp_path} --version: Permission denied\n"),
        ("/nonexistent", "cannot run /nonexistent --version: No such file or directory\n"),
        (str(old), "version 1"),
    ):
        done = instance.cli("upgrade", "--name", "t", "--replica-bin", path)
        assert done.returncode == 1 and complaint in done.stderr
    assert fakes.ready(1)["pid"] == pid


def test_upgrade_to_another_build_fails_before_anybody_is_ended(
    fakes: Fakes, tmp_path: Path
) -> None:
    """Same version, other layouts: only the program itself knows, when it is parked."""
    instance = fakes.up()
    pid = fakes.ready(1)["pid"]
    other = tmp_path / "other"
    compile_c(other, [ROOT / "tests/control/fake_replica.c"], "-DFAKE_LAYOUT=1")
    done = instance.cli("upgrade", "--name", "t", "--replica-bin", str(other))
    assert done.returncode == 1 and "failed before it was ready" in done.stderr
    assert "is of another build" in instance.log()
    assert fakes.ready(1)["pid"] == pid
    standby(instance)
    assert executable(fakes.kill(signal.SIGKILL, 2)["pid"]).endswith("native/neat-replica")


def test_upgrade_to_a_program_that_cannot_recover_is_taken_back(hospital: Fakes) -> None:
    instance = hospital.up(at="2:segv")
    other = hospital.native / "other"
    shutil.copy(hospital.native / "neat-replica", other)
    done = instance.cli("upgrade", "--name", "t", "--replica-bin", str(other))
    assert done.returncode == 1 and "go on with the old one" in done.stderr
    hospital.ready(3)
    assert programs(hospital) == ["", "other", ""]
    assert [c.adopt for c in hospital.configs()] == [0, 1, 1]
    # And a good one may come after it.
    assert instance.cli("upgrade", "--name", "t").returncode == 0
    hospital.ready(4)


def test_an_upgrade_is_not_called_off_for_a_neatd_that_fails(hospital: Fakes) -> None:
    """It does not run the program that is new."""
    instance = hospital.up(at="2:pause")
    command = [sys.executable, "-m", "neatsock", "upgrade", "--name", "t"]
    with subprocess.Popen(command, env=instance.env, stderr=subprocess.DEVNULL) as upgrade:
        wait_until(lambda: len(hospital.configs()) == 2, "the new program is starting")
        neatd = r"neatd started, pid (\d+), epoch {}"
        for epoch in (1, 2):
            started = wait_until(
                lambda n=epoch: re.search(neatd.format(n), instance.log()),  # type: ignore[misc]
                "neatd runs",
            )
            os.kill(int(started[1]), signal.SIGSEGV)
        wait_until(instance.quick_status, "neatd is back")
        assert "go on with the old one" not in instance.log()
        upgrade.kill()


def test_upgrade_needs_the_stateful_mode(fakes: Fakes) -> None:
    instance = fakes.up("--mode", "stateless")
    done = instance.cli("upgrade", "--name", "t")
    assert done.returncode == 1 and "would reset connections" in done.stderr
    fakes.ready(1)
    done = instance.cli("up", "--name", "x", "--mode", "stateless", "--rerandomize", "5")
    assert done.returncode == 2 and "would reset connections" in done.stderr


def test_rerandomize_replaces_one_replica_after_another(fresh: Instance) -> None:
    instance = fresh.up("--replicas", "2", "--rerandomize", "1")
    layouts = set()
    for epoch, index in ((2, 0), (2, 1), (3, 0)):
        one = ready(instance, epoch, index)
        layouts.add(Path(f"/proc/{one['pid']}/maps").read_text().split("-")[0])
        assert (one["last_death"], one["strikes"], one["adopted"]) == ("planned", 0, True)
    assert len(layouts) == 3
