"""The small parts of the stack (units_lib.c) as a library, built once per run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import cffi

from .library import build, declarations

ffi = cffi.FFI()
ffi.cdef(declarations("units_lib.c"))


@functools.cache
def units() -> Any:
    """Raises CalledProcessError when gcc does; its words are on stderr."""
    parts = [f"stack/{name}.c" for name in ("timer", "flow", "csum")]
    with tempfile.TemporaryDirectory(prefix="neat-units-") as directory:
        out = Path(directory) / "units.so"
        return ffi.dlopen(build(out, "units_lib.c", parts, ("abi", "stack")))
