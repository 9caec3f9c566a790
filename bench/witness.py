"""Programs whose connections tell what a fault did to whom: which connection, of which replica."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from bench import proc
from bench.build import load_program
from bench.errors import CaseFailed
from bench.peers import PEER, Namespace, Where, on_instance
from bench.worlds import Neat
from neatsock.abi import ffi, lib
from neatsock.instance import ask

# bench/loads/held.c
ENTRY = struct.Struct("<IIiIQiIQ88s")
HEAD = 64
RELEASE, GOAL = 4, 32  # offsets in an entry
CLOSED, BROKEN = 0, 5
START_S = 30.0
SOCK_CONNECT = lib.NEAT_SOCK_CONNECT


@dataclass(frozen=True)
class Connection:
    """An entry of a client's table, as it was when somebody looked."""

    client: int
    number: int
    state: int
    fd: int
    opened: int
    rounds: int
    err: int
    wrong: bool
    what: str

    @property
    def broken(self) -> bool:
        return self.state == BROKEN


class Client:
    """A running `held` on the instance."""

    def __init__(self, index: int, name: str, child: proc.Child, table: Path, size: int) -> None:
        self.index = index
        self.name = name
        self.child = child
        self.size = size
        deadline = time.monotonic() + START_S
        while not table.exists() or table.stat().st_size < HEAD + size * ENTRY.size:
            self.alive()
            if time.monotonic() > deadline:
                raise CaseFailed(f"{name} does not start:\n{child.complaint()}")
            time.sleep(0.005)
        with table.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.app = 0
        self.row = 0
        self.mem = -1

    def alive(self) -> None:
        if self.child.popen.poll() is not None:
            raise CaseFailed(
                f"{self.name} ended (status {self.child.popen.returncode}):\n"
                f"{self.child.complaint()}"
            )

    @property
    def turns(self) -> int:
        """Grows as long as the program's loop runs."""
        return int(struct.unpack_from("<I", self.memory, 4)[0])

    def look(self) -> list[Connection]:
        """Its connections, now."""
        found = []
        for i in range(self.size):
            state, _, fd, opened, rounds, err, wrong, _, what = ENTRY.unpack_from(
                self.memory, HEAD + i * ENTRY.size
            )
            text = what.partition(b"\0")[0].decode(errors="replace")
            found.append(
                Connection(self.index, i, state, fd, opened, rounds, err, bool(wrong), text)
            )
        return found

    def glance(self, goals: list[int]) -> tuple[bool, bool]:
        """(a connection broke, one has had fewer answers than its goal says)."""
        entries = ENTRY.iter_unpack(self.memory[HEAD : HEAD + self.size * ENTRY.size])
        rows = [(entry[0], entry[4]) for entry in entries]
        broken = any(state == BROKEN for state, _ in rows)
        return broken, any(rounds < goal for (_, rounds), goal in zip(rows, goals, strict=True))

    def release(self, number: int) -> None:
        """Close the connection and open another one."""
        struct.pack_into("<I", self.memory, HEAD + number * ENTRY.size + RELEASE, 1)

    def go(self, number: int, goal: int) -> None:
        """The connection makes requests until `goal` were answered in all."""
        struct.pack_into("<Q", self.memory, HEAD + number * ENTRY.size + GOAL, goal)

    def _attach(self) -> bool:
        """Finds the program's table of sockets in its own memory."""
        for line in Path(f"/proc/{self.child.pid}/maps").read_text().splitlines():
            if "/memfd:neat-app " in line:
                self.app = int(line.split("-")[0], 16)
        if not self.app:
            return False
        self.mem = os.open(f"/proc/{self.child.pid}/mem", os.O_RDONLY)
        at, size = ffi.offsetof("struct neat_app", "procs"), ffi.sizeof("struct neat_proc")
        for i in range(lib.NEAT_PROCS_MAX):
            state, pid = struct.unpack("<II", os.pread(self.mem, 8, self.app + at + i * size))
            if state == lib.NEAT_PROC_LIVE and pid == self.child.pid:
                self.row = self.app + lib.NEAT_APP_FDS + i * lib.NEAT_FDS_MAX * 8
        return bool(self.row)

    def replica_of(self, fd: int) -> int | None:
        """Where the connection behind `fd` is; None while it is nowhere."""
        if fd < 0 or (not self.row and not self._attach()):
            return None
        with contextlib.suppress(OSError):
            (word,) = struct.unpack("<Q", os.pread(self.mem, 8, self.row + fd * 8))
            sock = word & 0xFFFFFFFF
            if not sock:
                return None
            size, at = ffi.sizeof("struct neat_sock"), ffi.offsetof("struct neat_app", "socks")
            record = os.pread(self.mem, size, self.app + at + sock * size)
            (state,) = struct.unpack_from("<I", record)
            offset = ffi.offsetof("struct neat_sock", "replica")
            if state == SOCK_CONNECT:
                return int(struct.unpack_from("<I", record, offset)[0])
        return None

    def close(self) -> None:
        if self.mem >= 0:
            os.close(self.mem)
        self.memory.close()


class Server:
    """A running `verify serve`; what it says of wrong bytes counts."""

    def __init__(self, name: str, child: proc.Child, workers: int) -> None:
        """Blocks until its workers run. CaseFailed if they do not."""
        self.name = name
        self.child = child
        self.lines = 0
        self.family: list[int] = []
        deadline = time.monotonic() + START_S
        while len(found := proc.tree([child.pid])) < workers:
            if child.popen.poll() is not None or time.monotonic() > deadline:
                raise CaseFailed(f"{name} does not start:\n{child.complaint()}")
            time.sleep(0.005)
        self.family = [os.pidfd_open(pid) for pid in found]

    def wrong(self) -> list[str]:
        """New complaints about bytes that nobody sent."""
        whole = [x for x in self.child.stdout().splitlines(keepends=True) if x.endswith("\n")]
        fresh, self.lines = whole[self.lines :], len(whole)
        return [f"{self.name}: {x.strip()}" for x in fresh if "wrong" in x or "bytes behind" in x]

    def alive(self) -> None:
        """Its workers too."""
        if select.select(self.family, [], [], 0)[0]:
            raise CaseFailed(f"{self.name} ended:\n{self.child.complaint()}")

    def close(self) -> None:
        for life in self.family:
            os.close(life)


@dataclass(frozen=True)
class Size:
    """Connections of each client."""

    lasting: int
    churning: int
    blocking: int

    @property
    def all(self) -> int:
        return self.lasting + self.churning + self.blocking


class Witnesses:
    """Pairs of server and client; with a namespace one whose server is the kernel's."""

    def __init__(
        self, neat: Neat, net: Namespace | None, where: Path, size: Size, seed: int
    ) -> None:
        self.neat = neat
        self.where = where
        self.size = size
        self.clients: list[Client] = []
        self.servers: list[Server] = []
        ours = on_instance(neat)
        self._pair("one", ours, "127.0.0.1", "2", seed)
        self._pair("two", ours, "127.0.0.1", "1", seed + 1)
        if net:
            self._pair("wire", Where(net.prefix, {}), PEER, "1", seed + 2)

    def _pair(self, name: str, at: Where, host: str, workers: str, seed: int) -> None:
        port = str(proc.free_ports(1)[0])
        argv = [*at.prefix, load_program("verify"), "serve", port, workers]
        child = proc.start(argv, self.where, f"server-{name}", at.env)
        server = Server(f"server {name}", child, int(workers))
        self.servers.append(server)
        if at.env:
            self._listens(server, int(port))
        else:
            time.sleep(0.3)
        table = self.where / f"table-{name}"
        size = self.size
        numbers = [size.lasting, size.churning, size.blocking, seed]
        argv = [load_program("held"), host, port, str(table), *map(str, numbers)]
        child = proc.start(argv, self.where, f"client-{name}", on_instance(self.neat).env)
        self.clients.append(Client(len(self.clients), f"client {name}", child, table, size.all))

    def _listens(self, server: Server, port: int) -> None:
        deadline = time.monotonic() + START_S
        while True:
            apps = ask(self.neat.control, {"cmd": "status"}, 10)["apps"]
            if any(p["port"] == port and p["listening"] for app in apps for p in app["ports"]):
                return
            server.alive()
            if time.monotonic() > deadline:
                raise CaseFailed(f"{server.name} does not listen:\n{server.child.complaint()}")
            time.sleep(0.01)

    def alive(self) -> None:
        """CaseFailed if a program has ended."""
        for client in self.clients:
            client.alive()
        for server in self.servers:
            server.alive()

    def look(self) -> list[Connection]:
        """All connections."""
        return [c for client in self.clients for c in client.look()]

    def quiet(self, goals: dict[tuple[int, int], int]) -> bool:
        """There is nothing to do but wait: no connection broke, and one is behind its goal."""
        found = [
            client.glance([goals[client.index, i] for i in range(client.size)])
            for client in self.clients
        ]
        return not any(broken for broken, _ in found) and any(late for _, late in found)

    def replica_of(self, c: Connection) -> int | None:
        return self.clients[c.client].replica_of(c.fd)

    def turns(self) -> list[int]:
        return [client.turns for client in self.clients]

    def go(self, c: Connection, goal: int) -> None:
        self.clients[c.client].go(c.number, goal)

    def release(self, c: Connection) -> None:
        self.clients[c.client].release(c.number)

    def wrong(self) -> list[str]:
        """What servers complain of since the last call."""
        return [line for server in self.servers for line in server.wrong()]

    def name(self, c: Connection) -> str:
        return f"{self.clients[c.client].name} {c.number}"

    def children(self) -> list[proc.Child]:
        """Clients first."""
        return [client.child for client in self.clients] + [one.child for one in self.servers]

    def stop(self) -> None:
        for child in self.children():
            child.stop()
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.close()
