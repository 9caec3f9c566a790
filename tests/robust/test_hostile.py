"""A program that writes into all it maps and to the control socket disturbs nobody else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ..long import TIMES
from .rig import Bystander, Rig, wait_until

SECONDS = 8 * TIMES
HOSTILE = Path(__file__).with_name("hostile.py")
HOSTILE_CHANNELS = HOSTILE.with_name("hostile_channels.py")
HOSTILE_S = 2 * TIMES
LIFE_S = 3.0  # of one hostile program, if it does not kill itself earlier


def test_other_applications_see_no_error(rig: Rig, bystander: Bystander) -> None:
    """`bystander` also checks that no daemon and no replica was restarted."""
    end, seed, ends = time.monotonic() + SECONDS / 2, 0, []
    while time.monotonic() < end or seed < 2:
        seed += 1
        hostile = rig.world.start(
            sys.executable,
            str(HOSTILE),
            str(seed),
            str(LIFE_S),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _, err = hostile.communicate(timeout=LIFE_S + 2)
        except subprocess.TimeoutExpired:  # it ruined the words it waits for: its own affair
            hostile.kill()
            _, err = hostile.communicate()
        ends.append(hostile.returncode)
        assert "no shared memory" not in (err or ""), err
        bystander.lively()
    again = Bystander(rig.world)  # a new program is served as ever
    again.close()
    assert ends
    try:
        wait_until(lambda: len(rig.status()["apps"]) == 1, "only the bystander is left")
    except AssertionError as err:
        raise AssertionError(rig.evidence()) from err
    replicas = [replica["pid"] for replica in rig.status()["replicas"]]
    wait_until(lambda: {memory(pid) for pid in replicas} == {1}, "replicas unmap what others had")


def test_processes_that_seem_to_end_are_no_hang(tmp_path: Path) -> None:
    """A program's own memory makes the replica work, but never so long that the keeper ends it."""
    rig = Rig(tmp_path, 1, "--hang", "0.1")
    try:
        bystander, before = Bystander(rig.world, rig.evidence), rig.pids()
        program = [sys.executable, str(HOSTILE_CHANNELS), str(HOSTILE_S)]
        hostile = rig.world.start(*program, stderr=subprocess.PIPE)
        _, err = hostile.communicate(timeout=60)
        assert hostile.returncode == 0, err
        bystander.lively()
        assert not bystander.broken
        assert rig.pids() == before, rig.evidence()
        bystander.close()
    finally:
        rig.down()


def memory(replica: int) -> int:
    """How many applications a replica has memory of."""
    return Path(f"/proc/{replica}/maps").read_text().count("/memfd:neat-seg_pub")
