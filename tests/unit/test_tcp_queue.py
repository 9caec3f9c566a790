"""What the tcp component sends while the filter is behind (replicas/components/tcp_queue.c)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = 128  # FRAMEQ_ENTRIES
SYNS = 1000

ffi = cffi.FFI()
source = (ROOT / "tests/unit/tcp_queue_lib.c").read_text()
block = source.split("what the tests drive ---- */")[1].split("/* ---- end")[0]
ffi.cdef("struct way;\n" + "\n".join(re.findall(r"^[a-z].*?;$", block, re.M | re.S)))


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("tcp_queue") / "tcp_queue.so"
    rooms = [ROOT / "replicas/components" / f"{name}.c" for name in ("frameq", "tcp_queue")]
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    include = [f"-I{ROOT}/replicas/{room}" for room in ("abi", "stack", "components")]
    files = [str(ROOT / "tests/unit/tcp_queue_lib.c"), *map(str, rooms)]
    subprocess.run(["gcc", *flags, *include, *files, "-o", str(out)], check=True)
    # What is never called here is never looked for.
    return ffi.dlopen(str(out), ffi.RTLD_LAZY)


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
