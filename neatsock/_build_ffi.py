"""Writes neatsock/_abi.py: the layouts of replicas/abi/neat_abi.h for Python, without a compiler.

cffi's out-of-line ABI mode: the result is pure Python, so one wheel serves every CPython. Run at
build time (`python neatsock/_build_ffi.py`) and, in a source tree, whenever a header is newer.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HEADER = Path(__file__).resolve().parent.parent / "replicas" / "abi" / "neat_abi.h"
PARTS = (HEADER, HEADER.with_name("neat_msg.h"))  # what it is made of
OUTPUT = Path(__file__).resolve().parent / "_abi.py"
# Sizes and offsets that do not fit an enum constant.
DEFINES = (
    "NEAT_APP_FDS",
    "NEAT_APP_SIZE",
    "NEAT_SEG_SMALL",
    "NEAT_SEG_LARGE",
    "NEAT_SEG_APP_SIZE",
    "NEAT_QP_BUFS",
    "NEAT_QP_SIZE",
)


def declarations(header: Path = HEADER) -> str:
    """The header as cffi reads it. CalledProcessError if the C preprocessor fails."""
    compiler = os.environ.get("CC", "gcc").split()
    text = subprocess.run(
        [*compiler, "-E", "-P", "-DNEAT_CDEF", str(header)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    source = header.read_text(encoding="utf-8")
    for name in DEFINES:
        found = re.search(rf"^#define\s+{name}\s+(\d+)", source, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{header}: no #define of {name}")
        text += f"\n#define {name} {found.group(1)}"
    return text + "\n"


def write(output: Path = OUTPUT) -> None:
    """Write the module. Replaces the file at once: a reader never sees half of it."""
    import cffi

    ffi: Any = cffi.FFI()
    ffi.set_source("neatsock._abi", None)
    ffi.cdef(declarations())
    scratch = output.with_name(f".{output.name}.{os.getpid()}.py")
    with contextlib.redirect_stdout(io.StringIO()):  # cffi announces what it writes
        ffi.emit_python_code(str(scratch))
    scratch.replace(output)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
