"""replicas/stack/api*.c over a recording TCP (api_lib.c): a test plays the application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cffi

from .library import build, declarations

KICK, CONNECT, CLOSE, ABORT, UDP = 1, 2, 3, 4, 5
CLAIMED = 32768
LISTENING, CONNECTING, CONNECTED, RX_EOF, TX_SHUT, ERROR, HUP, DEAD = 2, 4, 8, 16, 32, 64, 128, 256
DATAGRAM = 1024
APP = 7  # api_lib.c

ffi = cffi.FFI()
ffi.cdef("struct world;\n" + declarations("api_lib.c"))


def library(directory: Path) -> Any:
    names = ("api", "api_adopt", "api_channel", "api_cmd", "api_drain", "api_udp")
    parts = [f"stack/{name}.c" for name in names]
    return ffi.dlopen(build(directory / "api_lib.so", "api_lib.c", parts, ("abi", "stack")))


class Replica:
    def __init__(self, lib: Any, world: Any) -> None:
        self.lib, self.world = lib, world

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.lib, name)
        return lambda *args: function(self.world, *args)

    def flags(self, slot: int) -> int:
        return int(self.lib.status(self.world, slot)) & 0xFFFFFFFF

    def error(self, slot: int) -> int:
        return int(self.lib.status(self.world, slot)) >> 32 & 0xFFFF

    def gen(self, slot: int) -> int:
        return int(self.lib.status(self.world, slot)) >> 48

    def listen(self, slot: int = 0) -> int:
        where, gen = ffi.new("uint32_t *", slot), ffi.new("uint32_t *")
        assert self.lib.listen_on(self.world, where, gen) == 0
        return int(where[0])

    def drained(self, channel: int) -> list[int]:
        out = ffi.new("uint64_t[256]")
        n = self.lib.events(self.world, channel, out, 256)
        return [out[i] & 0xFFFFFFFF for i in range(n)]

    def command(self, op: int, slot: int, gen: int | None = None, channel: int = 0) -> None:
        self.command_push(channel, op, self.gen(slot) if gen is None else gen, slot)
        self.run()

    def reborn(self) -> Replica:
        return Replica(self.lib, self.lib.world_reborn(self.world))
