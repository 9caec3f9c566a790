"""Clients and servers of `bench kills`: on the instance, and in a namespace behind a TAP."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import proc
from bench.build import load_program
from bench.errors import CaseFailed, SkipCase
from bench.worlds import Neat, neat_up
from neatsock.instance import ask

OURS, PEER, LOCAL = "10.98.7.2", "10.98.7.1", "127.0.0.1"
EACH = 8000  # connections of one client process: hard RLIMIT_NOFILE is often 20 000
WAIT_S = 30.0
LISTENS = "0A"  # of /proc/net/tcp


@dataclass(frozen=True)
class Namespace:
    """A network namespace with the kernel's end of the instance's TAP device."""

    name: str

    @property
    def prefix(self) -> list[str]:
        """Of a command that shall run in it."""
        return ["ip", "netns", "exec", self.name]

    def plug(self) -> None:
        """The device is there since the instance is up: give it to the namespace."""
        _ip("link", "set", self.name, "netns", self.name)
        _ip("-n", self.name, "addr", "add", f"{PEER}/24", "dev", self.name)
        _ip("-n", self.name, "link", "set", self.name, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SkipCase(f"ip {' '.join(args)}: {done.stderr.strip()}")


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A fresh one. SkipCase where that is not possible."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        raise SkipCase("a TAP device needs root and /dev/net/tun")
    name = f"kills{secrets.token_hex(4)}"
    _ip("netns", "add", name)
    try:
        yield Namespace(name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def start_instance(
    stack: contextlib.ExitStack, replicas: int, uplink: bool, *options: str
) -> tuple[Neat, Namespace | None]:
    """An instance, and with `uplink` a namespace at the other end of its TAP; `stack` ends both.

    Blocks until it is up. SkipCase where that is not possible.
    """
    net = None
    if uplink:
        net = stack.enter_context(namespace())
        options += ("--tap", net.name, "--address", f"{OURS}/24", "--gateway", PEER)
    neat = neat_up(replicas, *options)
    stack.callback(neat.down)
    if net:
        net.plug()
    return neat, net


@dataclass(frozen=True)
class Where:
    """Where a program runs: on the instance, or on the kernel of a namespace."""

    prefix: list[str]
    env: dict[str, str]


@dataclass
class Client:
    """A running `verify ask`; its lines are read as they come."""

    name: str
    child: proc.Child
    lines: int = 0

    def news(self) -> list[dict[str, Any]]:
        """What it printed since the last call."""
        whole = [x for x in self.child.stdout().splitlines(keepends=True) if x.endswith("\n")]
        fresh, self.lines = whole[self.lines :], len(whole)
        return [json.loads(line) for line in fresh]


def on_instance(neat: Neat) -> Where:
    """Started directly: the launcher costs 50 ms."""
    native = Path(neat.env.get("NEATSOCK_NATIVE") or "")
    return Where(
        [],
        {
            **neat.env,
            "LD_PRELOAD": str(native / "libneatsock.so"),
            "NEATSOCK_SOCKET": str(neat.control),
        },
    )


class Loads:
    """Pairs of server and client, ended together."""

    def __init__(self, neat: Neat, net: Namespace | None, where: Path) -> None:
        self.neat = neat
        self.net = net
        self.where = where
        self.program = load_program("verify")
        self.servers: list[Client] = []
        self.clients: list[Client] = []

    def start(self, peer: str, connections: int, threads: int, active: int, seed: int) -> None:
        """`connections` in all, split over the ways of `peer`."""
        ours = on_instance(self.neat)
        theirs = Where(self.net.prefix, {}) if self.net else ours
        ways = [("local", ours, ours, LOCAL)] if peer in ("local", "both") else []
        if peer in ("tap", "both"):
            ways += [("tap in", ours, theirs, OURS), ("tap out", theirs, ours, PEER)]
        for number, (name, server, client, host) in enumerate(ways):
            share = connections // len(ways) + (number < connections % len(ways))
            for part in range(0, max(share, 1), EACH):
                self._pair(
                    f"{name}{f' {part // EACH}' if part else ''}",
                    (server, client),
                    host,
                    [
                        min(share - part, EACH),
                        threads if part == 0 else 0,
                        active,
                        seed * 64 + len(self.clients),
                    ],
                )

    def _pair(self, name: str, at: tuple[Where, Where], host: str, numbers: list[int]) -> None:
        server, client = at
        port = str(proc.free_ports(1)[0])
        tag = name.replace(" ", "-")
        argv = [*server.prefix, self.program, "serve", port, "2"]
        child = proc.start(argv, self.where, f"server-{tag}", server.env)
        self.servers.append(Client(f"{name} server", child))
        self._listens(child, int(port), bool(server.env))
        argv = [*client.prefix, self.program, "ask", host, port, *map(str, numbers)]
        child = proc.start(argv, self.where, f"client-{tag}", client.env)
        self.clients.append(Client(name, child))
        self._answers(self.clients[-1:])  # it catches signals from now on

    def _listens(self, child: proc.Child, port: int, ours: bool) -> None:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if child.popen.poll() is not None:
                raise CaseFailed(f"the server ended:\n{child.complaint()}")
            if self._neat_listens(port) if ours else _kernel_listens(child.pid, port):
                return
            time.sleep(0.01)
        raise CaseFailed(f"the server does not listen:\n{child.complaint()}")

    def _neat_listens(self, port: int) -> bool:
        apps = ask(self.neat.control, {"cmd": "status"})["apps"]
        return any(p["port"] == port and p["listening"] for app in apps for p in app["ports"])

    def signal(self, number: int) -> None:
        """To every client."""
        for client in self.clients:
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.child.pid, number)

    def phase(self) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """End a phase: (what each client measured in it, failures of everybody)."""
        self.signal(signal.SIGUSR1)
        return self._answers(self.clients)

    def _answers(
        self, clients: list[Client]
    ) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        found: dict[str, dict[str, Any]] = {}
        failures = []
        everybody = (*clients, *self.servers)
        end = time.monotonic() + WAIT_S
        while len(found) < len(clients):
            for one in everybody:
                for line in one.news():
                    if "failure" in line:
                        failures.append({"who": one.name, **line})
                    else:
                        found[one.name] = line
                if one.child.popen.poll() is not None and one.name not in found:
                    raise CaseFailed(
                        f"{one.name} ended (status {one.child.popen.returncode}):\n"
                        f"{one.child.complaint(30)}"
                    )
            if time.monotonic() > end:
                raise CaseFailed(f"clients that do not answer a signal: only {list(found)} did")
            time.sleep(0.01)
        return found, failures

    def stop(self) -> None:
        """Clients first; what servers say of that is not read any more."""
        for one in (*self.clients, *self.servers):
            one.child.stop()


def _kernel_listens(pid: int, port: int) -> bool:
    """Whether somebody in the namespace of `pid` listens on `port`."""
    with contextlib.suppress(OSError):
        rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        return any(
            row.split()[1].endswith(f":{port:04X}") and row.split()[3] == LISTENS for row in rows
        )
    return False
