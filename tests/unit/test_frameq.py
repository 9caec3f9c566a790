"""Queues between the components of a replica (replicas/components/frameq.c)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cffi
import pytest

from .library import build, declarations

LOWER, UPPER = 0, 1
TAIL, HEAD = 0, 1
NONE, SLEEPER, ANYWAY = 0, 1, 2  # ends_wake()
ENTRIES, ROOM = 128, 2  # FRAMEQ_ENTRIES, NEAT_QP_ROOM
FLAGS = [1, 2, 4, 16, 32]  # enum pkt_flags: what goes from one component to the next
LONGEST = 69632 - 128  # NEAT_QP_BUF less the headroom

ffi = cffi.FFI()
ffi.cdef("struct ends;\n" + declarations("frameq_lib.c"))


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("frameq") / "frameq.so"
    parts, rooms = ["components/frameq.c"], ("abi", "stack", "components")
    return ffi.dlopen(build(out, "frameq_lib.c", parts, rooms))


class Ends:
    def __init__(self, lib: Any) -> None:
        self.lib, self.e = lib, lib.ends_new()
        self.buffer = ffi.new("uint8_t[]", 1 << 17)

    def put(self, end: int, data: bytes, flags: int = 0, inward: bool = False) -> bool:
        return bool(self.lib.ends_put(self.e, end, data, len(data), flags, inward))

    def take(self, end: int, retire: bool = True) -> tuple[bytes, int, bool] | None:
        flags, inward = ffi.new("uint32_t *"), ffi.new("int *")
        n = self.lib.ends_take(self.e, end, self.buffer, len(self.buffer), flags, inward)
        if n < 0:
            return None
        if retire:
            self.lib.ends_retire(self.e, end)
        return bytes(ffi.buffer(self.buffer, n)), int(flags[0]), bool(inward[0])


@pytest.fixture
def ends(lib: Any) -> Iterator[Ends]:
    made = Ends(lib)
    lib.ends_open(made.e, LOWER, 1)
    lib.ends_open(made.e, UPPER, 1)
    yield made
    lib.ends_free(made.e)


@pytest.mark.parametrize("end", [LOWER, UPPER])
def test_frames_arrive_whole_and_in_order(ends: Ends, end: int) -> None:
    rng = random.Random(end)
    for _ in range(10):  # around the ring several times
        sent = []
        for _ in range(rng.randrange(1, 100)):
            frame = rng.randbytes(rng.choice([0, 1, 40, 1500, LONGEST]))
            flags, inward = sum(f for f in FLAGS if rng.random() < 0.5), rng.random() < 0.5
            assert ends.put(end, frame, flags, inward)
            sent.append((frame, flags, inward))
        assert [ends.take(1 - end) for _ in sent] == sent
        assert ends.take(1 - end) is None
        assert ends.take(end) is None


def test_a_full_queue_refuses(ends: Ends) -> None:
    for i in range(ENTRIES):
        assert ends.lib.ends_room(ends.e, LOWER) == (i <= ENTRIES - ROOM)
        assert ends.put(LOWER, bytes([i]))
    assert not ends.put(LOWER, b"one too many")
    assert [ends.take(UPPER) for _ in range(ENTRIES)] == [
        (bytes([i]), 0, False) for i in range(ENTRIES)
    ]
    assert ends.put(LOWER, b"again")


def test_a_frame_that_is_too_long_is_lost(ends: Ends) -> None:
    assert ends.put(LOWER, bytes(LONGEST + 1))
    assert ends.take(UPPER) is None


def test_a_frame_stays_until_it_is_retired(ends: Ends) -> None:
    """What a component that died was working on is shown to its successor."""
    ends.put(LOWER, b"first")
    ends.put(LOWER, b"second")
    assert ends.take(UPPER, retire=False) == (b"first", 0, False)
    ends.lib.ends_open(ends.e, UPPER, 2)
    assert ends.take(UPPER) == (b"first", 0, False)
    assert ends.take(UPPER) == (b"second", 0, False)


def test_frames_of_an_ended_incarnation_are_dropped(ends: Ends) -> None:
    """Once its successor is there (W11); until then they are delivered."""
    ends.put(LOWER, b"delivered")
    assert ends.take(UPPER) == (b"delivered", 0, False)
    ends.put(LOWER, b"fenced")
    ends.put(LOWER, b"fenced, too")
    ends.lib.ends_open(ends.e, LOWER, 2)
    ends.put(LOWER, b"new")
    assert ends.take(UPPER) == (b"new", 0, False)
    assert ends.lib.ends_fenced(ends.e, UPPER) == 2
    ends.put(UPPER, b"the other way nothing is lost")
    assert ends.take(LOWER) == (b"the other way nothing is lost", 0, False)


def test_wakes(ends: Ends) -> None:
    """Owed after a frame, after room in a queue that was full, and after a start.

    Then whatever the other end's word says: a predecessor may have taken it.
    """

    def owed() -> tuple[int, int]:
        return ends.lib.ends_wake(ends.e, LOWER), ends.lib.ends_wake(ends.e, UPPER)

    assert owed() == (ANYWAY, ANYWAY)
    assert owed() == (NONE, NONE)
    for _ in range(ENTRIES):
        ends.put(LOWER, b"x")
    assert owed() == (SLEEPER, NONE)
    for _ in range(ROOM):  # who waits for room may have stopped at any of these
        ends.take(UPPER)
        assert owed() == (NONE, SLEEPER)
    ends.take(UPPER)
    assert owed() == (NONE, NONE)
    ends.lib.ends_open(ends.e, LOWER, 2)
    ends.put(LOWER, b"x")
    assert owed() == (ANYWAY, NONE)


def test_a_frame_waits_for_room_elsewhere(ends: Ends) -> None:
    """Here for room in the queue back, as the filter waits for ip's."""
    lib = ends.lib
    assert not lib.ends_pending(ends.e, UPPER)
    ends.put(LOWER, b"x")
    assert lib.ends_pending(ends.e, UPPER)
    for _ in range(ENTRIES):
        ends.put(UPPER, b"y")
    lib.ends_wait_for(ends.e, UPPER, UPPER)
    assert not lib.ends_pending(ends.e, UPPER)
    for _ in range(ROOM):
        ends.take(LOWER)
    assert lib.ends_pending(ends.e, UPPER)


def test_what_has_left_of_a_frame_is_known_until_it_is_gone(ends: Ends) -> None:
    """Retired, or of an incarnation that has ended: the next one begins at its beginning."""
    for frame in (b"first", b"second", b"fenced"):
        ends.put(LOWER, frame)
    assert [ends.lib.ends_sent(ends.e, UPPER, 8) for _ in range(3)] == [0, 8, 16]
    ends.take(UPPER)
    assert [ends.lib.ends_sent(ends.e, UPPER, 8) for _ in range(2)] == [0, 8]
    ends.lib.ends_open(ends.e, LOWER, 2)
    ends.put(LOWER, b"new")
    assert ends.lib.ends_sent(ends.e, UPPER, 0) == 0


@pytest.mark.parametrize("tail", [ENTRIES + 1, 2**63, 2**64 - 1])
def test_a_tail_that_makes_no_sense_is_no_frame(ends: Ends, tail: int) -> None:
    ends.lib.ends_lie(ends.e, UPPER, tail, 10)
    assert ends.take(UPPER) is None


@pytest.mark.parametrize("repairer", [LOWER, UPPER])
def test_a_successor_mends_indices_that_fit_no_more(ends: Ends, repairer: int) -> None:
    """Of the lower end's ring, whichever end is started again."""
    ends.put(LOWER, b"lost")
    ends.lib.ends_lie(ends.e, UPPER, 2**40, 10)
    ends.lib.ends_open(ends.e, repairer, 2)
    assert ends.take(UPPER) is None
    assert ends.put(LOWER, b"works")
    assert ends.take(UPPER) == (b"works", 0, False)


@pytest.mark.parametrize("value", [2**40, 2**63, 2**64 - 2 * ENTRIES])
@pytest.mark.parametrize("waiting", [0, 3])
@pytest.mark.parametrize("word", [TAIL, HEAD])
def test_both_ends_go_on_after_an_index_was_overwritten(
    ends: Ends, word: int, waiting: int, value: int
) -> None:
    """What was under way may be lost, and a frame."""
    for _ in range(waiting):
        assert ends.put(LOWER, b"lost")
    ends.lib.ends_overwrite(ends.e, UPPER, word, value)
    assert ends.lib.ends_room(ends.e, LOWER)
    assert ends.put(LOWER, b"may be lost")
    while ends.take(UPPER):
        pass
    assert ends.put(LOWER, b"works")
    assert ends.take(UPPER) == (b"works", 0, False)


@pytest.mark.parametrize("length", [LONGEST + 1, 69632, 2**31, 2**32 - 1])
def test_a_length_that_makes_no_sense_is_an_empty_frame(ends: Ends, length: int) -> None:
    ends.put(LOWER, b"x")
    ends.lib.ends_lie(ends.e, UPPER, 1, length)
    assert ends.take(UPPER) == (b"", 0, False)
