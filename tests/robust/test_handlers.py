"""Signal handlers that use sockets, or leave calls by siglongjmp(): what Linux does, we do."""

from __future__ import annotations

import socket

import pytest

from ..worlds import KERNEL, World
from .rig import Rig, build


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("handlers"), "handlers"))


def say_the_same(world: World, program: str, *what: str) -> str:
    expected = KERNEL.run(program, *what, timeout=60).stdout
    assert world.run(program, *what, timeout=60).stdout == expected
    return expected


def test_a_handler_uses_the_sockets_of_its_program(rig1: Rig, program: str) -> None:
    """signal-safety(7), 1000 times a second: all kinds of calls, also on the same socket."""
    assert say_the_same(rig1.world, program, "busy") == "mask: empty\nall arrived\n"


def test_a_handler_waits_for_an_answer(rig: Rig, program: str) -> None:
    """In send(), poll() and epoll_wait() of its thread, on a stack of its own, or not."""
    assert say_the_same(rig.world, program, "nested") == "mask: empty\nall arrived\n"


def test_a_handler_forks(rig1: Rig, program: str) -> None:
    assert say_the_same(rig1.world, program, "forks") == "mask: empty\nall arrived\n"


def test_signals_keep_their_values_their_order_and_their_masks(rig1: Rig, program: str) -> None:
    """sigaction(2), sigqueue(3): 3,000 real-time signals, and the end of a child among them."""
    expected = "wrong: 0\nmask: empty\nall arrived\n"
    assert say_the_same(rig1.world, program, "values") == expected


def test_calls_are_left_by_siglongjmp(rig: Rig, program: str) -> None:
    """Time-outs by a timer, in threads, too, whose stacks are gone when the next event comes."""
    said = say_the_same(rig.world, program, "jumps")
    assert said.count("goes on") == 32 and said.endswith("mask: empty\n")


def test_connect_to_a_silent_host_is_left(rig1: Rig, program: str) -> None:
    """Of the kernel's: a listener with no room in its queue drops what comes (tcp(7))."""
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        said = say_the_same(rig1.world, program, "connects", str(full.getsockname()[1]))
    assert said == "mask: empty\nconnects\n"


def test_actions_are_reported_as_they_were_set(rig1: Rig, program: str) -> None:
    """sigaction(2), signal(2), sysv_signal(3), sigset(3), siginterrupt(3), SA_RESETHAND."""
    assert "sigset: hold\n" in say_the_same(rig1.world, program, "actions")


def test_signals_go_on_after_a_fault_was_caught(rig1: Rig, program: str) -> None:
    assert say_the_same(rig1.world, program, "faults") == "caught 3\nmask: empty\n"


@pytest.mark.parametrize("entries", ["silent", "none"])
def test_a_waiter_in_a_handler_keeps_no_event_from_others(
    rig1: Rig, program: str, entries: str
) -> None:
    expected = "the other one: 1\nthe one with the handler: -1\n"
    assert say_the_same(rig1.world, program, "sharing", entries) == expected
