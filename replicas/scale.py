"""Replicas come and go while connections go on (paper 6.3.4, contract L8).

A replica is started with all listeners in it; once it is ready the programs are told to look, the
NIC gives it new connections, and the registry page names it. One that drains takes nothing new,
keeps its listeners and connections, and ends by itself with the last of them; until then it can be
had back.

What is decided is stored before it is done, so that a neatd that takes over goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from neatsock import abi

from .bindings import Bindings
from .components import spawn
from .link import NIC, REPLICA, key
from .policy import Memory, decide, spread
from .report import log
from .state import Replica, State

LIB = abi.lib


def mask(replicas: Iterable[Replica]) -> int:
    return sum(1 << replica.index for replica in replicas)


class Scaler:
    def __init__(
        self, state: State, bindings: Bindings, gone: Callable[[int], None], again: bool
    ) -> None:
        self.state = state
        self.bindings = bindings
        self.gone = gone  # a replica has ended: nobody waits for it any more
        self.draining: Callable[[], None] = lambda: None  # other replicas drain than before
        self.at_nic: int | None = None
        if not again:
            self._remember()

    # ---- how many ----

    def serving(self) -> list[Replica]:
        return [replica for replica in self.state.replicas if replica.serving]

    def scale_to(self, count: int) -> None:
        """As many replicas that take new connections; at least one."""
        serving = self.serving()
        for _ in range(count - len(serving)):
            self._add()
        # Who has least to carry to its end goes first.
        serving.sort(key=lambda replica: (replica.connections, -replica.index))
        for replica in serving[: max(0, len(serving) - max(count, 1))]:
            self._drain(replica)

    def _add(self) -> None:
        draining = [replica for replica in self.state.replicas if replica.draining]
        if draining:
            self._undrain(max(draining, key=lambda replica: replica.connections))
        else:
            self._start(next(r for r in self.state.replicas if not r.wanted))

    def _start(self, replica: Replica) -> None:
        replica.wanted, replica.draining, replica.announced = True, False, False
        self._remember()
        self.bindings.install(replica.index)
        self.state.registry.set_replicas(mask(self.state.running()))
        spawn(self.state.link, replica.index, replica.parts)

    def _drain(self, replica: Replica) -> None:
        replica.draining = True
        self._remember()
        self.update()
        self._tell_to_drain(replica)
        self.draining()

    def _tell_to_drain(self, replica: Replica) -> None:
        at, order = key(LIB.NEAT_MSG_R_DRAIN), self._order(True)
        self.state.link.store(REPLICA, replica.index, at, order)

    def resume(self, told: set[int]) -> None:
        """After a restart: what a predecessor remembered, and told neither programs nor replica.

        Whether it had taken back an order to drain nobody knows: it is taken back once more.
        """
        self.state.registry.set_replicas(mask(self.state.running()))
        for replica in self.state.running():
            if replica.draining and replica.index not in told:
                self._tell_to_drain(replica)
            elif replica.serving and replica.index in told:
                self._undrain(replica)
            elif replica.serving:
                self.state.link.send(REPLICA, replica.index, self._order(False))

    def _undrain(self, replica: Replica) -> None:
        """Takes part again when it says so (R_READY): it may be ending just now."""
        replica.draining, replica.ready = False, False
        self._remember()
        self.state.link.drop(REPLICA, replica.index, key(LIB.NEAT_MSG_R_DRAIN))
        self.state.link.send(REPLICA, replica.index, self._order(False))
        self.draining()

    @staticmethod
    def _order(drain: bool) -> bytes:
        return abi.pack("struct neat_msg_result", LIB.NEAT_MSG_R_DRAIN, value=drain)

    def _remember(self) -> None:
        every = self.state.replicas
        self.state.link.remember(
            "scale",
            wanted=mask(self.state.running()),
            draining=mask(r for r in every if r.draining),
            announced=mask(r for r in every if r.announced),
        )

    # ---- news ----

    def started(self, replica: Replica) -> None:
        if self.state.options.pin and replica.pid:
            cpus = sorted(os.sched_getaffinity(0))
            with contextlib.suppress(OSError):  # gone already
                os.sched_setaffinity(replica.pid, {spread(cpus, replica.index)})

    def ready(self, replica: Replica) -> None:
        """The process with its sockets is ready, or, after that one, its components are."""
        replica.ready = True
        if replica.serving and not replica.announced and replica.parts.ready:
            replica.announced = True
            self._remember()
            self.nudge()
        self.update()

    def nudge(self) -> None:
        """Programs that sleep do not listen to a new replica yet: the others wake them."""
        self.state.registry.scaled()
        inner = abi.pack("struct neat_msg_header", LIB.NEAT_MSG_R_NUDGE)
        for replica in self.state.running():
            self.state.link.send(REPLICA, replica.index, inner)

    def refused(self, replica: int) -> None:
        """It could not take a listener that the others have: connections to it would be refused."""
        at = self.state.replicas[replica]
        if at.serving and not at.announced:
            log(f"replica {replica} cannot take all listeners")
            self._drain(at)

    def drained(self, replica: Replica) -> None:
        """R_DRAINED: it has ended. The keeper does not start it again, and may say so twice."""
        if not replica.wanted:
            return
        again = replica.serving  # it was wanted back at the same moment
        # Its program was about to open a socket that neatd had given this home.
        late = not again and self.bindings.at_home(replica.index)
        replica.wanted = replica.draining = replica.ready = replica.announced = False
        self.state.link.drop(REPLICA, replica.index, key(LIB.NEAT_MSG_R_DRAIN))
        self.bindings.forget(replica.index)
        self.gone(replica.index)
        self.state.registry.set_replicas(mask(self.state.running()))
        self.nudge()  # who asked it for something goes elsewhere
        self.update()
        self._remember()
        if again or late:
            self._start(replica)
        if late:
            self._drain(replica)

    def update(self) -> None:
        """Who takes new connections: for programs, and for the NIC."""
        serving, registry = self.serving(), self.state.registry
        active = mask(replica for replica in serving if replica.ready and replica.announced)
        # Nobody is ready: a connect() then waits for a successor.
        active = active or registry.active() & mask(serving) or mask(serving)
        if active != registry.active():
            registry.set_active(active)
        # A replica that is being replaced stays: the NIC holds its frames back.
        announced = mask(replica for replica in serving if replica.announced)
        if self.state.options.uplink is not None and announced and announced != self.at_nic:
            self.at_nic = announced
            order = abi.pack("struct neat_msg_n_queue", LIB.NEAT_MSG_N_ACTIVE, replica=announced)
            self.state.link.store(NIC, 0, key(LIB.NEAT_MSG_N_ACTIVE), order)


def recall(replica: Replica, remembered: dict[str, Any] | None, count: int) -> None:
    """What a predecessor's Scaler remembered of a replica; of the first `count` if there was none.

    Who was announced stays so: a replica that is being replaced just now keeps its share of the
    NIC's indirection table, and its local ports.
    """
    everybody = (1 << count) - 1
    known = remembered or {"wanted": everybody, "draining": 0, "announced": everybody}
    replica.wanted, replica.draining, replica.announced = (
        bool(known[what] >> replica.index & 1) for what in ("wanted", "draining", "announced")
    )


class Automatic:
    """Follows the load (`neatsock up --scale auto`)."""

    def __init__(self, scaler: Scaler, loop: asyncio.AbstractEventLoop) -> None:
        self.scaler = scaler
        self.loop = loop
        self.policy = scaler.state.options.policy
        self.memory = Memory()
        # Replica -> (epoch, seconds at work of each of its processes).
        self.worked: dict[int, tuple[int, tuple[float, ...]]] = {}
        self.looked = loop.time()
        if self.policy is not None:
            loop.call_later(self.policy.period_s, self._look)

    def _loads(self) -> list[float]:
        """Share of the last period in which each replica had work; a new one is not counted yet.

        Of several processes the one with most work counts: the others cannot do it.
        """
        loads, before = [], self.worked
        elapsed = max(self.loop.time() - self.looked, 1e-3)
        self.looked += elapsed
        self.worked = {r.index: (r.epoch, r.work_s) for r in self.scaler.serving()}
        for index, (epoch, seconds) in self.worked.items():
            was = before.get(index)
            if was is None or was[0] != epoch:
                return []
            most = max(now - then for now, then in zip(seconds, was[1], strict=True))
            loads.append(max(0.0, most) / elapsed)
        return loads

    def _look(self) -> None:
        assert self.policy is not None
        loads = self._loads()
        if loads:
            count, self.memory = decide(self.policy, self.memory, loads)
            if count != len(loads):
                self.scaler.scale_to(count)
        self.loop.call_later(self.policy.period_s, self._look)
