"""The shared-memory primitives: payload positions (bytering.h) and command rings (ring.h)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neatsock import abi, instance

ROOT = Path(__file__).resolve().parents[2]
CMD_ENTRIES = 4096

CDEF = """
void *seg_new(void);
void seg_free(void *seg);
uint64_t ring_write(void *, uint32_t, int, uint64_t, uint64_t, uint64_t, const uint8_t *, uint32_t);
void ring_read(void *, uint32_t, int, uint64_t, uint64_t, uint8_t *, uint32_t);
uint32_t ring_log2(uint64_t, int);
uint32_t ring_max(int);
int span_inside(void *, uint32_t, int, uint64_t, uint64_t, uint32_t);
void *channel_new(void);
int channel_push(void *, uint64_t);
uint32_t channel_ready(void *);
uint64_t channel_pop(void *);
void channel_set(void *, uint64_t, uint64_t);
"""

ffi = cffi.FFI()
ffi.cdef(CDEF)


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("abi") / "abi_lib.so"
    source = ROOT / "tests/unit/abi_lib.c"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    command = ["gcc", *flags, "-fPIC", "-shared", f"-I{ROOT}/replicas/abi", str(source)]
    subprocess.run([*command, "-o", str(out)], check=True)
    return ffi.dlopen(str(out))


@pytest.fixture(scope="module")
def seg(lib: Any) -> Iterator[Any]:
    memory = lib.seg_new()
    assert memory != ffi.NULL
    yield memory
    lib.seg_free(memory)


class Stream:
    """One direction of one slot, beside the bytes it must hold."""

    def __init__(self, lib: Any, seg: Any, slot: int, direction: int) -> None:
        self.lib, self.seg, self.slot, self.direction = lib, seg, slot, direction
        self.word, self.una, self.tail = 11, 0, 0
        self.sent = bytearray()
        self.words: list[tuple[int, int]] = []

    def write(self, length: int) -> None:
        most = self.lib.ring_max(self.direction)
        length = min(length, most - (self.tail - self.una))
        data = bytes((self.tail + i) * 31 % 251 for i in range(length))
        self.words.append((self.word, self.tail))
        self.word = self.lib.ring_write(
            self.seg, self.slot, self.direction, self.word, self.una, self.tail, data, length
        )
        self.sent += data
        self.tail += length

    def read(self, word: int, start: int, stop: int) -> bytes:
        out = ffi.new("uint8_t[]", max(1, stop - start))
        self.lib.ring_read(self.seg, self.slot, self.direction, word, start, out, stop - start)
        return bytes(ffi.buffer(out, stop - start))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "consume"]),
        st.sampled_from([1, 100, 2000, 2048, 5000, 70000, 300000]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, slot=st.integers(1, 65535), direction=st.integers(0, 1))
def test_live_bytes_survive_growth(
    lib: Any, seg: Any, steps: list[tuple[str, int]], slot: int, direction: int
) -> None:
    """Whatever the sizes, [una, tail) reads back what was written, whole ring or one byte."""
    stream = Stream(lib, seg, slot, direction)
    for action, size in steps:
        if action == "write":
            stream.write(size)
        else:
            stream.una = min(stream.tail, stream.una + size)
        assert stream.read(stream.word, stream.una, stream.tail) == stream.sent[stream.una :]


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.sampled_from([1, 500, 1500, 40000, 200000]), min_size=1, max_size=8))
def test_reader_with_an_old_word_reads_the_right_bytes(
    lib: Any, seg: Any, sizes: list[int]
) -> None:
    """A reader may hold the word that was current when it saw the head, while the ring grows."""
    stream = Stream(lib, seg, 7, 0)
    for size in sizes:
        stream.write(size)
    for word, head in stream.words:
        if head:
            assert stream.read(word, 0, head) == stream.sent[:head]


@settings(deadline=None, max_examples=100)
@given(
    before=st.lists(st.tuples(st.integers(1, 70000), st.integers(0, 70000)), max_size=6),
    sizes=st.lists(st.sampled_from([500, 40000, 65536, 200000, 700000]), min_size=1, max_size=8),
)
def test_unconsumed_bytes_stay_where_an_old_word_finds_them(
    lib: Any, seg: Any, before: list[tuple[int, int]], sizes: list[int]
) -> None:
    """A frame of `lo` refers to ring memory, and a reader may be preempted while it copies:
    until they are consumed, bytes stay in place although the ring wrapped, grew and was filled."""
    stream = Stream(lib, seg, 11, 1)
    for length, consumed in before:
        stream.write(length)
        stream.una = min(stream.tail, stream.una + consumed)
    seen = []
    for size in sizes:
        seen.append((stream.word, stream.tail))
        stream.write(size)
    for word, head in seen:
        assert stream.read(word, stream.una, head) == stream.sent[stream.una : head]


def test_an_idle_small_ring_is_one_page_and_shrinks_back(lib: Any, seg: Any) -> None:
    stream = Stream(lib, seg, 9, 1)
    stream.write(2048)
    assert lib.ring_log2(stream.word, stream.direction) == 11
    stream.una = stream.tail
    stream.write(2049)
    assert lib.ring_log2(stream.word, stream.direction) == 16
    stream.una = stream.tail
    stream.write(64)
    assert lib.ring_log2(stream.word, stream.direction) == 11


@settings(max_examples=300)
@given(
    word=st.integers(0, 2**64 - 1),
    off=st.integers(0, 2**64 - 1),
    length=st.integers(0, 2**32 - 1),
    slot=st.integers(0, 65535),
    direction=st.integers(0, 1),
)
def test_a_hostile_word_stays_inside_its_slot(
    lib: Any, seg: Any, word: int, off: int, length: int, slot: int, direction: int
) -> None:
    assert lib.span_inside(seg, slot, direction, word, off, length)


def test_command_ring_is_a_queue_that_refuses_when_full(lib: Any) -> None:
    channel = lib.channel_new()
    for start in (0, 2**64 - 3):
        lib.channel_set(channel, start, start)
        for i in range(CMD_ENTRIES):
            assert lib.channel_push(channel, i) == 1
        assert lib.channel_push(channel, 0) == 0
        assert lib.channel_ready(channel) == CMD_ENTRIES
        assert [lib.channel_pop(channel) for _ in range(CMD_ENTRIES)] == list(range(CMD_ENTRIES))
        assert lib.channel_ready(channel) == 0


@given(head=st.integers(0, 2**64 - 1), ahead=st.integers(CMD_ENTRIES + 1, 2**64 - 1))
def test_a_tail_out_of_reach_is_no_work(lib: Any, head: int, ahead: int) -> None:
    channel = lib.channel_new()
    lib.channel_set(channel, head, (head + ahead) % 2**64)
    assert lib.channel_ready(channel) == 0


def test_command_line_speaks_the_version_of_the_header() -> None:
    """neatsock/instance.py repeats these numbers, to start without cffi."""
    assert (instance.MAGIC, instance.ABI_VERSION) == (abi.MAGIC, abi.VERSION)
    assert instance.HEADER.size == abi.HEADER_SIZE
    repeated = (instance.MSG_CLI, instance.MSG_CLI_REPLY, instance.MSG_ERROR, instance.REPLICAS_MAX)
    of_header = ("NEAT_MSG_CLI", "NEAT_MSG_CLI_REPLY", "NEAT_MSG_ERROR", "NEAT_REPLICAS_MAX")
    assert repeated == tuple(getattr(abi.lib, name) for name in of_header)
