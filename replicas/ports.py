"""Who may have which port: pure decisions, the rules of Linux.

Addresses are IPv4 in host order, 0 = any. An answer is an errno (0 = granted).
"""

from __future__ import annotations

import errno
import mmap
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

LOOPBACK_NET = 127 << 24
LOOPBACK_MASK = 0xFF000000
QUARANTINE_SIZE = 8 << 16  # a double for each port


@dataclass(frozen=True)
class Claim:
    """A socket that holds, or wants, a port."""

    app_id: int
    sock: int
    gen: int
    uid: int
    proto: int
    addr: int
    port: int
    reuseaddr: bool
    reuseport: bool
    listening: bool = False

    @property
    def owner(self) -> tuple[int, int]:
        return self.app_id, self.sock


def overlap(a: Claim, b: Claim) -> bool:
    """Both want the same port of the same protocol on an address in common."""
    same_port = a.proto == b.proto and a.port == b.port
    return same_port and (a.addr == b.addr or a.addr == 0 or b.addr == 0)


def may_share(wanted: Claim, held: Claim) -> bool:
    """socket(7): SO_REUSEPORT on both, of one user; or SO_REUSEADDR on both and held no listener.

    Linux asks again at listen(): of two bound sockets the first to listen wins.
    """
    if wanted.reuseport and held.reuseport and wanted.uid == held.uid:
        return True
    return wanted.reuseaddr and held.reuseaddr and not held.listening


def conflict(wanted: Claim, held: Iterable[Claim]) -> Claim | None:
    """The first holder that `wanted` cannot live with. A socket does not conflict with itself."""
    for claim in held:
        others = claim.owner != wanted.owner and overlap(claim, wanted)
        if others and not may_share(wanted, claim):
            return claim
    return None


def check_address(addr: int, ours: Iterable[int]) -> int:
    """EADDRNOTAVAIL unless `addr` is any, loopback or one of `ours`."""
    if addr == 0 or addr & LOOPBACK_MASK == LOOPBACK_NET or addr in set(ours):
        return 0
    return errno.EADDRNOTAVAIL


def check_privilege(port: int, uid: int, first_unprivileged: int) -> int:
    """EACCES for a port below ip_unprivileged_port_start, unless root asks; 0 = any port."""
    if port != 0 and port < first_unprivileged and uid != 0:
        return errno.EACCES
    return 0


@dataclass
class Quarantine:
    """Ports that were given back lately: replicas may have tuples of theirs in TIME_WAIT.

    Linux never chooses such a port for bind() to port 0, and connect() from it to the same
    destination would be EADDRNOTAVAIL; but the kernel, which chooses for us, knows only its own.
    """

    keep_s: float
    # When it ends, of each port.
    ends: array[float] | memoryview[float] = field(
        default_factory=lambda: array("d", bytes(QUARANTINE_SIZE))
    )

    def share(self, fd: int) -> None:
        """From now on in this memory, which a successor gets."""
        self.ends = memoryview(mmap.mmap(fd, QUARANTINE_SIZE)).cast("d")

    def add(self, port: int, now_s: float) -> None:
        self.ends[port] = now_s + self.keep_s

    def holds(self, port: int, now_s: float) -> bool:
        return self.ends[port] > now_s
