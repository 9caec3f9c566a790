"""Parts in C as a library that a test drives: its declarations, and the library itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]


def declarations(name: str) -> str:
    """What NAME.c declares between "what the tests drive" and "end", for cdef()."""
    source = (ROOT / "tests/unit" / name).read_text()
    block = source.split("what the tests drive ---- */")[1].split("/* ---- end")[0]
    return "\n".join(re.findall(r"^[a-z].*?;$", block, re.M | re.S))


def build(out: Path, name: str, parts: Iterable[str], rooms: Iterable[str]) -> str:
    """Compile NAME.c with `parts` (below replicas/) into `out`; its path.

    `rooms`: directories below replicas/ whose headers are seen. CalledProcessError when gcc fails.
    """
    files = [f"tests/unit/{name}", *(f"replicas/{part}" for part in parts)]
    includes = [f"-I{ROOT}/replicas/{room}" for room in rooms]
    command = ["gcc", *FLAGS, *includes, *(str(ROOT / file) for file in files), "-o", str(out)]
    subprocess.run(command, check=True)
    return str(out)
