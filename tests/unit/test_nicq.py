"""A queue pair and both its ends: nic/queue.c, stack/nicq.c, and ip's end (components/frameq.c)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cffi
import pytest

from .library import build, declarations

ENTRIES = 512  # NEAT_QP_ENTRIES
TX, RX = 0, 1
TAIL, HEAD = 0, 1
WILD = [ENTRIES + 20, 2**63, 2**64 - ENTRIES]

ffi = cffi.FFI()
ffi.cdef("struct link;\n" + declarations("nicq_lib.c"))


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("nicq") / "nicq.so"
    parts = ("nic/queue.c", "stack/nicq.c", "stack/main_queue.c", "components/frameq.c")
    rooms = ("abi", "stack", "components", "nic")
    # What is never called here is never looked for.
    return ffi.dlopen(build(out, "nicq_lib.c", parts, rooms), ffi.RTLD_LAZY)


@pytest.fixture
def link(lib: Any) -> Iterator[Any]:
    """The nic and a replica, with some frames behind them."""
    made = lib.link_new()
    lib.link_nic(made)
    lib.link_replica(made)
    for _ in range(3):
        assert exchanges(lib, made)
    yield made
    lib.link_free(made)


def exchanges(lib: Any, link: Any) -> bool:
    """A frame each way arrives."""
    sent, delivered = lib.link_send(link), lib.link_deliver(link)
    return bool(sent and delivered and lib.link_sent(link) == 1 and lib.link_received(link) == 1)


@pytest.mark.parametrize("value", WILD)
def test_a_replica_goes_on_after_it_overwrote_where_it_sends(
    lib: Any, link: Any, value: int
) -> None:
    lib.link_overwrite(link, TX, TAIL, value)
    assert lib.link_pending(link), "who was refused tries again"
    assert exchanges(lib, link)


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("waiting", [0, 3])
@pytest.mark.parametrize(("ring", "word"), [(TX, HEAD), (RX, HEAD), (RX, TAIL)])
def test_both_go_on_after_the_replica_overwrote_where_they_are(
    lib: Any, link: Any, value: int, waiting: int, ring: int, word: int
) -> None:
    """What was under way may be lost, and a frame each way."""
    for _ in range(waiting):
        assert lib.link_send(link) and lib.link_deliver(link)
    lib.link_overwrite(link, ring, word, value)
    exchanges(lib, link)
    lib.link_received(link)
    assert exchanges(lib, link)


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize(("ring", "word"), [(TX, TAIL), (TX, HEAD), (RX, HEAD), (RX, TAIL)])
@pytest.mark.parametrize("restarted", [{"replica"}, {"nic"}, {"nic", "replica"}])
def test_a_successor_does_not_inherit_nonsense(
    lib: Any, link: Any, value: int, ring: int, word: int, restarted: set[str]
) -> None:
    """Whatever was overwritten; a frame may be lost meanwhile."""
    lib.link_overwrite(link, ring, word, value)
    if "nic" in restarted:
        lib.link_nic(link)
    if "replica" in restarted:
        lib.link_fence(link)
        lib.link_replica(link)
    exchanges(lib, link)
    assert exchanges(lib, link)


def test_ip_is_woken_at_every_step_at_which_it_may_wait(lib: Any, link: Any) -> None:
    """It fills the ring and waits for more than one place; the nic's turn may end anywhere."""
    lib.link_ip(link)
    while lib.link_ip_put(link):
        pass
    while not lib.link_ip_room(link):
        lib.link_sleep(link)
        assert lib.link_take(link)
        assert lib.link_wakes(link)
    lib.link_sleep(link)
    assert lib.link_take(link)
    assert not lib.link_wakes(link), "nobody waits for more"


def test_a_frame_that_waits_for_room_is_shown_again(lib: Any, link: Any) -> None:
    """It holds up what comes behind it, and while there is no room nobody spins for it."""
    while lib.link_send(link):
        pass
    assert lib.link_deliver(link) and lib.link_deliver(link)
    lib.link_refuse(link, 1)
    assert lib.link_received(link) == 0
    assert not lib.link_pending(link)
    lib.link_sleep(link)
    assert lib.link_take(link) and lib.link_wakes(link)
    assert lib.link_pending(link)
    lib.link_refuse(link, 0)
    assert lib.link_received(link) == 2
    lib.link_sent(link)
    assert exchanges(lib, link)


def test_a_nic_that_takes_over_wakes_once_whatever_the_word_says(lib: Any, link: Any) -> None:
    """Its predecessor may have taken the word of a sleeper, and died before it woke him."""
    lib.link_wakes(link)
    lib.link_nic(link)
    assert lib.link_wakes(link)
    assert not lib.link_wakes(link)
