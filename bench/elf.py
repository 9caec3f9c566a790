"""Where the functions of a program lie: symbols and segments of a 64-bit little-endian ELF file."""

from __future__ import annotations

import struct
from pathlib import Path

SHT_SYMTAB = 2
STT_FUNC = 2
PT_LOAD = 1


def functions(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (address, size), as linked. Empty for a stripped file."""
    image = path.read_bytes()
    if image[:6] != b"\x7fELF\x02\x01":
        return {}
    at, size, count = (
        struct.unpack_from("<Q", image, 0x28)[0],
        *struct.unpack_from("<HH", image, 0x3A),
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, at + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != SHT_SYMTAB:
            continue
        names = sections[link][4]
        for name, info, _, _, value, extent in struct.iter_unpack(
            "<IBBHQQ", image[offset : offset + length]
        ):
            if info & 15 == STT_FUNC and extent:
                begin = names + name
                found[image[begin : image.index(b"\0", begin)].decode()] = (value, extent)
    return found


def file_offset(path: Path, address: int) -> int:
    """Where in the file lies what is loaded at `address`. ValueError if nothing is."""
    image = path.read_bytes()
    at = struct.unpack_from("<Q", image, 0x20)[0]
    size, count = struct.unpack_from("<HH", image, 0x36)
    for i in range(count):
        kind, _, offset, begin, _, length = struct.unpack_from("<IIQQQQ", image, at + i * size)
        if kind == PT_LOAD and begin <= address < begin + length:
            return int(offset + address - begin)
    raise ValueError(f"{path}: nothing is loaded at {address:#x}")
