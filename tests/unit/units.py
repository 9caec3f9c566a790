"""The small parts of the stack (units_lib.c) as a library, built once per run."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "replicas/stack"
ffi = cffi.FFI()
source = (ROOT / "tests/unit/units_lib.c").read_text()
block = source.split("what the tests drive ---- */")[1].split("/* ---- timing wheel")[0]
ffi.cdef("\n".join(re.findall(r"^[a-z].*?;$", block, re.M | re.S)))


@functools.cache
def units() -> Any:
    """Raises CalledProcessError when gcc does; its words are on stderr."""
    with tempfile.TemporaryDirectory(prefix="neat-units-") as directory:
        out = Path(directory) / "units.so"
        files = [
            ROOT / "tests/unit/units_lib.c",
            *(STACK / f for f in ("timer.c", "flow.c", "csum.c")),
        ]
        flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        includes = [f"-I{ROOT}/replicas/abi", f"-I{STACK}"]
        subprocess.run(["gcc", *flags, *includes, *map(str, files), "-o", str(out)], check=True)
        return ffi.dlopen(str(out))
