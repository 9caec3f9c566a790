"""neatd, or the next process, killed at each step of an upgrade, a scale event, a new layout.

Under connections whose bytes are compared. The command that waits for it ends well.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from neatsock import abi
from neatsock.instance import InstanceError, ask, native

from ..churn import Churn
from ..system.programs import free_port
from ..waiting import wait_until
from .rig import Rig
from .test_scale import HOLD
from .test_successor import Mortal

LIB = abi.lib
NOTHING = 0  # wrapped: K_STARTED and K_DIED, and orders to start somebody or to forget a message
Place = tuple[str, int | str, int]


def places(*all_: Place) -> Any:
    return pytest.mark.parametrize("place", all_, ids=["-".join(map(str, place)) for place in all_])


@pytest.fixture(scope="module")
def mortal(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Mortal]:
    layout = getattr(request, "param", "single")
    made = Mortal(tmp_path_factory.mktemp("mortal"), 2, "--components", layout, "--stopped", "0")
    yield made
    made.rig.down()


@pytest.fixture(scope="module")
def churn(mortal: Mortal) -> Iterator[Churn]:
    made = Churn(mortal.rig.world, mortal.rig.world, free_port(), log=mortal.rig.evidence)
    yield made
    made.close()


def settled(rig: Rig, count: int) -> list[dict[str, Any]]:
    """The replicas, once there are just so many, all of them ready, and a standby."""

    def there() -> Any:
        found = rig.status()
        replicas = found.get("replicas", [])
        good = len(replicas) == count and all(r["state"] == "ready" for r in replicas)
        return good and found["standby"]["pid"] and replicas

    try:
        found: list[dict[str, Any]] = wait_until(there, f"{count} replicas and a standby are ready")
    except AssertionError as err:
        raise AssertionError(f"{err}\n{rig.evidence()}") from None
    return found


def upgraded(rig: Rig, before: list[dict[str, Any]]) -> None:
    """Each is of the next program, and status says so."""
    after = settled(rig, len(before))
    assert {r["generation"] for r in after} == {before[0]["generation"] + 1}
    assert not {r["pid"] for r in after} & {r["pid"] for r in before}
    assert rig.log().count(", generation ") == after[0]["generation"], "none was begun twice"


@places(
    ("take", LIB.NEAT_MSG_CLI, 1),  # `neatsock upgrade` asks for the status first
    ("send", LIB.NEAT_MSG_CLI_REPLY, 1),
    ("told", LIB.NEAT_MSG_K_UPGRADE, 1),
    *[("hear", NOTHING, i) for i in range(1, 7)],
    ("hear", LIB.NEAT_MSG_R_READY, 1),
    ("hear", LIB.NEAT_MSG_R_READY, 2),
    ("hear", LIB.NEAT_MSG_ERROR, 1),  # how it ended
    ("send", LIB.NEAT_MSG_CLI_REPLY, 2),
    ("take", LIB.NEAT_MSG_CLI, 2),
)
def test_an_upgrade_whose_neatd_dies(mortal: Mortal, churn: Churn, place: Place) -> None:
    for die in (True, False):  # another one works
        before = settled(mortal.rig, 2)
        if die:
            mortal.die(*place)
        done = mortal.rig.cli("upgrade")
        assert done.returncode == 0 and "2 replicas replaced" in done.stderr, done.stderr
        assert not mortal.order.exists(), "neatd did not die"
        upgraded(mortal.rig, before)
    churn.goes_on()


# The line of the log that is waited for; who is killed then, if the line does not say it.
STEPS = [
    (r"upgrade to ", "replica0"),
    (r"upgrade to ", "replica1"),
    (r"standby started, pid (\d+)", ""),
    (r"replica 0 goes on in the standby, pid (\d+)", ""),
    (r"(?s)replica 0 goes on in the standby, pid (\d+).*replica 0 is ready", ""),
    (r"replica 1 goes on in the standby, pid (\d+)", ""),
]


@pytest.mark.parametrize("step", range(len(STEPS)))
@pytest.mark.parametrize("both", [False, True], ids=["alone", "with neatd"])
@pytest.mark.parametrize("mortal", ["single", "multi"], indirect=True)
def test_an_upgrade_whose_next_process_dies(
    mortal: Mortal, churn: Churn, step: int, both: bool
) -> None:
    line, victim = STEPS[step]
    rig = mortal.rig
    before = settled(rig, 2)
    pids, begin = rig.pids(), len(rig.log())
    command = [sys.executable, "-m", "neatsock", "upgrade"]
    env = {**os.environ, **rig.env}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as upgrade:
        said: Any = wait_until(lambda: re.search(line, rig.log()[begin:]), line)
        with suppress(ProcessLookupError):  # it has been replaced by now
            os.kill(pids[victim] if victim else int(said[1]), signal.SIGKILL)
        if both:
            os.kill(pids["neatd"], signal.SIGKILL)
        _, err = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 0 and "2 replicas replaced" in err, err + rig.evidence()
    upgraded(rig, before)
    churn.goes_on()


def scaled(rig: Rig, count: int) -> None:
    done = rig.cli("scale", str(count))
    assert done.returncode == 0 and f"{count} ready" in done.stderr, done.stderr


@places(
    ("take", LIB.NEAT_MSG_CLI, 1),
    ("send", LIB.NEAT_MSG_CLI_REPLY, 1),
    ("told", "scale", 1),
    ("told", "scale", 2),
    ("told", LIB.NEAT_MSG_R_LISTEN, 1),
    ("told", NOTHING, 1),  # to start it
    ("told", LIB.NEAT_MSG_R_NUDGE, 1),
    ("hear", NOTHING, 1),
    ("hear", LIB.NEAT_MSG_R_LISTENING, 1),
    ("hear", LIB.NEAT_MSG_R_READY, 1),
)
def test_a_replica_more_whose_neatd_dies(mortal: Mortal, churn: Churn, place: Place) -> None:
    settled(mortal.rig, 2)
    mortal.die(*place)
    scaled(mortal.rig, 3)
    wait_until(lambda: not mortal.order.exists(), "neatd dies")
    settled(mortal.rig, 3)
    churn.goes_on()
    scaled(mortal.rig, 2)
    settled(mortal.rig, 2)


@places(
    ("take", LIB.NEAT_MSG_CLI, 1),
    ("send", LIB.NEAT_MSG_CLI_REPLY, 1),
    ("told", "scale", 1),
    ("told", LIB.NEAT_MSG_R_DRAIN, 1),
    ("hear", LIB.NEAT_MSG_R_DRAINED, 1),
    ("told", NOTHING, 1),  # to forget that it drains
    ("told", "scale", 2),
    ("hear", NOTHING, 1),
)
def test_a_replica_less_whose_neatd_dies(mortal: Mortal, churn: Churn, place: Place) -> None:
    settled(mortal.rig, 2)
    scaled(mortal.rig, 3)
    settled(mortal.rig, 3)
    mortal.die(*place)
    scaled(mortal.rig, 2)
    wait_until(lambda: not mortal.order.exists(), "neatd dies")
    settled(mortal.rig, 2)
    churn.goes_on()


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Mortal]:
    """Nobody is attached."""
    made = Mortal(tmp_path)
    yield made
    made.rig.down()


# The program that it says it is, until it is to do something.
USELESS = """#!/bin/sh
[ "$1" = --version ] && exec {} --version
exit 1
"""


def test_an_upgrade_that_failed_is_told_by_the_successor(quiet: Mortal, tmp_path: Path) -> None:
    before = settled(quiet.rig, 2)
    program = tmp_path / "useless"
    program.write_text(USELESS.format(native("neat-replica")))
    program.chmod(0o755)
    quiet.die("hear", LIB.NEAT_MSG_ERROR)
    done = quiet.rig.cli("upgrade", "--replica-bin", str(program))
    assert done.returncode == 1 and "failed before it was ready" in done.stderr, done.stderr
    assert not quiet.order.exists(), "neatd did not die"
    assert quiet.rig.log().count("upgrade to ") == 1, "it was not begun again"
    assert [r["pid"] for r in settled(quiet.rig, 2)] == [r["pid"] for r in before]
    assert quiet.rig.cli("upgrade").returncode == 0


def test_neatd_dies_while_it_takes_an_order_to_drain_back(quiet: Mortal) -> None:
    """The keeper has forgotten it, the replica has not, and would end with its last connection."""
    rig = quiet.rig
    before = settled(rig, 2)
    pipe = subprocess.PIPE
    with rig.world.start(sys.executable, "-c", HOLD, stdout=pipe, stdin=pipe) as held:
        assert held.stdin and held.stdout

        def tell(order: str, answer: str) -> None:
            assert held.stdin and held.stdout
            held.stdin.write(order + "\n")
            held.stdin.flush()
            assert held.stdout.readline() == answer

        assert held.stdout.readline() == "ready\n"
        tell("connect", "connected\n")
        assert rig.cli("scale", "1").returncode == 0
        quiet.die("told", NOTHING)
        with suppress(InstanceError):  # neatd hangs up
            ask(rig.path, {"cmd": "scale", "replicas": 2})
        assert not quiet.order.exists(), "neatd did not die"
        settled(rig, 2)
        # Answered by each replica, which has heard by then what was said before.
        assert rig.cli("filter", "flush").returncode == 0
        tell("check", "all alive\n")
        held.communicate("end\n", timeout=60)
    busy = [{"connections": 1}]
    wait_until(
        lambda: not any(r["connections"] for r in rig.status().get("replicas", busy)), "all ended"
    )
    assert rig.cli("filter", "flush").returncode == 0  # ... and has seen that it is idle
    assert [r["pid"] for r in settled(rig, 2)] == [r["pid"] for r in before]


@pytest.fixture
def restless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    made = Mortal(tmp_path_factory.mktemp("restless"), 2, "--rerandomize", "1")
    yield made
    made.rig.down()


def test_new_layouts_whose_neatd_dies(restless: Mortal) -> None:
    rig = restless.rig
    churn = Churn(rig.world, rig.world, free_port(), log=rig.evidence)
    steps = [("hear", NOTHING, i) for i in range(1, 5)] + [("hear", LIB.NEAT_MSG_R_READY, 1)]
    for step in steps:
        before = rig.epochs()
        restless.die(*step)
        wait_until(lambda: not restless.order.exists(), "neatd dies")
        wait_until(lambda b=before: sum(rig.epochs()) > sum(b), "one was replaced")  # type: ignore[misc]
        churn.goes_on()
    churn.close()
    done = rig.cli("upgrade")
    assert done.returncode == 0 and "2 replicas replaced" in done.stderr, done.stderr
