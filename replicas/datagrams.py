"""UDP ports (contract L9): whose they are, and which replica is their home.

The kernel has arbitrated before neatd hears of a port: the program's descriptor is a kernel socket
bound to it (the twin), which comes along as the proof.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterable

from neatsock import abi

from .link import NIC, KeeperLink, key
from .ports import Claim

LIB = abi.lib
SEVERAL = 0xFFFFFFFF  # neat_port_entry.owner
SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>, Linux 5.14


def check_twin(twin: int, addr: int, port: int) -> int:
    """0 if `twin` is a UDP socket bound to addr:port, else an errno."""
    with socket.socket(fileno=os.dup(twin)) as sock:
        if sock.family != socket.AF_INET or sock.type != socket.SOCK_DGRAM:
            return errno.EPROTOTYPE
        held = sock.getsockname()
    address = int.from_bytes(socket.inet_aton(held[0]), "big")
    return 0 if port and (address, held[1]) == (addr, port) else errno.EACCES


def elsewhere(twin: int) -> bool:
    """The twin is in another network namespace: its kernel did not see our other sockets."""
    with socket.socket(fileno=os.dup(twin)) as theirs, socket.socket() as ours:
        cookies = {s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) for s in (theirs, ours)}
    return len(cookies) == 2


def choose_home(wanted: int | None, active: int, homes: Iterable[int]) -> int:
    """The replica that was asked for if it takes new sockets, else the one with the fewest."""
    candidates = [i for i in range(LIB.NEAT_REPLICAS_MAX) if active >> i & 1]
    if wanted in candidates:
        assert wanted is not None
        return wanted
    load = Counter(homes)
    return min(candidates, key=lambda i: load[i], default=0)


def owner_of(claims: Iterable[Claim]) -> int:
    """Who may open a port that these sockets hold (SO_REUSEPORT: several may)."""
    apps = {claim.app_id for claim in claims}
    return apps.pop() if len(apps) == 1 else SEVERAL


def steer(link: KeeperLink, port: int, home: int | None) -> None:
    """Exact filter of the NIC; None: the port is nobody's any more."""
    at = key(LIB.NEAT_MSG_N_PORT, 0, port)
    replica = LIB.NEAT_PORT_NO_HOME if home is None else home
    inner = abi.pack("struct neat_msg_n_port", LIB.NEAT_MSG_N_PORT, replica=replica, port=port)
    if home is None:
        link.drop(NIC, 0, at)
        link.send(NIC, 0, inner)
    else:
        link.store(NIC, 0, at, inner)
