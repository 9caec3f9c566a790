"""Signals, exec and pthread_cancel() while a thread is in a call: what Linux does, we do."""

from __future__ import annotations

import pytest

from ..worlds import KERNEL
from .rig import Rig, build


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("interrupted"), "interrupted"))


def test_handlers_with_sa_restart_end_no_call(rig: Rig, program: str) -> None:
    """signal(7): accept(), recv() and recv() of a datagram go on, unless they have a timeout.

    Whatever handlers there are, that of the signal counts.
    """
    expected = KERNEL.run(program, "restart").stdout
    assert "SA_RESTART\naccept: fine\n" in expected
    assert "no flags\naccept: EINTR\n" in expected
    assert rig.world.run(program, "restart").stdout == expected


def test_handlers_end_a_call_with_a_timeout(rig: Rig, program: str) -> None:
    """signal(7), SO_RCVTIMEO."""
    expected = KERNEL.run(program, "timeouts").stdout
    assert expected.count("EINTR") == 6
    assert rig.world.run(program, "timeouts").stdout == expected


def test_the_first_handler_is_installed_while_poll_sleeps(rig: Rig, program: str) -> None:
    """signal(7): with SA_RESTART, too, it ends poll(), select() and epoll_wait()."""
    expected = KERNEL.run(program, "first-handlers").stdout
    assert expected.count("EINTR") == 6
    assert rig.world.run(program, "first-handlers", timeout=150).stdout == expected


def same(rig: Rig, program: str, what: str) -> str:
    expected = KERNEL.run(program, what).stdout
    assert rig.world.run(program, what, timeout=30).stdout == expected
    return expected


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_exec_while_the_main_thread_sends(rig1: Rig, program: str, kind: str) -> None:
    """The new image has the number of the thread that held the socket's lock (contract L1)."""
    assert same(rig1, program, f"exec-{kind}") == "all images have sent\n"


def test_first_polls_at_once(rig1: Rig, program: str) -> None:
    """Of the eventfds that they make one stays; the numbers of the others are the program's."""
    assert same(rig1, program, "first-polls").endswith(": 0\n")


def test_cancelled_in_poll(rig1: Rig, program: str) -> None:
    """Nothing stays behind on a thread's stack; with kernel descriptors only it ends at once."""
    same(rig1, program, "cancel")


def test_a_handler_closes_a_descriptor(rig1: Rig, program: str) -> None:
    """It comes between lock and unlock of epoll_wait(), too."""
    assert same(rig1, program, "closes") == "closed\n"


def test_select_says_what_is_left_when_a_signal_ends_it(rig1: Rig, program: str) -> None:
    """Or a loop over EINTR would never be over (select(2), Linux)."""
    expected = "select: EINTR\nless is left: 1\n" * 2
    assert same(rig1, program, "select-left") == expected


def test_times_in_memory_that_cannot_be_written(rig1: Rig, program: str) -> None:
    """By number the kernel says what is left, if it can."""
    assert set(same(rig1, program, "constant-times").split()[1::2]) == {"fine"}
