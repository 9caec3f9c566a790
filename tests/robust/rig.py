"""What every robustness test needs: an instance of its own choice, and a bystander on it.

The bystander is a second application on the same instance that exchanges bytes all the time. A test
in which it stops, or sees a wrong byte, has failed, whatever else happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neatsock.instance import InstanceError, ask, native

from ..waiting import wait_until
from ..worlds import ROOT, World, neatsock_env

BYSTANDER = """
import hashlib, os, socket, sys, threading, traceback
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 0))
listener.listen(16)
def serve(peer):
    try:
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data)
    except ConnectionError:
        pass  # the client counts it
def accept():
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
block = os.urandom(20000)
rounds = failed = 0
client = None
print("ready", flush=True)
while True:
    try:
        if client is None or rounds % 20 == 0:
            client = socket.create_connection(listener.getsockname(), 10)
            client.settimeout(10)
        piece = block[rounds % 100 : 10000 + rounds % 1000]
        client.sendall(piece)
        got = b""
        while len(got) < len(piece):
            more = client.recv(65536)
            if not more:
                raise ConnectionResetError("end of file")
            got += more
        if got != piece:
            print("WRONG bytes", flush=True)
            os._exit(1)
    except TimeoutError:
        names = listener.getsockname(), client and client.getsockname()
        print("TIMEOUT", *names, repr(traceback.format_exc()), flush=True)
        os._exit(1)
    except ConnectionError as err:
        failed += 1
        client = None
        print(f"broken {failed} {err!r}", flush=True)
    rounds += 1
    print(rounds, flush=True)
"""


def build(directory: Path, name: str) -> Path:
    """The program of NAME.c beside this file. Blocks for the compiler."""
    source, program = Path(__file__).with_name(f"{name}.c"), directory / name
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'replicas/abi'}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(program), "-lpthread"], check=True)
    return program


class Bystander:
    """A second application. `lively()` blocks until it has made some more round trips.

    `evidence` says more when it could not.
    """

    def __init__(self, world: World, evidence: Callable[[], str] = str) -> None:
        self.evidence = evidence
        self.process = world.start(
            sys.executable, "-c", BYSTANDER, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.rounds = 0
        self.broken: list[str] = []
        self.other: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.lively()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.rounds = int(line)
            elif line.startswith("broken"):
                self.broken.append(line)
            elif line != "ready\n":
                self.other.append(line)

    def check(self) -> None:
        if self.process.poll() is not None or self.other:
            raise AssertionError("".join(self.other[-20:]) + self.evidence())

    def lively(self, more: int = 20) -> None:
        before = self.rounds
        wait_until(
            lambda: self.rounds >= before + more or self.other or self.process.poll() is not None,
            "the bystander exchanges bytes",
        )
        self.check()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()


class Rig:
    """A private instance, asked without a Python start of its own."""

    def __init__(self, directory: Path, replicas: int = 1, *options: str, **env: str) -> None:
        self.directory = directory
        self.path = directory / "default.sock"
        self.env = neatsock_env(directory) | env
        # Without other wishes: tests stop replicas for as long as they need.
        options = options or ("--stopped", "0")
        done = self.cli("up", "--replicas", str(replicas), *options)
        assert done.returncode == 0, done.stderr
        # Started directly: `neatsock run` costs 50 ms each time.
        self.world = World(
            "neatsock",
            env=self.env
            | {"LD_PRELOAD": str(native("libneatsock.so")), "NEATSOCK_SOCKET": str(self.path)},
        )

    def cli(self, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """neatsock ARGS, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "neatsock", *args],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=60,
            **kwargs,
        )

    def status(self) -> dict[str, Any]:
        """Status, or {} while nobody answers."""
        try:
            return ask(self.path, {"cmd": "status"}, 5)
        except InstanceError:
            return {}

    def pids(self) -> dict[str, int]:
        found = wait_until(self.status, "neatd answers")
        pids = {"keeper": found["keeper"]["pid"], "neatd": found["neatd"]["pid"]}
        return pids | {f"replica{r['index']}": r["pid"] for r in found["replicas"]}

    def epochs(self) -> list[int]:
        found = wait_until(self.status, "neatd answers")
        return [int(r["epoch"]) for r in found["replicas"]]

    def ready(self, replica: int, epoch: int) -> None:
        """Blocks until the replica's incarnation `epoch` takes connections."""

        def there() -> bool:
            found = self.status()
            one = found["replicas"][replica] if found else {"epoch": 0}
            return one["epoch"] == epoch and one["state"] == "ready"

        wait_until(there, f"replica {replica} is ready in epoch {epoch}")

    def log(self) -> str:
        return "".join(p.read_text() for p in self.directory.glob("*.log"))

    def evidence(self) -> str:
        """Status and log, for messages of tests."""
        return f"{self.status()}\n{self.log()[-5000:]}"

    def down(self) -> None:
        self.cli("down")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
