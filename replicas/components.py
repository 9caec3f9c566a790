"""Replicas of several processes (paper 6.3.8): ip, udp and filter beside the one with the sockets.

The keeper starts and restarts each by itself; here are their messages, which it stores. A component
knows its replica, its queue pairs and the page on which ip says what others must know of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neatsock import abi

from .link import REPLICA, KeeperLink, News, key

LIB = abi.lib
IP: int = LIB.NEAT_ROLE_IP
UDP: int = LIB.NEAT_ROLE_UDP
FILTER: int = LIB.NEAT_ROLE_FILTER
NAMES = {IP: "ip", UDP: "udp", FILTER: "filter"}
# (further from the wire, nearer to it): each pair of processes that exchange packets.
PAIRS = ((FILTER, IP), (REPLICA, FILTER), (UDP, FILTER), (REPLICA, UDP))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 when it is not running."""
    try:
        run_ns = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]
    except (OSError, IndexError):
        return 0.0
    return int(run_ns) / 1e9


@dataclass
class Component:
    role: int
    status: abi.Object
    pid: int = 0
    epoch: int = 0
    ready: bool = False

    def report(self) -> dict[str, Any]:
        """Member of `neatsock status`."""
        state = "ready" if self.ready else "starting" if self.pid else "dead"
        return {
            "name": NAMES[self.role],
            "pid": self.pid or None,
            "state": state,
            "epoch": self.epoch,
            "packets": int(self.status.at.segments_in.v),
            "drops": int(self.status.at.drops.v),
            "cpu_s": round(cpu_s(self.pid), 6),
        }


@dataclass
class Parts:
    """What a replica has beside the process with its sockets; empty when it is one process."""

    components: dict[int, Component] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return all(component.ready for component in self.components.values())

    def on_news(self, item: News) -> None:
        component = self.components[item.role]
        if item.kind == LIB.NEAT_MSG_K_STARTED:
            component.pid, component.epoch, component.ready = (
                item.pid,
                item.epoch,
                bool(item.status),
            )
        elif item.kind == LIB.NEAT_MSG_K_DIED:
            component.pid, component.ready = 0, False
        elif item.kind == LIB.NEAT_MSG_K_FROM:
            if abi.header(item.inner).type == LIB.NEAT_MSG_R_READY:
                component.ready = True


@contextlib.contextmanager
def _pairs(index: int, instance: int) -> Iterator[dict[tuple[int, int], int]]:
    """New queue pairs of one replica."""
    made = {
        pair: abi.memory_file(
            "struct neat_queue_pair",
            LIB.NEAT_OBJ_QUEUE_PAIR,
            index,
            instance,
            LIB.NEAT_QP_SIZE,
        )
        for pair in PAIRS
    }
    try:
        yield made
    finally:
        for fd in made.values():
            os.close(fd)


def store_peers(link: KeeperLink, index: int, role: int, pairs: dict[tuple[int, int], int]) -> None:
    for (upper, lower), fd in pairs.items():
        if role not in (upper, lower):
            continue
        other = lower if role == upper else upper
        inner = abi.pack(
            "struct neat_msg_r_peer", LIB.NEAT_MSG_R_PEER, role=other, upper=role == upper
        )
        link.store(role, index, key(LIB.NEAT_MSG_R_PEER, 0, other), inner, [fd])


def create(link: KeeperLink, index: int, instance: int, config: bytes, fds: list[int]) -> Parts:
    """Store all messages of a new replica and its components.

    `config` and `fds` {arena, status, registry}: R_CONFIG of the process with the sockets, whose
    messages come last: a replica whose R_PEERs are stored is whole.
    """
    shared = abi.Object.create("struct neat_snapshot", LIB.NEAT_OBJ_SNAPSHOT, index, instance)
    parts, page = Parts(), abi.read_only(shared.fd)
    with _pairs(index, instance) as pairs:
        for role in NAMES:
            status = abi.Object.create(
                "struct neat_replica_status", LIB.NEAT_OBJ_STATUS, index, instance
            )
            mine = [status.fd, status.fd, fds[2], *([shared.fd] if role == IP else [])]
            link.store(role, index, key(LIB.NEAT_MSG_R_CONFIG), config, mine)
            store_peers(link, index, role, pairs)
            parts.components[role] = Component(role, status)
        link.store(REPLICA, index, key(LIB.NEAT_MSG_R_CONFIG), config, [*fds, page])
        store_peers(link, index, REPLICA, pairs)
    os.close(page)
    shared.close()
    return parts


def recover(store: list[News]) -> dict[int, Parts]:
    """Components that a predecessor stored, by replica; takes their descriptors."""
    found: dict[int, Parts] = {}
    for item in store:
        if item.role not in NAMES:
            continue
        parts = found.setdefault(item.index, Parts())
        if item.key >> 48 == LIB.NEAT_MSG_R_CONFIG:
            fd = item.fds[1]
            status = abi.Object("struct neat_replica_status", fd, os.fstat(fd).st_size)
            parts.components[item.role] = Component(item.role, status)
            item.fds = [other for other in item.fds if other != fd]
        item.close()
    return found


def spawn(link: KeeperLink, index: int, parts: Parts) -> None:
    """Run a replica; the keeper starts its sockets' process once ip has filled in its page."""
    for role in parts.components:
        link.spawn(role, index)
    link.spawn(REPLICA, index)
