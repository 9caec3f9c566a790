"""What one application may hold of what all share; docs/decisions.md 52 has the reasons.

Control blocks, request slots and buffers are the replicas' to give (stack/tcp_share.c); here is
what neatd gives: places in the instance, ports, connections to the control socket.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from neatsock import abi
from neatsock.ranges import APPS_MOST

ATTACHED_MOST = 64  # applications of one process: exec may leave some behind for a moment
CONNECTIONS_MOST: int = 2 * abi.lib.NEAT_PROCS_MAX  # control connections of one application
UNUSED_MOST = 128  # control connections of one process that has not attached over them
HOLDS_MOST = 1024  # processes that `neatsock run` has announced and that still live
SILENT_MOST = 512  # control connections over which nobody said anything yet


@dataclass(frozen=True)
class Limits:
    """The command line, see neatsock/cli.py."""

    apps_max: int = APPS_MOST
    app_sockets: int = 0  # in each replica; 0: as many as are left for others
    app_ports: int = 1024
    app_buffers_mib: int = 0  # in each replica

    def status(self) -> dict[str, Any]:
        # Nobody has 0 sockets: None is as many as are left.
        return asdict(self) | {"app_sockets": self.app_sockets or None}


def default_buffers_mib(replicas: int) -> int:
    """As where Linux begins to feel pressure (tcp_mem): a 16th of the memory, for all replicas."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(memory // 16 // replicas >> 20, 8)
