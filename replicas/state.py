"""What neatd knows: one instance, its replicas and applications; a copy of the keeper's store."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neatsock import abi

from .apps import App
from .clients import Connection
from .components import FILTER, IP, NAMES, Parts, cpu_s, create
from .limits import Limits
from .link import REPLICA, KeeperLink, key
from .policy import Policy
from .registry import Registry
from .uplink import Queue, Uplink

LIB = abi.lib


MODES = {"stateless": LIB.NEAT_STATELESS, "stateful": LIB.NEAT_STATEFUL}
DEATHS = ("none", "outside", "fault", "hang")  # enum neat_death


@dataclass(frozen=True)
class Options:
    """The command line, see neatsock/instance.py."""

    directory: Path
    name: str
    replicas: int
    spin_us: int
    batch: int
    time_wait_ms: int
    auto: bool
    uplink: Uplink | None = None
    mode: str = "stateful"
    replicas_max: int = 0  # room for so many; 0 = as many as there are
    policy: Policy | None = None  # None: scaled by hand only
    pin: bool = False
    components: str = "single"
    limits: Limits = Limits()
    asked: dict[str, Any] = field(default_factory=dict)  # by the names of StartOptions

    @property
    def socket_path(self) -> Path:
        return self.directory / f"{self.name}.sock"


@dataclass(frozen=True)
class Health:
    """What the keeper counts of a replica: struct neat_msg_health."""

    restarts: int = 0
    death: int = 0
    wait_status: int = 0
    recovery_us: int = 0
    strikes: int = 0
    strikes_end_ms: int = 0
    flags: int = 0
    generation: int = 0

    @classmethod
    def of(cls, inner: bytes) -> Health:
        m = abi.unpack("struct neat_msg_health", inner)
        return cls(
            int(m.restarts),
            int(m.death),
            int(m.status),
            int(m.recovery_us),
            int(m.strikes),
            int(m.strikes_end_ms),
            int(m.flags),
            int(m.generation),
        )

    @property
    def cause(self) -> str | None:
        """What ended the predecessor, for people."""
        if self.death == LIB.NEAT_DEATH_NONE:
            return None
        if os.WIFSIGNALED(self.wait_status):
            number = os.WTERMSIG(self.wait_status)
            try:
                return signal.Signals(number).name
            except ValueError:
                return f"signal {number}"
        return f"exit {os.WEXITSTATUS(self.wait_status)}"

    @property
    def last_death(self) -> str | None:
        if self.flags & LIB.NEAT_HEALTH_PLANNED:
            return "planned"
        return DEATHS[self.death] if self.death else None

    def status(self, now: float) -> dict[str, Any]:
        """Members of `neatsock status`; `now` as time.monotonic()."""
        return {
            "restarts": self.restarts,
            "last_death": self.last_death,
            "last_death_cause": self.cause,
            "recovery_ms": self.recovery_us / 1000 if self.recovery_us else None,
            "strikes": self.strikes if now * 1000 < self.strikes_end_ms else 0,
            "adopted": bool(self.flags & LIB.NEAT_HEALTH_ADOPTS),
            "fell_back": bool(self.flags & LIB.NEAT_HEALTH_FELL_BACK),
            "build": "quarantine" if self.flags & LIB.NEAT_HEALTH_QUARANTINE else "normal",
            "generation": self.generation,
        }


@dataclass
class Replica:
    index: int
    status: abi.Object
    status_ro: int
    pid: int = 0
    epoch: int = 0
    ready: bool = False
    health: Health = Health()
    parts: Parts = field(default_factory=Parts)
    wanted: bool = False  # runs, or is on its way
    draining: bool = False  # takes nothing new, ends with its last connection
    announced: bool = False  # was ready since it is wanted: the NIC gives it connections

    @property
    def state(self) -> str:
        if not self.wanted:
            return "gone"
        if self.draining:
            return "draining"
        if self.ready and self.parts.ready:
            return "ready"
        return "starting" if self.pid else "dead"

    @property
    def serving(self) -> bool:
        """Takes new connections, or will."""
        return self.wanted and not self.draining

    @property
    def connections(self) -> int:
        return int(self.status.at.connections.v)

    @property
    def work_s(self) -> tuple[float, ...]:
        """Seconds in which each of its processes had something to do."""
        pages = self.status, *(component.status for component in self.parts.components.values())
        return tuple(int(page.at.work_ns.v) / 1e9 for page in pages)

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far; 0 when none is running."""
        parts = self.parts.components.values()
        return cpu_s(self.pid) + sum(cpu_s(component.pid) for component in parts)

    @property
    def filter_role(self) -> int:
        """Which of its processes has the rules of the packet filter."""
        return FILTER if self.parts.components else REPLICA

    @property
    def filter_status(self) -> abi.Object:
        return self.parts.components[FILTER].status if self.parts.components else self.status


@dataclass
class State:
    options: Options
    link: KeeperLink
    registry: Registry
    registry_ro: int
    instance: int
    replicas: list[Replica]
    apps: dict[int, App] = field(default_factory=dict)
    connections: dict[tuple[int, int], Connection] = field(default_factory=dict)
    next_app: int = 1
    nic_pid: int | None = None
    nic_error: tuple[int, str] | None = None  # (pid of the NIC that said it, what is wrong)
    standby_pid: int | None = None

    def running(self) -> list[Replica]:
        """Those that have a process, or will: draining ones included."""
        return [replica for replica in self.replicas if replica.wanted]

    def process_connection(self, app_id: int, index: int) -> Connection | None:
        return self.connections.get((app_id, index))


def new_status(index: int, instance: int) -> abi.Object:
    return abi.Object.create("struct neat_replica_status", LIB.NEAT_OBJ_STATUS, index, instance)


def replica_of(index: int, status: abi.Object) -> Replica:
    return Replica(index, status, abi.read_only(status.fd))


def new_arena() -> int:
    """The replica's control blocks; sparse, no header: only the replica looks inside."""
    return abi.sealed_memory("arena", 1 << 30)


def replica_spin_us(options: Options, index: int) -> int:
    """Components that spin would take each other the core, unless there is one for each."""
    processes = max(options.replicas, index + 1) * (1 + len(NAMES))
    few = options.components == "multi" and len(os.sched_getaffinity(0)) <= processes
    return 0 if few else options.spin_us


def start_replica(
    link: KeeperLink, options: Options, boot: dict[str, Any], registry: Registry, index: int
) -> Replica:
    """Store R_CONFIG, the first message of all. The arena stays with the keeper alone."""
    status, arena = new_status(index, boot["instance"]), new_arena()
    inner = abi.pack(
        "struct neat_msg_r_config",
        LIB.NEAT_MSG_R_CONFIG,
        index=index,
        spin_us=replica_spin_us(options, index),
        batch=options.batch,
        time_wait_ms=options.time_wait_ms,
        app_sockets=options.limits.app_sockets,
        app_buffers_kib=options.limits.app_buffers_mib << 10,
        mode=MODES[options.mode],
        instance=boot["instance"],
        secret=bytes.fromhex(boot["secret"]),
    )
    fds = [arena, status.fd, registry.page.fd]
    replica = replica_of(index, status)
    if options.components == "multi":
        replica.parts = create(link, index, boot["instance"], inner, fds)
    else:
        link.store(REPLICA, index, key(LIB.NEAT_MSG_R_CONFIG), inner, fds)
    os.close(arena)
    return replica


def store_queue(link: KeeperLink, options: Options, index: int, queue: Queue) -> None:
    """Store R_QUEUE: before any segment, because the stack is made with the address in it."""
    role = IP if options.components == "multi" else REPLICA
    inner = abi.pack("struct neat_msg_header", LIB.NEAT_MSG_R_QUEUE)
    fds = [queue.memory, queue.doorbell]
    link.store(role, index, key(LIB.NEAT_MSG_R_QUEUE), inner, fds)
