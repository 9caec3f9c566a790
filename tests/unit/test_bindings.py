"""Listeners whose neatd died while a replica had not answered (replicas/bindings.py): what its
successor makes of the keeper's store and of the registry page."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from neatsock import abi
from replicas.bindings import Bindings
from replicas.registry import Registry

APP, SOCK, GEN, PORT = 7, 3, 5, 8080
HANDLE = GEN << 16 | SOCK
KEY = (socket.IPPROTO_TCP, 0, PORT)
BIND = {
    "app": APP, "number": SOCK, "gen": GEN, "uid": 0, "proto": KEY[0], "addr": KEY[1], "port": PORT,
    "reuseaddr": False, "reuseport": False, "listening": True, "backlog": 8, "home": 0,
}  # fmt: skip


class Clock:
    """The part of an event loop that Bindings uses; nothing runs out by itself."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def call_later(self, _seconds: float, act: Callable[..., None], *args: Any) -> Any:
        self.timers.append(lambda: act(*args))
        return SimpleNamespace(cancel=lambda: None)


def listener(replica_slot: int, status: int = 0) -> bytes:
    """A stored R_LISTEN, or the answer to it: slot 0 = the replica has not answered."""
    return abi.pack(
        "struct neat_msg_r_listen", abi.lib.NEAT_MSG_R_LISTEN,
        app_id=APP, port=PORT, backlog=8, sock=HANDLE, slot=replica_slot, gen=1, status=status,
    )  # fmt: skip


class Successor:
    """A neatd that has read the store: replica 0 has the listener, replica 1 was asked for it."""

    def __init__(self, published: int, answered: tuple[int, ...]) -> None:
        before = Registry.create(1)
        before.hold(KEY)
        before.set_mask(KEY, published)
        self.registry = Registry.adopt(before.page.fd)
        self.clock = Clock()
        self.orders: list[bytes] = []
        replicas = [SimpleNamespace(index=0), SimpleNamespace(index=1)]
        link = SimpleNamespace(
            remember=lambda *args, **kwargs: None,
            drop=lambda *args: None,
            forget=lambda *args: None,
            send=lambda role, index, data: self.orders.append(data),
            store=lambda role, index, key, data: self.orders.append(data),
        )
        state: Any = SimpleNamespace(
            registry=self.registry, replicas=replicas, apps={}, link=link, running=lambda: replicas
        )
        loop: Any = self.clock
        self.bindings = Bindings(state, loop)
        self.bindings.recover(BIND, [])
        for replica in (0, 1):
            self.bindings.recover_listener(replica, listener(9 if replica in answered else 0))
        self.bindings.recovered()

    @property
    def mask(self) -> int:
        """Replicas that a connect() may choose, 0 = the port is bound only."""
        entry = next(e for e in self.registry.at.ports if e.port == PORT)
        assert bool(entry.mask.v) == self.registry.listening(KEY)
        return int(entry.mask.v)

    @property
    def listening(self) -> bool:
        return bool(self.bindings.ports_of(APP)[0]["listening"])


def test_a_port_in_use_stays_published_while_a_new_replica_has_not_answered() -> None:
    after = Successor(published=0b01, answered=(0,))
    assert after.mask == 0b01
    assert after.listening
    assert not after.clock.timers  # nobody waits, so nothing can be too late
    after.bindings.acknowledged(1, listener(4))
    assert after.mask == 0b11


def test_a_new_replica_that_refuses_is_told_of_and_takes_nothing_away() -> None:
    after = Successor(published=0b01, answered=(0,))
    refused: list[int] = []
    after.bindings.refused = refused.append
    after.bindings.acknowledged(1, listener(0, -28))
    assert refused == [1]
    assert after.mask == 0b01


def test_of_two_listeners_for_one_socket_the_program_does_not_know_one_goes() -> None:
    """The replica stood still until listen() had failed, then found the next try as well."""
    after = Successor(published=0b01, answered=(0,))
    after.bindings.acknowledged(1, listener(4))
    after.bindings.acknowledged(1, listener(4))  # said twice
    assert not after.orders
    after.bindings.acknowledged(1, listener(5))
    order = abi.unpack("struct neat_msg_r_listen", after.orders.pop())
    assert (order.h.type, order.slot) == (abi.lib.NEAT_MSG_R_UNLISTEN, 4)
    assert not after.orders
    assert after.mask == 0b11


@pytest.mark.parametrize("closed", [False, True])
def test_a_listener_that_a_successor_cannot_find_is_installed_anew(closed: bool) -> None:
    """A replica that ran wild wrote over its words. Unless the program has closed it meanwhile."""
    after = Successor(published=0b11, answered=(0, 1))
    nudged: list[bool] = []
    after.bindings.nudge = lambda: nudged.append(True)
    after.bindings.acknowledged(1, listener(0, -errno.ESTALE))
    assert after.mask == 0b01  # nobody is sent where the listener is not
    if closed:
        after.bindings.release(after.bindings.table[APP, SOCK])
        after.orders.clear()
    after.clock.timers.pop()()
    if closed:
        assert not after.orders
        return
    assert [abi.unpack("struct neat_msg_r_listen", o).slot for o in after.orders] == [0]
    assert not nudged
    after.bindings.acknowledged(1, listener(4))
    assert after.mask == 0b11
    assert nudged  # who sleeps in accept() listens to the old slot


@pytest.mark.parametrize("answered", [(), (0,)], ids=["none", "one"])
def test_a_port_that_is_not_in_use_waits_for_all_answers(answered: tuple[int, ...]) -> None:
    after = Successor(published=0, answered=answered)
    for replica in {0, 1} - set(answered):
        assert after.mask == 0
        assert not after.listening
        after.bindings.acknowledged(replica, listener(4))
    assert after.mask == 0b11
    assert after.listening


def test_and_fails_if_one_never_comes() -> None:
    after = Successor(published=0, answered=(0,))
    after.clock.timers.pop()()
    assert after.mask == 0
    assert not after.listening
    assert [abi.unpack("struct neat_msg_r_listen", o).slot for o in after.orders] == [9]


def test_a_port_in_use_with_all_answers_is_published_as_it_was() -> None:
    after = Successor(published=0b11, answered=(0, 1))
    assert after.mask == 0b11
    assert not after.clock.timers
