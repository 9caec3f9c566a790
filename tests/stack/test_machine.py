"""Random commands of applications on two hosts: no stream is ever wrong and nothing is left over.

The model knows of each connection (by its tuple) what each end wrote. Whatever happens, an end
reads a prefix of what the other wrote; as long as neither was aborted it reads all of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.stack.host import (
    CONNECTED,
    CONNECTING,
    CORK,
    DEAD,
    ERROR,
    HERE,
    KEEPALIVE,
    LINGER,
    LOCALHOST,
    NODELAY,
    OPT_FLAGS,
    OPT_KEEPIDLE,
    OPT_LINGER,
    OPT_RCVBUF,
    OPT_SNDBUF,
    OPT_USER_TIMEOUT,
    RX_EOF,
    THERE,
    TX_SHUT,
    Config,
    Host,
    S,
)  # fmt: skip
from tests.stack.link import Faults, Link

BLOB = random.Random(7).randbytes(1 << 20)
HOUR = 3600 * S
HARNESS: list[Any] = []


@dataclass
class Stream:
    """One direction: bytes BLOB[0:sent] were written, [0:read] were read."""

    sent: int = 0
    read: int = 0


@dataclass
class Sock:
    host: Host
    slot: int
    out: Stream
    into: Stream
    pair: dict[str, bool] = field(default_factory=dict)


class Applications(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        lib = HARNESS[0]
        self.a = Host(lib, Config(addr=HERE, connections=64))
        self.b = Host(lib, Config(addr=THERE, connections=64, seed=2, mtu=1000))
        self.link = Link(self.a, self.b, Faults(loss=0.03, reorder=0.1, duplicate=0.03), 1)
        self.listeners = {
            (host, port): host.listen(port, backlog=8)
            for host in (self.a, self.b)
            for port in (80, 81)
        }
        self.socks: list[Sock] = []
        self.calls: dict[tuple[int, int, int, int], Sock] = {}

    # ---- rules ----

    def pick(self, n: int) -> Sock:
        return self.socks[n % len(self.socks)]

    @rule(
        at=st.integers(0, 2), port=st.sampled_from([80, 81, 99]),
        flags=st.sampled_from([0, NODELAY, CORK, KEEPALIVE]),
        rcvbuf=st.sampled_from([0, 4096, 1 << 20]), sndbuf=st.sampled_from([0, 4096]),
    )  # fmt: skip
    def connect(self, at: int, port: int, flags: int, rcvbuf: int, sndbuf: int) -> None:
        host, raddr = [(self.a, THERE), (self.b, HERE), (self.a, LOCALHOST)][at]
        words = {OPT_FLAGS: flags, OPT_RCVBUF: rcvbuf, OPT_SNDBUF: sndbuf, OPT_KEEPIDLE: 5}
        slot = host.connect(raddr, port, options=words)
        if slot < 0:
            return
        info = host.info(slot)
        if info.lport == 0:
            assert host.flags(slot) & DEAD  # refused on lo before we looked
            host.close(slot)
            return
        sock = Sock(host, slot, Stream(), Stream(), {"broken": False})
        self.calls[info.laddr, info.lport, info.raddr, info.rport] = sock
        self.socks.append(sock)

    @rule()
    def accept(self) -> None:
        for (host, _), listener in self.listeners.items():
            while (slot := host.accept(listener)) > 0:
                info = host.info(slot)
                if info.lport == 0:  # reset while it waited
                    host.close(slot)
                    continue
                call = self.calls.get((info.raddr, info.rport, info.laddr, info.lport))
                assert call is not None
                self.socks.append(Sock(host, slot, call.into, call.out, call.pair))

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100), size=st.integers(1, 30000))
    def write(self, n: int, size: int) -> None:
        sock = self.pick(n)
        if sock.host.flags(sock.slot) & (TX_SHUT | DEAD):
            return
        size = min(size, len(BLOB) - sock.out.sent)
        sock.out.sent += sock.host.write(sock.slot, BLOB[sock.out.sent : sock.out.sent + size])

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100), size=st.integers(1, 100000))
    def read(self, n: int, size: int) -> None:
        self.read_some(self.pick(n), size)

    def read_some(self, sock: Sock, size: int) -> None:
        data = sock.host.read(sock.slot, size)
        at = sock.into.read
        assert data == BLOB[at : at + len(data)]
        sock.into.read += len(data)
        assert sock.into.read <= sock.into.sent

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100), how=st.sampled_from([1, 2, 3]))
    def shutdown(self, n: int, how: int) -> None:
        sock = self.pick(n)
        sock.host.shutdown(sock.slot, how)

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100))
    def close(self, n: int) -> None:
        sock = self.pick(n)
        if sock.into.read < sock.into.sent or not sock.host.flags(sock.slot) & RX_EOF:
            sock.pair["broken"] = True  # data that arrives now is answered by a reset
        sock.host.close(sock.slot)
        self.socks.remove(sock)

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100))
    def abort(self, n: int) -> None:
        sock = self.pick(n)
        sock.pair["broken"] = True
        sock.host.abort(sock.slot)

    @precondition(lambda self: self.socks)
    @rule(
        n=st.integers(0, 100),
        option=st.sampled_from(
            [(OPT_FLAGS, CORK), (OPT_FLAGS, NODELAY), (OPT_FLAGS, KEEPALIVE), (OPT_FLAGS, 0),
             (OPT_RCVBUF, 4096), (OPT_RCVBUF, 1 << 21), (OPT_SNDBUF, 4096), (OPT_SNDBUF, 1 << 21)]
        ),
    )  # fmt: skip
    def set_option(self, n: int, option: tuple[int, int]) -> None:
        sock = self.pick(n)
        sock.host.option(sock.slot, *option)

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100))
    def reset_by_close(self, n: int) -> None:
        sock = self.pick(n)
        sock.pair["broken"] = True
        sock.host.option(sock.slot, OPT_LINGER, 0)
        sock.host.option(sock.slot, OPT_FLAGS, LINGER)
        sock.host.close(sock.slot)
        self.socks.remove(sock)

    @precondition(lambda self: self.socks)
    @rule(n=st.integers(0, 100), ms=st.sampled_from([100, 5000]))
    def impatient(self, n: int, ms: int) -> None:
        sock = self.pick(n)
        sock.pair["broken"] = True
        sock.host.option(sock.slot, OPT_USER_TIMEOUT, ms)

    @rule(us=st.sampled_from([1, 1000, 20_000, 300_000, 3 * S, 100 * S]))
    def wait(self, us: int) -> None:
        self.link.quiet(us)

    @rule(which=st.integers(0, 1), on=st.booleans())
    def block(self, which: int, on: bool) -> None:
        host = (self.a, self.b)[which]
        host.lib.host_block_tx(host.h, on)
        host.lib.host_drain(host.h)

    @precondition(lambda self: self.socks)
    @rule(port=st.sampled_from([80, 81]), at=st.integers(0, 1))
    def relisten(self, port: int, at: int) -> None:
        """Closing a listener: what nobody accepted is closed too, as api.c does."""
        host = (self.a, self.b)[at]
        self.accept()
        host.unlisten(self.listeners[host, port])
        self.listeners[host, port] = host.listen(port, backlog=8)

    # ---- the end ----

    def teardown(self) -> None:
        for host in (self.a, self.b):
            host.lib.host_block_tx(host.h, 0)
            host.lib.host_drain(host.h)
        for _ in range(200):
            self.accept()
            for sock in list(self.socks):
                flags = sock.host.flags(sock.slot)
                if flags & CONNECTING:
                    continue
                self.read_some(sock, 1 << 20)
                sock.host.option(sock.slot, OPT_FLAGS, 0)
                if flags & CONNECTED and not flags & (TX_SHUT | DEAD):
                    sock.host.shutdown(sock.slot)
                if flags & (RX_EOF | DEAD):
                    self.finish(sock)
            self.link.quiet(2 * S)
            if not self.socks:
                break
        for _ in range(2):  # the second time for those whose handshake was under way
            self.accept()
            while self.socks:
                sock = self.socks.pop()
                sock.host.close(sock.slot)
            self.link.quiet(5 * HOUR)
        for host in (self.a, self.b):
            assert host.blocks == [], host.blocks
            assert host.time_waits == 0
            assert host.info(self.listeners[host, 80]).half_open == 0
            host.free()

    def finish(self, sock: Sock) -> None:
        self.read_some(sock, 1 << 20)
        clean = not sock.pair["broken"] and not sock.host.flags(sock.slot) & ERROR
        if clean and sock.host.flags(sock.slot) & CONNECTED:
            assert sock.into.read == sock.into.sent
        sock.host.close(sock.slot)
        self.socks.remove(sock)


@pytest.mark.usefixtures("lib")
def test_random_commands(lib: Any) -> None:
    HARNESS[:] = [lib]
    run_state_machine_as_test(
        Applications,
        settings=settings(
            max_examples=60, stateful_step_count=60, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
