"""The two worlds in which the same command runs: the kernel's sockets, or a private neatsock."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import proc
from bench.errors import SkipCase

ROOT = Path(__file__).parent.parent
UP_S = 60.0  # building and starting an instance
HOST = "127.0.0.1"
DOWN_S = 5.0
NAME = "bench"


@dataclass(frozen=True)
class Placement:
    """CPUs of servers and clients; empty = the scheduler's choice. The same in both worlds."""

    name: str
    server: str = ""
    client: str = ""

    def prefix(self, role: str) -> list[str]:
        """Command prefix for 'server' or 'client'."""
        cpus = self.server if role == "server" else self.client
        return ["taskset", "-c", cpus] if cpus else []


PLACEMENTS = {
    p.name: p
    for p in (Placement("free"), Placement("same", "0", "0"), Placement("split", "0", "1"))
}


@dataclass(frozen=True)
class World:
    """Where programs run. This one is the kernel; it needs nothing."""

    name: str = "kernel"
    wrap: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def replica_pids(self) -> list[int]:
        """Processes that run the network stack."""
        return []

    def control_pids(self) -> list[int]:
        """The instance's other processes."""
        return []

    def down(self) -> None:
        """End the world."""


KERNEL = World()


@dataclass(frozen=True)
class Neat(World):
    """An instance of our own, in a directory of our own."""

    directory: Path = Path()
    keeper: int = 0

    @property
    def control(self) -> Path:
        """Its control socket."""
        return self.directory / f"{NAME}.sock"

    def replica_pids(self) -> list[int]:
        """Processes that run the network stack, now (a restarted replica has a new pid)."""
        return [pid for pid in proc.tree([self.keeper]) if _is_replica(pid)]

    def control_pids(self) -> list[int]:
        """keeper, neatd, nic."""
        return [pid for pid in proc.tree([self.keeper]) if not _is_replica(pid)]

    def down(self) -> None:
        """Stop the instance and remove its directory."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            _neatsock(["down", "--name", NAME], self.env)
        self._end_keeper()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end_keeper(self) -> None:
        """The keeper takes its children along; asked again by signal if `down` was not enough."""
        binary = str(self.directory / "native" / "neat-keeper")
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + DOWN_S
            while proc.runs_program(self.keeper, binary):
                if number:
                    os.kill(self.keeper, number)
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)


REPLICA_PROGRAMS = ("neat-replica", "neat-tcp", "neat-ip", "neat-udp", "neat-filter")


def _is_replica(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(REPLICA_PROGRAMS)
    except OSError:
        return False


def _neatsock(args: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "neatsock", *args],
        cwd=ROOT,
        text=True,
        env={**os.environ, **env},
        capture_output=True,
        check=False,
        timeout=UP_S,
    )


def native_dir() -> Path:
    """Where the built neatsock is."""
    return Path(os.environ.get("NEATSOCK_NATIVE") or ROOT / "neatsock" / "_native")


def _snapshot(directory: Path) -> dict[str, str]:
    """Copies the build, so that one which runs meanwhile does not change what is measured."""
    if not native_dir().is_dir():
        return {}
    copy = directory / "native"
    shutil.copytree(native_dir(), copy)
    return {"NEATSOCK_NATIVE": str(copy)}


def build_id() -> str:
    """Which neatsock was measured: a hash over its binaries."""
    digest = hashlib.sha256()
    for path in sorted(native_dir().glob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def neat_up(replicas: int, *options: str) -> Neat:
    """Start a private instance, `options` for `neatsock up`. Blocks until it is up.

    SkipCase with its words if it does not come up.
    """
    directory = Path(tempfile.mkdtemp(prefix="neat-bench-"))
    env = {"NEATSOCK_DIR": str(directory), "PYTHONPATH": str(ROOT), **_snapshot(directory)}
    wrap = (sys.executable, "-m", "neatsock", "run", "--name", NAME, "--")
    world = Neat("neatsock", wrap, env, directory)
    try:
        up = ["up", "--auto", "--name", NAME, "--replicas", str(replicas), *options]
        done = _neatsock(up, env)
        if done.returncode:
            raise SkipCase(f"neatsock up failed: {done.stderr.strip() or done.stdout.strip()}")
        return replace(world, keeper=_adopt(world.control))
    except subprocess.TimeoutExpired:
        world.down()
        raise SkipCase(f"neatsock up did not finish in {UP_S:.0f} s") from None
    except BaseException:
        world.down()
        raise


def _adopt(control: Path) -> int:
    """Make the instance end with this process, however it ends; its keeper's pid."""
    try:
        instance = importlib.import_module("neatsock.instance")
        instance.ask(control, {"cmd": "hold"})
        return int(instance.ask(control, {"cmd": "status"})["keeper"]["pid"])
    except Exception as err:  # InstanceError, or a neatsock that does not import
        raise SkipCase(f"the instance came up and then did not answer: {err}") from err


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown"
    )
    uname = os.uname()
    return {
        "cpu": model,
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": uname.release,
        "load": " ".join(f"{x:.2f}" for x in os.getloadavg()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 30} GiB",
        "python": sys.version.split()[0],
        "neatsock build": build_id(),
    }
