"""Threads use descriptors that other threads close at that moment: the kernel, then us."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ..long import TIMES
from ..worlds import KERNEL, World
from .rig import Bystander, Rig, build


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("closing")
    for name in ("accept_race", "close_race", "closed_bind", "dup_race", "eventfd_race"):
        build(directory, name)
    return directory


def last_word(world: World, *args: str) -> tuple[str, int]:
    """Of a program that found nothing wrong: ("ends", 5)."""
    process = world.start(*args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=60 + 10 * TIMES)
    assert process.returncode == 0, out
    what, number = out.splitlines()[-1].split()
    return what, int(number)


def test_no_byte_of_another_connection(rig: Rig, bystander: Bystander, programs: Path) -> None:
    """recv() and send() in one thread, close() in the next, connect() in a third."""
    race = str(programs / "close_race")
    assert last_word(KERNEL, race, "1")[0] == "ends"
    what, ends = last_word(rig.world, race, str(3 * TIMES))
    assert what == "ends" and ends > 20
    bystander.lively()


def test_dup2_of_what_is_being_closed(rig: Rig, programs: Path) -> None:
    """dup(2): EBADF leaves the other descriptor as it was."""
    race = str(programs / "dup_race")
    assert last_word(KERNEL, race, "100")[0] == "done"
    assert last_word(rig.world, race, str(1500 * TIMES))[0] == "done"


def test_a_slow_accept_does_not_take_the_next_connection_in_a_slot(
    rig: Rig, programs: Path
) -> None:
    """It would end it in the name of the one before, which ends nothing."""
    race = str(programs / "accept_race")
    assert last_word(KERNEL, race) == ("ends", 32)
    assert last_word(rig.world, race) == ("ends", 32)


def test_a_socket_that_becomes_the_kernels_takes_no_other_along(rig: Rig, programs: Path) -> None:
    """bind() of a datagram socket that another thread closes, to an address that is not ours."""
    assert last_word(rig.world, str(programs / "closed_bind")) == ("connected", 600)


def test_nothing_takes_the_place_of_what_the_library_opens(rig: Rig, programs: Path) -> None:
    """A number closed once too often was free, for the program; poll() opens something then."""
    race = str(programs / "eventfd_race")
    assert last_word(KERNEL, race, "30") == ("bound", 30)
    assert last_word(rig.world, race, "200") == ("bound", 200)
