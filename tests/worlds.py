"""The two worlds every API and system test runs in: the kernel's stack, and ours.

Linux is the oracle: a test runs the same program in both and compares what it reports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class World:
    """How a program is started, and where: `env` carries the instance."""

    name: str
    prefix: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def run(
        self, *command: str, timeout: float = 60, check: bool = True, **kwargs: object
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; stdout and stderr are captured as text."""
        result = subprocess.run(
            [*self.prefix, *command],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=timeout,
            **kwargs,  # type: ignore[call-overload]
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(command)} ended with {result.returncode}\n"
                f"{result.stdout}{result.stderr}\nagain: {self.again(command)}"
            )
        return result

    def start(self, *command: str, **kwargs: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, *command],
            env={**os.environ, **self.env},
            text=True,
            **kwargs,  # type: ignore[call-overload]
        )

    def again(self, command: tuple[str, ...]) -> str:
        env = " ".join(f"{k}={v}" for k, v in self.env.items())
        return f"{env} {' '.join([*self.prefix, *command])}"


KERNEL = World("kernel")


def neatsock_env(directory: Path) -> dict[str, str]:
    return {"NEATSOCK_DIR": str(directory), "PYTHONPATH": str(ROOT)}


class Instance:
    """A private instance of neatsock."""

    def __init__(self, directory: Path, replicas: int = 1, *options: str) -> None:
        self.directory = directory
        self.env = neatsock_env(directory)
        self.cli("up", "--replicas", str(replicas), *options)

    def cli(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "neatsock", *args],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"neatsock {args}: {result.stdout}{result.stderr}\n{self.log()}")
        return result

    def log(self) -> str:
        return "".join(p.read_text() for p in self.directory.glob("*.log"))[-4000:]

    def world(self) -> World:
        return World("neatsock", (sys.executable, "-m", "neatsock", "run", "--"), self.env)

    def down(self) -> None:
        self.cli("down", check=False)
