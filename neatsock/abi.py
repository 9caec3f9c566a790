"""The shared-memory contract (replicas/abi/neat_abi.h) for Python: objects, messages, fingerprint.

Used by neatd, the tools and the tests; nothing here is in the data path. Shared words are read and
written through cffi structures: one aligned load or store each, no atomic read-modify-write.
"""

from __future__ import annotations

import fcntl
import importlib
import mmap
import os
from typing import Any

from neatsock import _build_ffi


def _load() -> Any:
    output = _build_ffi.OUTPUT
    # In a source tree the header may be newer than what was generated from it.
    changed = max((p.stat().st_mtime_ns for p in _build_ffi.PARTS if p.exists()), default=0)
    if changed and not (output.exists() and output.stat().st_mtime_ns > changed):
        _build_ffi.write()
        importlib.invalidate_caches()
    return importlib.import_module("neatsock._abi").ffi


ffi: Any = _load()
lib: Any = ffi.dlopen(None)

MAGIC: int = lib.NEAT_ABI_MAGIC
VERSION: int = lib.NEAT_ABI_VERSION
MSG_MAX: int = lib.NEAT_MSG_MAX
FDS_MAX: int = lib.NEAT_MSG_FDS_MAX
HEADER_SIZE: int = ffi.sizeof("struct neat_msg_header")
KEEPER_SIZE: int = ffi.sizeof("struct neat_msg_keeper")
MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE exists from Python 3.13 on


class MessageError(ValueError):
    """A message that is not what this build speaks; str() says why."""


def sealed_memory(name: str, size: int) -> int:
    """A sparse memfd of a fixed size.

    Sealed, because an application that shrank it, or took the right to map it writable away, would
    kill the replica that shares it. Mode 0400: nobody opens one that he has for reading again for
    writing by mistake (decision 71).
    """
    fd = os.memfd_create("neat-" + name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        os.fchmod(fd, 0o400)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


class Object:
    """One shared object: a memfd, mapped here. `at` is the cffi structure at its start."""

    def __init__(self, ctype: str, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.memory = mmap.mmap(fd, size, mmap.MAP_SHARED | MAP_NORESERVE)
        self._buffer = ffi.from_buffer(self.memory)
        self.at: Any = ffi.cast(ctype + " *", self._buffer)

    @classmethod
    def create(
        cls, ctype: str, kind: int, index: int, instance: int, size: int | None = None
    ) -> Object:
        """A new sparse object with its header filled in. OSError when memory is short."""
        size = size or ffi.sizeof(ctype)
        fd = sealed_memory(ctype.split("_", 1)[1], size)
        try:
            self = cls(ctype, fd, size)
        except OSError:
            os.close(fd)
            raise
        header = self.at.h
        header.magic, header.version, header.object = MAGIC, VERSION, kind
        header.index, header.size, header.instance = index, size, instance
        return self

    def close(self) -> None:
        """Unmap and close. `at` must not be used afterwards."""
        self.at = None
        ffi.release(self._buffer)
        self.memory.close()
        os.close(self.fd)


def memory_file(
    ctype: str, kind: int, index: int, instance: int, size: int | None = None, **fields: int
) -> int:
    """Like Object.create, but nothing stays mapped: the fd alone, `fields` set in the structure."""
    whole = size or ffi.sizeof(ctype)
    fd = sealed_memory(ctype.split("_", 1)[1], whole)
    try:
        with mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED) as page:
            view = ffi.from_buffer(page)
            at = ffi.cast(ctype + " *", view)
            header = at.h
            header.magic, header.version, header.object = MAGIC, VERSION, kind
            header.index, header.size, header.instance = index, whole, instance
            for name, value in fields.items():
                setattr(at, name, value)
            ffi.release(view)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_only(fd: int) -> int:
    """A second, read-only descriptor of the same memory. Needs /proc."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def new(ctype: str, kind: int, seq: int = 0, **fields: Any) -> Any:
    """A message structure with its header filled in."""
    message = ffi.new(ctype + " *", fields)
    header = ffi.cast("struct neat_msg_header *", message)
    header.magic, header.version, header.type = MAGIC, VERSION, kind
    header.len, header.seq = ffi.sizeof(ctype), seq
    return message


def pack(ctype: str, kind: int, seq: int = 0, **fields: Any) -> bytes:
    """The bytes of one message."""
    return bytes(ffi.buffer(new(ctype, kind, seq, **fields)))


def pack_text(kind: int, text: bytes, seq: int = 0) -> bytes:
    """A header followed by text (CLI and state messages)."""
    header = new("struct neat_msg_header", kind, seq)
    header.len = HEADER_SIZE + len(text)
    return bytes(ffi.buffer(header)) + text


def wrap(kind: int, inner: bytes = b"", **fields: int) -> bytes:
    """A keeper message around `inner`."""
    outer = new("struct neat_msg_keeper", kind, **fields)
    outer.h.len = KEEPER_SIZE + len(inner)
    return bytes(ffi.buffer(outer)) + inner


def header(data: bytes) -> Any:
    """The checked header of a received datagram. MessageError says what is wrong with it."""
    if len(data) < HEADER_SIZE:
        raise MessageError(f"a message of {len(data)} bytes is shorter than a header")
    found = ffi.new("struct neat_msg_header *")
    ffi.memmove(found, data, HEADER_SIZE)
    if found.magic != MAGIC:
        raise MessageError("the message does not start with the neatsock magic number")
    if found.version != VERSION:
        raise MessageError(
            f"the program speaks version {found.version} of the protocol, this instance "
            f"{VERSION}; restart the instance (neatsock down) with the neatsock it uses"
        )
    if found.len != len(data):
        raise MessageError(f"the header promises {found.len} bytes, {len(data)} came")
    return found


def unpack(ctype: str, data: bytes) -> Any:
    """The structure at the start of `data`. MessageError if it is too short."""
    size = ffi.sizeof(ctype)
    if len(data) < size:
        raise MessageError(f"{len(data)} bytes are too few for a {ctype}")
    message = ffi.new(ctype + " *")
    ffi.memmove(message, data, size)
    return message


def text(field: Any) -> str:
    """A char array up to its NUL, for people."""
    raw: bytes = ffi.string(field)
    return raw.decode("utf-8", "replace")


def fingerprint() -> int:
    """neat_abi_fingerprint() of ring.h: two builds that disagree on a layout disagree on it."""
    sizes = [
        ffi.sizeof("struct neat_" + name)
        for name in (
            "registry",
            "app",
            "seg_pub",
            "seg_app",
            "channels",
            "replica_status",
            "queue_pair",
            "msg_r_listen",
            "msg_r_config",
        )
    ]
    value = 0
    for size in (*sizes, lib.NEAT_SEG_APP_SIZE, lib.NEAT_APP_SIZE):
        value = (value ^ size) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return value >> 32


def refs_closing(who: int) -> int:
    """neat_refs_closing() of ring.h: neat_sock.refs while `who`, a process entry, closes it."""
    return who + 1 << int(lib.NEAT_REFS_CLOSER_SHIFT)
