"""bench/loads/churn.py between two worlds: a server, and clients that compare every byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .worlds import ROOT, World

CHURN = str(ROOT / "bench/loads/churn.py")


class Churn:
    def __init__(
        self,
        server: World,
        load: World,
        port: int,
        kind: str = "events",
        bind: str = "127.0.0.1",
        address: str = "127.0.0.1",
        log: Callable[[], str] = str,
    ) -> None:
        self.log = log
        self.server = self._start(server, bind, "serve", str(port), kind)
        assert self.server.stdout and self.server.stdout.readline() == "ready\n"
        self.load = self._start(load, address, "load", str(port))
        self.last: dict[str, Any] = {"exchanges": 0, "connections": 0, "broken": 0, "wrong": []}
        threading.Thread(target=self._read, daemon=True).start()
        self.goes_on()

    @staticmethod
    def _start(world: World, address: str, *args: str) -> subprocess.Popen[str]:
        at = replace(world, env={**world.env, "CHURN_ADDRESS": address})
        command = [sys.executable, CHURN, *args]
        return at.start(*command, stdout=subprocess.PIPE, start_new_session=True)

    def _read(self) -> None:
        assert self.load.stdout
        for line in self.load.stdout:
            self.last = json.loads(line)

    def goes_on(self, more: int = 200, seconds: float = 40) -> None:
        """Blocks until so many more exchanges went well; nothing may have gone wrong so far."""
        goal, end = self.last["exchanges"] + more, time.monotonic() + seconds
        while self.last["exchanges"] < goal and not self.last["broken"]:
            assert self.server.poll() is None and self.load.poll() is None, self.log()
            assert time.monotonic() < end, f"{self.last}, {goal} expected\n{self.log()}"
            time.sleep(0.002)
        assert not self.last["broken"], f"{self.last}\n{self.log()}"

    def close(self) -> None:
        for process in (self.load, self.server):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
