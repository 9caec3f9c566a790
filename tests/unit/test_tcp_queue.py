"""What the tcp component sends while the filter is behind (replicas/components/tcp_queue.c)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cffi
import pytest

from .library import build, declarations

ENTRIES = 128  # FRAMEQ_ENTRIES
SYNS = 1000

ffi = cffi.FFI()
ffi.cdef("struct way;\n" + declarations("tcp_queue_lib.c"))


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("tcp_queue") / "tcp_queue.so"
    parts = ("components/frameq.c", "components/tcp_queue.c")
    rooms = ("abi", "stack", "components")
    # What is never called here is never looked for.
    return ffi.dlopen(build(out, "tcp_queue_lib.c", parts, rooms), ffi.RTLD_LAZY)


@pytest.fixture
def way(lib: Any) -> Iterator[Any]:
    made = lib.way_new()
    yield made
    lib.way_free(made)


def take_all(lib: Any, way: Any) -> list[int]:
    taken = []
    while (number := lib.way_take(way)) >= 0:
        taken.append(number)
    assert number == -1
    return taken


def test_what_has_no_payload_is_never_refused(lib: Any, way: Any) -> None:
    """A SYN, an answer to one or a reset that is lost here waits for a timer of a second."""
    assert all(lib.way_send(way, i, 0) for i in range(SYNS))
    got = []
    while taken := take_all(lib, way):
        assert len(taken) <= ENTRIES
        got += taken
        assert lib.way_pending(way) == (len(got) < SYNS), "what was kept is work as soon as it fits"
        lib.way_receive(way)
    assert got == list(range(SYNS))


def test_payload_waits_in_its_ring_and_overtakes_nothing(lib: Any, way: Any) -> None:
    for i in range(ENTRIES):
        assert lib.way_send(way, i, 100)
    assert not lib.way_send(way, 999, 100)
    assert lib.way_send(way, ENTRIES, 0)
    assert lib.way_take(way) == 0
    assert lib.way_send(way, ENTRIES + 1, 0)
    assert not lib.way_send(way, 999, 100), "the last one is behind the queue"
    assert take_all(lib, way) == list(range(1, ENTRIES + 1))
    assert lib.way_send(way, ENTRIES + 2, 100)
    assert take_all(lib, way) == [ENTRIES + 1, ENTRIES + 2]


def test_what_is_kept_has_an_end(lib: Any, way: Any) -> None:
    sent = sum(lib.way_send(way, i, 0) for i in range(100_000))
    assert SYNS < sent < 100_000
    got = []
    while taken := take_all(lib, way):
        got += taken
        lib.way_receive(way)
    assert got == list(range(sent))
