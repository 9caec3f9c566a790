"""Builds what the tests drive: the pure rooms as a library, neat-nic and neat-replica."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import cffi
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
WARNINGS = [
    "all",
    "extra",
    "conversion",
    "shadow",
    "strict-prototypes",
    "missing-prototypes",
    "vla",
]
FLAGS = ["-std=gnu11", "-O1", "-g", "-Werror", *(f"-W{name}" for name in WARNINGS)]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
PURE = ["arp", "asks", "filters", "frame", "gso", "pcapng", "queue", "reass", "steer", "wire"]
ffi = cffi.FFI()


def prototypes() -> str:
    source = (HERE / "pure_lib.c").read_text()
    block = source.split("what the tests drive ---- */")[1].split("/* ---- end")[0]
    return "\n".join(re.findall(r"^[a-z].*?;$", block, re.M | re.S))


ffi.cdef(prototypes())


def build(out: Path, sources: list[Path], flags: list[str], includes: list[str]) -> Path:
    where = [f"-I{ROOT}/replicas/{name}" for name in includes]
    subprocess.run(["gcc", *FLAGS, *flags, *where, *map(str, sources), "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="session")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    nic = ROOT / "replicas/nic"
    sources = [HERE / "pure_lib.c", *(nic / f"{name}.c" for name in PURE)]
    out = tmp_path_factory.mktemp("pure") / "pure_lib.so"
    undefined = ["-fPIC", "-shared", "-fsanitize=undefined", "-fno-sanitize-recover"]
    return ffi.dlopen(str(build(out, sources, undefined, ["abi", "nic"])))


@pytest.fixture(scope="session")
def nic_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nic") / "neat-nic"
    return build(out, sorted((ROOT / "replicas/nic").glob("*.c")), SANITIZE, ["abi"])


@pytest.fixture(scope="session")
def replica_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replica") / "neat-replica"
    sources = sorted((ROOT / "replicas/stack").glob("*.c"))
    return build(out, sources, SANITIZE, ["abi", "stack"])
