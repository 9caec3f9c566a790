"""What can go wrong inside a replica, done to a running one from outside (/proc/PID/mem, signals).

Each kind is a function (target, dice) -> what was done, for a person. Nobody but that process is
written to: shared memory is written through the replica's own mapping, as its own bug would.
"""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.elf import functions
from neatsock.abi import ffi

PAGE = 4096
TCB, LINE = 512, 64  # replicas/stack/arena.h
TCB_STATE = 56  # of struct tcb_essential: low byte 0 = free
HIGH_MARKS = 32  # of struct arena_header: tcb, request, time_wait, holes
HOLES = struct.calcsize("<IIQ122QIIQ122Q4QII6I")
# On the way of every byte, or of every connection: what is broken here is found out at once.
HOT = """
api_commands channel_commands slot_look tcp_kick tcp_output ip_output lo_output lo_deliver ip_input
tcp_segment tcp_ack tcp_receive tcp_deliver tcp_advance_una tcp_notify_room sock_notify sock_status
channels_post api_flush flow_find flow_insert timer_set timer_del timer_run tcp_arm tcp_arm_rtx
tcp_send_ack tcp_connect tcp_close tcp_queue_fin tcp_fin_received tcp_done tcp_established tcb_alloc
tcb_free sock_accept sock_accept_push sock_detach slot_take slot_free tcp_time_wait refresh_hints
link_input nicq_receive nicq_transmit replica_work tcp_cc_acked tcp_rtt_sample ranges_add
""".split()
RELEASES = """
tcb_free tcb_holes_free slot_free sock_detach tcp_request_free tcp_tw_free flow_remove timer_del
tcp_done tcp_detach_if_idle
""".split()
LOOP = bytes.fromhex("ebfe")  # jmp .
NULL_CALL = bytes.fromhex("31c0ffd0")  # xor %eax,%eax; call *%rax
RETURN = bytes.fromhex("c3")
DEADLY = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class GoneError(Exception):
    """The process died before anything was done to it."""


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps."""

    begin: int
    end: int
    perms: str
    offset: int
    name: str


_functions = cache(functions)


class Target:
    """A replica process, opened for writing into it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self.mem = os.open(f"/proc/{pid}/mem", os.O_RDWR)
            self.maps = [_mapping(x) for x in Path(f"/proc/{pid}/maps").read_text().splitlines()]
            self.program = Path(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
        except OSError as err:
            raise GoneError(str(err)) from err

    def close(self) -> None:
        os.close(self.mem)

    def read(self, at: int, size: int) -> bytes:
        try:
            return os.pread(self.mem, size, at)
        except OSError as err:
            raise GoneError(f"{at:#x}: {err}") from err

    def write(self, at: int, data: bytes) -> None:
        try:
            os.pwrite(self.mem, data, at)
        except OSError as err:
            raise GoneError(f"{at:#x}: {err}") from err

    def named(self, name: str) -> list[Mapping]:
        """Writable mappings of the shared object `name`."""
        return [m for m in self.maps if m.name == f"/memfd:neat-{name}" and "w" in m.perms]

    def private(self) -> list[Mapping]:
        """Writable memory that is nobody else's, the stack not counted."""
        return [m for m in self.maps if m.perms.startswith("rw-p") and m.name != "[stack]"]

    def resident(self, mappings: list[Mapping]) -> list[int]:
        """Addresses of the pages that were touched."""
        found = []
        with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as pagemap:
            for m in mappings:
                count = (m.end - m.begin) // PAGE
                words = os.pread(pagemap.fileno(), count * 8, m.begin // PAGE * 8)
                present = enumerate(words[7::8])  # bit 63 of each word
                found += [m.begin + i * PAGE for i, high in present if high & 0x80]
        return found

    def code(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """Load address, functions by name."""
        base = min(m.begin for m in self.maps if m.name == str(self.program))
        return base, _functions(self.program)

    def place(self, address: int) -> str:
        """For a person."""
        for m in self.maps:
            if m.begin <= address < m.end:
                return f"{Path(m.name).name or 'anonymous'}+{address - m.begin:#x}"
        return f"{address:#x}"


def _mapping(line: str) -> Mapping:
    span, perms, offset, _, _, *name = line.split(maxsplit=5)
    begin, _, end = span.partition("-")
    return Mapping(
        int(begin, 16),
        int(end, 16),
        perms,
        int(offset, 16),
        (name[0] if name else "").removesuffix(" (deleted)"),
    )


# ---- how ----


def _flip(t: Target, at: int, dice: random.Random) -> str:
    bit = dice.randrange(8)
    t.write(at, bytes([t.read(at, 1)[0] ^ 1 << bit]))
    return f"bit {bit} of {t.place(at)}"


def _wild(t: Target, at: int, dice: random.Random) -> str:
    data = dice.randbytes(dice.choice([8, 8, 16, 32, 64]))
    t.write(at & ~7, data)
    return f"{len(data)} bytes at {t.place(at & ~7)}: {data[:8].hex()}"


# ---- where ----


def _arena(t: Target, dice: random.Random) -> tuple[int, str]:
    """A byte of the arena's control structures."""
    base = t.named("arena")[0].begin
    counts = struct.unpack("<4I", t.read(base + 8, 16))
    highs = struct.unpack("<4I", t.read(base + HIGH_MARKS, 16))
    sizes = (TCB, LINE, LINE, HOLES)
    first = base + LINE
    records: list[tuple[int, int, str]] = []
    for size, count, high, name in zip(
        sizes, counts, highs, ("block", "request", "TIME_WAIT", "holes"), strict=True
    ):
        used = list(range(min(high, count, 4096)))
        if name == "block":
            used = [i for i in used if t.read(first + i * TCB + TCB_STATE, 1) != b"\0"] or used
        weight = 20 if name == "block" else 1
        if used:
            i = dice.choice(used)
            records += [(first + i * size, size, f"{name} {i}")] * weight
        first += count * size
    records += [(base, LINE, "header")] * 2
    begin, size, name = dice.choice(records)
    at = dice.randrange(size)
    return begin + at, f"{name}+{at}"


def _shared(t: Target, dice: random.Random) -> tuple[int, str]:
    """A word of what the replica shares with programs and NIC; payload is left out."""
    kinds = ["channels", "channels", "seg_pub", "seg_app", "queue_pair", "replica_status"]
    kind = dice.choice(kinds)
    maps = t.named(kind)
    if not maps:
        kind, maps = "channels", t.named("channels")
    m = dice.choice(maps)
    offset = dice.randrange(0, 64, 8)
    if kind == "channels":
        channels = ffi.offsetof("struct neat_channels", "ch")
        one = ffi.sizeof("struct neat_channel")
        words = ffi.offsetof("struct neat_channel", "cmd")
        number = dice.choice([0, 0, 0, 1, 2])
        part = dice.random()
        if part < 0.6:
            offset = channels + number * one + dice.randrange(0, words, 4)
        elif part < 0.8:
            offset = channels + number * one + words + dice.randrange(0, one - words, 8)
        else:
            offset = dice.randrange(0, ffi.offsetof("struct neat_channels", "open") + 16, 4)
    elif kind in ("seg_pub", "seg_app"):
        size = ffi.sizeof(f"struct neat_slot_{kind[4:]}")
        first = ffi.offsetof(f"struct neat_{kind}", "slots")
        slot = dice.choice([*range(24), *range(32768, 32768 + 24)])
        offset = first + slot * size + dice.randrange(0, size, 4)
        if kind == "seg_pub" and dice.random() < 0.2:
            offset = ffi.offsetof("struct neat_seg_pub", "accept") + dice.randrange(0, 4096, 8)
        elif dice.random() < 0.1:
            offset = dice.randrange(0, first, 4)
    elif kind == "queue_pair":
        offset = dice.randrange(0, 768, 4) if dice.random() < 0.7 else dice.randrange(0, 24576, 4)
    elif kind == "replica_status":
        offset = dice.randrange(0, 512, 4)
    return m.begin + offset, f"{kind}+{offset:#x}"


def _entry(t: Target, dice: random.Random, names: list[str]) -> tuple[int, str]:
    base, known = t.code()
    there = [n for n in names if n in known]
    if not there:
        raise GoneError(f"{t.program} has no symbols")
    name = dice.choice(there)
    return base + known[name][0], name


# ---- kinds ----


def arena_flip(t: Target, dice: random.Random) -> str:
    at, where = _arena(t, dice)
    return f"{_flip(t, at, dice)} ({where})"


def arena_wild(t: Target, dice: random.Random) -> str:
    at, where = _arena(t, dice)
    return f"{_wild(t, at, dice)} ({where})"


def text_flip(t: Target, dice: random.Random) -> str:
    base, known = t.code()
    if known and dice.random() < 0.6:
        name = dice.choice([n for n in HOT if n in known])
        at = base + known[name][0] + dice.randrange(known[name][1])
    else:
        m = next(m for m in t.maps if m.name == str(t.program) and "x" in m.perms)
        at = dice.randrange(m.begin, m.end)
        name = next((n for n, (a, s) in known.items() if a <= at - base < a + s), "?")
    return f"{_flip(t, at, dice)} ({name})"


def heap_flip(t: Target, dice: random.Random) -> str:
    return _flip(t, dice.choice(t.resident(t.private())) + dice.randrange(PAGE), dice)


def heap_wild(t: Target, dice: random.Random) -> str:
    return _wild(t, dice.choice(t.resident(t.private())) + dice.randrange(PAGE - 64), dice)


def stack_flip(t: Target, dice: random.Random) -> str:
    """Most of what the process has on its stack lies in the last pages."""
    stack = [m for m in t.maps if m.name == "[stack]"]
    return _flip(t, dice.choice(t.resident(stack)[-8:]) + dice.randrange(PAGE), dice)


def null_pointer(t: Target, dice: random.Random) -> str:
    """A pointer becomes NULL: of a control block, or anywhere in the process's own memory."""
    pages = t.resident(t.private())
    for _ in range(200):
        if dice.random() < 0.5:
            at = _arena(t, dice)[0] & ~7
        else:
            at = dice.choice(pages) + dice.randrange(0, PAGE, 8)
        (value,) = struct.unpack("<Q", t.read(at, 8))
        if any(m.begin <= value < m.end for m in t.maps):
            t.write(at, bytes(8))
            return f"pointer at {t.place(at)} (to {t.place(value)})"
    raise GoneError("no pointer found")


def null_call(t: Target, dice: random.Random) -> str:
    at, name = _entry(t, dice, HOT)
    t.write(at, NULL_CALL)
    return f"{name}() calls NULL"


def endless_loop(t: Target, dice: random.Random) -> str:
    at, name = _entry(t, dice, HOT)
    t.write(at, LOOP)
    return f"{name}() loops"


def leak(t: Target, dice: random.Random) -> str:
    """What should free something returns at once."""
    at, name = _entry(t, dice, RELEASES)
    t.write(at, RETURN)
    return f"{name}() does nothing"


def ring_garbage(t: Target, dice: random.Random) -> str:
    at, where = _shared(t, dice)
    return f"{_wild(t, at, dice) if dice.random() < 0.5 else _flip(t, at, dice)} ({where})"


def stop(t: Target, dice: random.Random) -> str:
    os.kill(t.pid, signal.SIGSTOP)
    return "SIGSTOP"


def deadly_signal(t: Target, dice: random.Random) -> str:
    number = dice.choice(DEADLY)
    os.kill(t.pid, number)
    return number.name


KINDS: dict[str, Callable[[Target, random.Random], str]] = {
    "arena-flip": arena_flip,
    "arena-wild": arena_wild,
    "text-flip": text_flip,
    "heap-flip": heap_flip,
    "heap-wild": heap_wild,
    "stack-flip": stack_flip,
    "null-pointer": null_pointer,
    "null-call": null_call,
    "loop": endless_loop,
    "leak": leak,
    "ring": ring_garbage,
    "stop": stop,
    "signal": deadly_signal,
}


def inject(pid: int, kind: str, dice: random.Random) -> str:
    """Do it. GoneError if the process is not there any more."""
    target = Target(pid)
    try:
        return KINDS[kind](target, dice)
    except (ProcessLookupError, FileNotFoundError) as err:
        raise GoneError(str(err)) from err
    finally:
        target.close()
