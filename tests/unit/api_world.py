"""replicas/stack/api*.c over a recording TCP (api_lib.c): a test plays the application."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parents[2]
KICK, CONNECT, CLOSE, ABORT, UDP = 1, 2, 3, 4, 5
CLAIMED = 32768
LISTENING, CONNECTING, CONNECTED, RX_EOF, TX_SHUT, ERROR, HUP, DEAD = 2, 4, 8, 16, 32, 64, 128, 256
DATAGRAM = 1024
APP = 7  # api_lib.c

ffi = cffi.FFI()


def prototypes() -> str:
    source = (ROOT / "tests/unit/api_lib.c").read_text()
    block = source.split("what the tests drive ---- */")[1].split("static struct world")[0]
    return "struct world;\n" + "\n".join(re.findall(r"^[a-z].*?;$", block, re.M | re.S))


ffi.cdef(prototypes())


def build(directory: Path) -> Any:
    out = directory / "api_lib.so"
    stack = ROOT / "replicas/stack"
    names = ("api", "api_adopt", "api_channel", "api_cmd", "api_drain", "api_udp")
    own = [stack / f"{name}.c" for name in names]
    sources = [ROOT / "tests/unit/api_lib.c", *own]
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    includes = [f"-I{ROOT}/replicas/abi", f"-I{stack}"]
    subprocess.run(["gcc", *flags, *includes, *map(str, sources), "-o", str(out)], check=True)
    return ffi.dlopen(str(out))


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
