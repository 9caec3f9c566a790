"""pthread_cancel() of a thread that makes calls on sockets: what Linux does, we do."""

from __future__ import annotations

import pytest

from ..worlds import KERNEL
from .rig import Rig, build


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("cancelled"), "cancelled"))


def test_a_cancelled_thread_leaves_no_call_half_done(rig: Rig, program: str) -> None:
    """pthreads(7): calls that are no cancellation points are finished, and nothing stays locked.

    Cleanup handlers find the thread outside of the call: handlers of signals run at once.
    """
    expected = KERNEL.run(program).stdout
    assert expected.count(", cancelled, handlers run 1\n") == 14
    assert "waits for datagrams: cancelled, handlers run 1\n" in expected
    assert "system: cancelled, SIGINT as before\n" in expected
    assert "child: 42\n" in expected
    assert expected.endswith("execve: done\n")
    assert rig.world.run(program, timeout=600).stdout == expected
