"""The registry page (L8): the only writer of neat_registry.

Open addressing from neat_port_hash(); a removed entry becomes TOMB while the chain goes on behind
it. `state` is stored last when an entry is made and first when it goes.
"""

from __future__ import annotations

import errno
import os

from neatsock import abi

Key = tuple[int, int, int]  # protocol, address, port


def port_hash(port: int, proto: int) -> int:
    """neat_port_hash() of ring.h."""
    entries: int = abi.lib.NEAT_REGISTRY_PORTS
    return ((port << 8 ^ proto) * 2654435761 & 0xFFFFFFFF) >> 16 & (entries - 1)


class Registry:
    """The mapped page and where each port's entry is. Counted: sockets may share an entry."""

    def __init__(self, page: abi.Object) -> None:
        self.page = page
        self.at = page.at
        self._index: dict[Key, int] = {}
        self._holders: dict[Key, int] = {}
        for i in range(abi.lib.NEAT_REGISTRY_PORTS):
            entry = self.at.ports[i]
            if entry.state.v in (abi.lib.NEAT_PORT_BOUND, abi.lib.NEAT_PORT_LISTENING):
                key = (entry.proto, entry.addr, entry.port)
                self._index[key] = i
                self._holders[key] = 0  # counted again by whoever recovers the bindings

    @classmethod
    def create(cls, instance: int) -> Registry:
        return cls(
            abi.Object.create("struct neat_registry", abi.lib.NEAT_OBJ_REGISTRY, 0, instance)
        )

    @classmethod
    def adopt(cls, fd: int) -> Registry:
        """The page that a predecessor made."""
        return cls(abi.Object("struct neat_registry", fd, os.fstat(fd).st_size))

    def changed(self) -> None:
        """After every change: cached conclusions of the libraries are dropped."""
        self.at.change.v += 1

    def addresses(self) -> list[int]:
        return [int(self.at.addrs[i].addr) for i in range(self.at.naddrs.v)]

    def active(self) -> int:
        return int(self.at.active.v)

    def set_active(self, mask: int) -> None:
        """Replicas that take new connections."""
        self.at.active.v = mask
        self.changed()

    def set_replicas(self, mask: int) -> None:
        """Replicas whose channels programs must look at."""
        self.at.replicas.v = mask
        self.scaled()

    def scaled(self) -> None:
        """Replicas, or subsockets of listeners, changed: the libraries look at both again."""
        self.at.scaled.v = int(self.at.scaled.v) + 1 & 0xFFFFFFFF
        self.changed()

    def set_epoch(self, replica: int, epoch: int) -> None:
        self.at.epoch[replica].v = epoch
        self.changed()

    def hold(self, key: Key) -> None:
        """One more socket has this port. OSError(ENOBUFS) when the page is full."""
        if key not in self._index:
            self._index[key] = self._place(key)
            self._holders[key] = 0
        self._holders[key] += 1

    def _place(self, key: Key) -> int:
        proto, addr, port = key
        first = port_hash(port, proto)
        entries: int = abi.lib.NEAT_REGISTRY_PORTS
        for step in range(entries - 1):  # one FREE entry stays: it ends every search
            i = (first + step) & (entries - 1)
            entry = self.at.ports[i]
            if entry.state.v in (abi.lib.NEAT_PORT_FREE, abi.lib.NEAT_PORT_TOMB):
                entry.mask.v = entry.also.v = 0
                entry.addr, entry.port, entry.proto = addr, port, proto
                entry.state.v = abi.lib.NEAT_PORT_BOUND
                self.changed()
                return i
        raise OSError(errno.ENOBUFS, "the registry page is full")

    def set_mask(self, key: Key, mask: int) -> None:
        """Replicas that acknowledged a listener on this port; 0 = bound only."""
        entry = self.at.ports[self._index[key]]
        lib = abi.lib
        if mask:
            entry.state.v = lib.NEAT_PORT_LISTENING
            entry.mask.v = mask
        else:
            entry.mask.v = 0
            entry.state.v = lib.NEAT_PORT_BOUND
        self.changed()

    def listening(self, key: Key) -> bool:
        """Programs may connect to it."""
        return bool(self.at.ports[self._index[key]].state.v == abi.lib.NEAT_PORT_LISTENING)

    def set_home(self, key: Key, home: int, owner: int) -> None:
        """A UDP port: the replica that receives, and the application that may open it there."""
        entry = self.at.ports[self._index[key]]
        entry.owner.v = owner
        entry.mask.v = 1 << home
        self.changed()

    def home(self, key: Key) -> int | None:
        """The replica in which a UDP port receives, as programs see it."""
        mask = int(self.at.ports[self._index[key]].mask.v)
        return mask.bit_length() - 1 if mask else None

    def also(self, key: Key) -> int | None:
        """The other replica in which sockets of a UDP port have slots while its home moves."""
        index = int(self.at.ports[self._index[key]].also.v) - 1
        return index if index >= 0 else None

    def set_also(self, key: Key, replica: int | None) -> None:
        self.at.ports[self._index[key]].also.v = 0 if replica is None else replica + 1

    def release(self, key: Key) -> None:
        """One socket less; the last one frees the entry."""
        self._holders[key] -= 1
        if self._holders[key] == 0:
            self._remove(key)

    def sweep(self) -> None:
        """After a recovery: entries that no binding named go."""
        for key in [key for key, count in self._holders.items() if count == 0]:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        i = self._index.pop(key)
        del self._holders[key]
        last = abi.lib.NEAT_REGISTRY_PORTS - 1
        free, tomb = abi.lib.NEAT_PORT_FREE, abi.lib.NEAT_PORT_TOMB
        self.at.ports[i].mask.v = self.at.ports[i].also.v = 0
        chain_ends = self.at.ports[(i + 1) & last].state.v == free
        self.at.ports[i].state.v = free if chain_ends else tomb
        # Tombs before a free entry serve nobody.
        i = (i - 1) & last
        while chain_ends and self.at.ports[i].state.v == tomb:
            self.at.ports[i].state.v = free
            i = (i - 1) & last
        self.changed()
