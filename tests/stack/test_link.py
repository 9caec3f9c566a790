"""Two stacks over a bad link: what one writes the other reads, and both come to an end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stack.host import (
    CONNECTED,
    CORK,
    ERROR,
    HERE,
    NODELAY,
    OPT_FLAGS,
    OPT_RCVBUF,
    OPT_SNDBUF,
    RX_EOF,
    THERE,
    TX_SHUT,
    Host,
    S,
)  # fmt: skip
from tests.stack.link import Faults, Link

Make = Callable[..., Host]
BLOB = random.Random(1).randbytes(1 << 20)
HOUR = 3600 * S

faults = st.builds(
    Faults,
    loss=st.sampled_from([0.0, 0.01, 0.1]),
    duplicate=st.sampled_from([0.0, 0.1]),
    reorder=st.sampled_from([0.0, 0.1, 0.5]),
    corrupt=st.sampled_from([0.0, 0.05]),
    delay_us=st.sampled_from([0, 100, 5000, 100_000]),
    jitter_us=st.sampled_from([0, 1000]),
    strip=st.frozensets(st.sampled_from(["sack_ok", "ts", "wscale", "mss"])),
)
options = st.fixed_dictionaries(
    {},
    optional={
        OPT_RCVBUF: st.sampled_from([4096, 10000, 1 << 21]),
        OPT_SNDBUF: st.sampled_from([4096, 30000, 1 << 21]),
        OPT_FLAGS: st.sampled_from([NODELAY, CORK]),
    },
)


@dataclass
class End:
    """One end's application: writes `data` in pieces, reads in pieces, closes when it may."""

    host: Host
    data: bytes
    want: bytes
    half_close: bool
    random: random.Random
    slot: int = 0
    sent: int = 0
    got: bytearray = field(default_factory=bytearray)
    closed: bool = False

    def work(self) -> None:
        if self.closed or not self.slot:
            return
        flags = self.host.flags(self.slot)
        assert not flags & ERROR, self.host.error(self.slot)
        if not flags & CONNECTED:
            return
        if self.sent < len(self.data):
            piece = self.data[self.sent : self.sent + self.random.randint(1, 20000)]
            self.sent += self.host.write(self.slot, piece)
        if self.sent == len(self.data) and self.half_close and not flags & TX_SHUT:
            self.host.shutdown(self.slot)
        if self.random.random() < 0.7:
            self.got += self.host.read(self.slot, self.random.randint(1, 30000))
            assert self.want.startswith(self.got)
        finished = self.sent == len(self.data) and len(self.got) == len(self.want)
        if finished and (not self.half_close or self.host.flags(self.slot) & RX_EOF):
            self.host.close(self.slot)
            self.closed = True


def converse(a: Host, b: Host, link: Link, ends: tuple[End, End], listener: int) -> None:
    client, server = ends

    def step() -> bool:
        if not server.slot:
            server.slot = max(b.accept(listener), 0)
        client.work()
        server.work()
        for host in (a, b):
            host.collect()
        link.carry()
        return client.closed and server.closed

    assert link.run(step, 10 * HOUR), (a.drops(), b.drops(), len(client.got), len(server.got))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    f=faults, opts=st.tuples(options, options), seed=st.integers(0, 2**32),
    sizes=st.tuples(st.integers(0, 120_000), st.integers(0, 120_000)),
    mtus=st.tuples(st.sampled_from([576, 1500, 9000]), st.sampled_from([576, 1500])),
    half=st.tuples(st.booleans(), st.booleans()),
)  # fmt: skip
def test_streams_arrive_and_connections_end(
    make_many: Make, f: Faults, opts: tuple[dict[int, int], dict[int, int]], seed: int,
    sizes: tuple[int, int], mtus: tuple[int, int], half: tuple[bool, bool],
) -> None:  # fmt: skip
    a = make_many(addr=HERE, mtu=mtus[0], seed=seed)
    b = make_many(addr=THERE, mtu=mtus[1], seed=seed + 1)
    link = Link(a, b, f, seed)
    there, back = BLOB[: sizes[0]], BLOB[-sizes[1] :] if sizes[1] else b""
    listener = b.listen(80, options=opts[1])
    ends = (
        End(
            a, there, back, half[0], random.Random(seed), slot=a.connect(THERE, 80, options=opts[0])
        ),
        End(b, back, there, half[1], random.Random(seed + 1)),
    )
    converse(a, b, link, ends, listener)
    assert (bytes(ends[0].got), bytes(ends[1].got)) == (back, there)
    link.quiet(3 * HOUR)
    assert (a.blocks, b.blocks) == ([], [])
    assert (a.time_waits, b.time_waits) == (0, 0)
    assert b.info(listener).half_open == 0
    a.free()
    b.free()


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_bulk_transfer_uses_the_path(make: Make, loss: float) -> None:
    """20 ms RTT, 1 MiB windows: without loss about a window per round trip in the end."""
    a, b = make(addr=HERE), make(addr=THERE, seed=2)
    link = Link(a, b, Faults(loss=loss, delay_us=10_000), 1)
    listener = b.listen(80)
    data = BLOB * 3
    client = End(a, data, b"", False, random.Random(1), slot=a.connect(THERE, 80))
    server = End(b, b"", data, False, random.Random(2))
    start = link.now
    server_work = server.work

    def eager() -> None:
        for _ in range(20):
            server_work()

    server.work = eager  # type: ignore[method-assign]
    client_work = client.work

    def keen() -> None:
        for _ in range(20):
            client_work()

    client.work = keen  # type: ignore[method-assign]
    converse(a, b, link, (client, server), listener)
    assert bytes(server.got) == data
    if not loss:
        assert (link.now - start) / S < 1.0
        assert a.info(client.slot).retransmits == 0
