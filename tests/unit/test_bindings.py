"""Listeners whose neatd died while a replica had not answered (replicas/bindings.py): what its
successor makes of the keeper's store and of the registry page."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from neatsock import abi
from replicas.bindings import Bindings
from replicas.ports import QUARANTINE_SIZE, Quarantine
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

    def time(self) -> float:
        return 0.0

    def call_soon(self, act: Callable[[], None]) -> None:
        act()

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

    def __init__(
        self, published: int, answered: tuple[int, ...], asked: tuple[int, ...] = (0, 1)
    ) -> None:
        before = Registry.create(1)
        before.hold(KEY)
        before.set_mask(KEY, published)
        self.registry = Registry.adopt(before.page.fd)
        self.clock = Clock()
        self.orders: list[bytes] = []
        replicas = [SimpleNamespace(index=0), SimpleNamespace(index=1)]
        self.link = link = SimpleNamespace(
            remember=lambda *args, **kwargs: None,
            drop=lambda *args: None,
            forget=lambda *args: None,
            send=lambda role, index, data: self.orders.append(data),
            store=lambda role, index, key, data: self.orders.append(data),
        )
        state: Any = SimpleNamespace(
            registry=self.registry, replicas=replicas, apps={}, link=link, running=lambda: replicas,
            options=SimpleNamespace(time_wait_ms=60000),
        )  # fmt: skip
        loop: Any = self.clock
        self.bindings = Bindings(state, loop)
        self.bindings.recover(BIND, [])
        for replica in asked:
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
    assert {abi.unpack("struct neat_msg_r_listen", o).slot for o in after.orders} == {9}


def test_a_port_in_use_with_all_answers_is_published_as_it_was() -> None:
    after = Successor(published=0b11, answered=(0, 1))
    assert after.mask == 0b11
    assert not after.clock.timers


@pytest.mark.parametrize("published", [0b01, 0])
def test_a_new_replica_gets_the_listeners_that_a_dead_neatd_did_not_install(published: int) -> None:
    """It would refuse connections to a port that others listen on."""
    neatd = Successor(published, answered=(0,), asked=(0,))
    assert [abi.unpack("struct neat_msg_r_listen", order).slot for order in neatd.orders] == [0]
    neatd.bindings.acknowledged(1, listener(7))
    assert neatd.mask == 0b11


@pytest.mark.parametrize("homes", [(0, 0, 1), (0, 0, 0)], ids=["some", "all"])
def test_sockets_of_a_port_whose_neatd_died_while_it_moved_them_have_one_home(
    homes: tuple[int, ...],
) -> None:
    """The one that is in the page: a home that nobody moves would hold its replica for ever."""
    at = (socket.IPPROTO_UDP, 0, PORT)
    registry = Registry.create(1)
    for _ in range(3):
        registry.hold(at)
    registry.set_home(at, 1, APP)
    registry.set_also(at, 0)
    told: list[tuple[int, int]] = []
    link = SimpleNamespace(
        remember=lambda kind, app, sock, fds, **known: told.append((sock, known["home"]))
    )
    state: Any = SimpleNamespace(
        registry=Registry.adopt(registry.page.fd), replicas=[], apps={}, link=link,
        running=list, options=SimpleNamespace(time_wait_ms=60000),
    )  # fmt: skip
    loop: Any = Clock()
    bindings = Bindings(state, loop)
    for sock, home in zip((3, 4, 5), homes, strict=True):
        bindings.recover(
            BIND | {"number": sock, "proto": at[0], "listening": False, "home": home}, []
        )
    bindings.recovered()
    assert {b.home for b in bindings.table.values()} == {1}
    assert told == [(3, 1), (4, 1), (5, 1)]
    assert state.registry.home(at) == 1 and state.registry.also(at) == 0


def test_a_port_rests_after_its_last_use() -> None:
    fd = abi.sealed_memory("ports", QUARANTINE_SIZE)
    rest, successor = Quarantine(60.0), Quarantine(60.0)
    rest.share(fd)
    successor.share(fd)
    os.close(fd)
    rest.add(1000, 0.0)
    rest.add(2000, 10.0)
    rest.add(1000, 20.0)
    for one in (rest, successor):
        assert one.holds(1000, 69.0) and one.holds(2000, 69.0) and not one.holds(3000, 69.0)
        assert one.holds(1000, 79.0) and not one.holds(2000, 79.0)
        assert not one.holds(1000, 80.0)


def test_a_port_that_two_sockets_share_is_listening_while_a_successor_starts() -> None:
    """The first is bound only; a connect() meanwhile must not be refused for it."""
    before = Registry.create(1)
    for _ in range(2):
        before.hold(KEY)
    before.set_mask(KEY, 0b1)
    registry = Registry.adopt(before.page.fd)
    masks: list[int] = []
    registry.set_mask = lambda at, mask: masks.append(mask)  # type: ignore[method-assign]
    link = SimpleNamespace(remember=lambda *args, **kwargs: None)
    state: Any = SimpleNamespace(
        registry=registry, replicas=[SimpleNamespace(index=0)], apps={}, link=link,
        running=lambda: [SimpleNamespace(index=0)], options=SimpleNamespace(time_wait_ms=60000),
    )  # fmt: skip
    loop: Any = Clock()
    bindings = Bindings(state, loop)
    bindings.recover(BIND | {"number": SOCK + 1, "reuseaddr": True, "listening": False}, [])
    bindings.recover(BIND | {"reuseaddr": True}, [])
    bindings.recover_listener(0, listener(9))
    bindings.recovered()
    assert masks and set(masks) == {0b1}


def test_a_listener_is_ended_before_it_is_forgotten() -> None:
    """Else a neatd that dies in between leaves one that takes connections and nobody knows."""
    neatd = Successor(published=0b11, answered=(0, 1))
    told: list[tuple[str, int]] = []
    neatd.link.send = lambda role, index, data: told.append(("end", index))
    neatd.link.drop = lambda role, index, key: told.append(("forget", index))
    neatd.bindings.app_gone(SimpleNamespace(app_id=APP))  # type: ignore[arg-type]
    for index in (0, 1):
        mine = [what for what, replica in told if replica == index]
        assert mine.index("end") < mine.index("forget")
        # A replica that was replaced just then got it from the keeper once more.
        assert mine[-1] == "end"


class Keeper:
    """Holds copies of the descriptors that it stores, and closes them when it gets to it."""

    def __init__(self) -> None:
        self.stored: dict[int, list[int]] = {}
        self.forgotten: list[int] = []

    def remember(self, kind: str, app: int, sock: int, fds: list[int], **_: Any) -> None:
        self.forgotten += self.stored.get(sock, [])
        self.stored[sock] = [os.dup(fd) for fd in fds]

    def forget(self, kind: str, app: int, sock: int) -> None:
        self.forgotten += self.stored.pop(sock)

    def barrier(self) -> None:
        while self.forgotten:
            os.close(self.forgotten.pop())


LOOPBACK = 0x7F000001


@pytest.mark.parametrize(
    ("first", "second"), [(LOOPBACK, LOOPBACK), (0, LOOPBACK), (LOOPBACK, 0)], ids=hex
)
def test_the_last_of_those_who_share_a_port_keeps_it_from_the_kernel(
    first: int, second: int
) -> None:
    keeper = Keeper()
    state: Any = SimpleNamespace(
        registry=Registry.create(1), replicas=[], apps={}, link=keeper, running=list,
        options=SimpleNamespace(time_wait_ms=60000, limits=SimpleNamespace(app_ports=9)),
    )  # fmt: skip
    loop: Any = Clock()
    bindings = Bindings(state, loop)
    app: Any = SimpleNamespace(app_id=APP, warned=False)
    port = 0
    for sock, addr in ((1, first), (2, second)):
        message = SimpleNamespace(
            sock=sock, sock_gen=1, proto=socket.IPPROTO_TCP, addr=addr, port=port,
            flags=abi.lib.NEAT_SOCKF_REUSEADDR,
        )  # fmt: skip
        status, port = bindings.bind(app, message, 0)
        assert status == 0
    bindings.release(bindings.table[APP, 1])
    keeper.barrier()
    with socket.socket() as foreign, pytest.raises(OSError, match="in use"):
        foreign.bind(("127.0.0.1", port))
    bindings.release(bindings.table[APP, 2])
    keeper.barrier()
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", port))
