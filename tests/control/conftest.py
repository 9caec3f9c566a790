"""Real keeper, neatd and replicas, built once, in directories of their own."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .client import ROOT, Client, Instance, Puppet

WARNINGS = [
    f"-W{name}"
    for name in (
        "all",
        "extra",
        "conversion",
        "shadow",
        "strict-prototypes",
        "missing-prototypes",
        "vla",
        "error",
    )
]


def compile_c(output: Path, sources: list[Path], *flags: str) -> None:
    include = [f"-I{ROOT}/replicas/{name}" for name in ("abi", "stack", "keeper", "nic")]
    command = ["gcc", "-std=gnu11", "-O2", "-g", *flags, *include, *map(str, sources)]
    subprocess.run([*command, "-o", str(output)], check=True)


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A _native directory whose libneatsock.so does nothing."""
    directory = tmp_path_factory.mktemp("native")
    keeper, stack = ROOT / "replicas/keeper", ROOT / "replicas/stack"
    nic = ROOT / "replicas/nic"
    compile_c(directory / "neat-keeper", sorted(keeper.glob("*.c")), *WARNINGS)
    compile_c(directory / "neat-replica", sorted(stack.glob("*.c")))
    compile_c(directory / "neat-nic", sorted(nic.glob("*.c")), *WARNINGS)
    empty = directory / "empty.c"
    empty.write_text("int neat_dummy(void);\nint neat_dummy(void) { return 1; }\n")
    compile_c(directory / "libneatsock.so", [empty], "-shared", "-fPIC")
    return directory


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Closes the clients that a test made; with them it leaves no descriptor behind."""
    gc.collect()  # what earlier tests left to the collector is no business of this one
    before = own_files()
    yield
    for client in list(Client.made):
        client.close()
    assert own_files() - before == set()


@pytest.fixture
def fresh(native: Path, tmp_path: Path) -> Iterator[Instance]:
    """An instance that is not up yet."""
    instance = Instance(tmp_path / "run", NEATSOCK_NATIVE=str(native))
    yield instance
    instance.down()


@pytest.fixture
def instance(fresh: Instance) -> Instance:
    """A fresh instance with two replicas."""
    return fresh.up("--replicas", "2")


@pytest.fixture(scope="module")
def shared(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance for the tests of a module that leave no trace in it."""
    directory = tmp_path_factory.mktemp("shared") / "run"
    instance = Instance(directory, NEATSOCK_NATIVE=str(native)).up("--replicas", "2")
    yield instance
    instance.down()


@pytest.fixture
def puppets() -> Iterator[list[Puppet]]:
    """Puppets appended here are ended with the test."""
    made: list[Puppet] = []
    yield made
    for puppet in made:
        puppet.close()


def alive(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return fields[0] not in "ZX"


def own_files() -> set[tuple[int, str]]:
    """(descriptor, what it is) of each that this process has."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
