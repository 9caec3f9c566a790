"""accept() when words of its queue were overwritten, or its listener is another one's by now."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ..worlds import KERNEL, World
from .rig import Bystander, Rig, build


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("accept")
    for name in ("accept_head", "listener_race"):
        build(directory, name)
    return directory


def last_line(world: World, program: Path) -> str:
    """Of a program that found nothing wrong."""
    process = world.start(str(program), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return str(out.splitlines()[-1])


def test_an_overwritten_head_makes_no_listener_deaf(
    rig: Rig, bystander: Bystander, programs: Path
) -> None:
    program = programs / "accept_head"
    assert last_line(KERNEL, program) == "accepted 128"
    assert last_line(rig.world, program) == "accepted 128"
    bystander.lively()


def test_a_slow_accept_takes_nothing_of_the_next_listener_in_its_slot(
    rig: Rig, programs: Path
) -> None:
    assert last_line(rig.world, programs / "listener_race") == "accepted 32"
