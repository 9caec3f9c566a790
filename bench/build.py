"""Builds the C load programs at first use into a cache directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from bench.errors import SkipCase

LOADS = Path(__file__).parent / "loads"
FLAGS = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wvla",
    "-Werror",
)
EXTRA = {
    "echo_client": ("closed.c",),
    "memget": ("closed.c",),
    "held": ("verify_message.c", "verify_talk.c"),
    "verify": ("verify_client.c", "verify_message.c", "verify_server.c", "verify_talk.c"),
}


def cache_dir() -> Path:
    """Where built programs are kept: $XDG_CACHE_HOME/neatsock-bench or ~/.cache/neatsock-bench."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "neatsock-bench"


def _digest(sources: list[Path]) -> str:
    h = hashlib.sha256(" ".join(FLAGS).encode())
    for path in (*sources, *sorted(LOADS.glob("*.h"))):
        h.update(path.read_bytes())
    return h.hexdigest()[:16]


def load_program(name: str) -> str:
    """Path of the built program. Blocks for the compiler; SkipCase without one."""
    sources = [LOADS / f"{name}.c", *(LOADS / e for e in EXTRA.get(name, ())), LOADS / "load.c"]
    built = cache_dir() / f"{name}-{_digest(sources)}"
    if built.exists():
        return str(built)
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise SkipCase("no C compiler: install gcc, or put cc into PATH")
    built.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole: an interrupted or concurrent build leaves no half program behind.
    partial = built.with_name(f"{built.name}.{os.getpid()}")
    done = subprocess.run(
        [compiler, *FLAGS, "-pthread", *map(str, sources), "-o", str(partial)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SkipCase(f"{name}.c does not compile:\n{done.stderr}")
    partial.rename(built)
    return str(built)
