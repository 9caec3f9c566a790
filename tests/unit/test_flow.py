"""The flow table, listeners and port choice (replicas/stack/flow.c) against dictionaries."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.units import ffi, units

HERE, THERE, LOCALHOST = 0x0A000001, 0x0A000002, 0x7F000001
Key = tuple[int, int, int, int]


class Flows:
    """Methods are those of units_lib.c without `flows_`."""

    def __init__(self, connections: int = 64, seed: int = 1) -> None:
        self.lib = units()
        self.f = self.lib.flows_new(connections, seed)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.lib, f"flows_{name}")
        return lambda *args: function(self.f, *args)


@pytest.fixture
def flows() -> Iterator[Flows]:
    f = Flows()
    yield f
    f.free()


keys = st.tuples(
    st.sampled_from([HERE, LOCALHOST]),
    st.integers(1, 8),
    st.integers(THERE, THERE + 3),
    st.integers(1, 4),
)
commands = st.lists(
    st.tuples(st.sampled_from(["insert", "insert", "remove", "find"]), keys), max_size=300
)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1000), steps=commands)
def test_against_a_dictionary(seed: int, steps: list[tuple[str, Key]]) -> None:
    flows, model = Flows(seed=seed), dict[Key, int]()
    for n, (command, key) in enumerate(steps, 1):
        if command == "insert":
            want = -errno.EADDRINUSE if key in model else 0
            assert flows.insert(*key, n) == want
            model.setdefault(key, n)
        elif command == "remove":
            flows.remove(*key)
            model.pop(key, None)
        assert flows.find(*key) == model.get(key, 0)
    for key, value in model.items():
        assert flows.find(*key) == value
    flows.free()


def test_full_table_refuses_and_stays_searchable(flows: Flows) -> None:
    """At three quarters, so that a search always ends."""
    taken = 0
    while flows.insert(HERE, 80, THERE, taken % 65536, taken + 1) == 0:
        taken += 1
    assert flows.insert(HERE, 81, THERE, 1, 9) == -errno.ENOMEM
    assert taken >= 2 * 64
    assert flows.find(HERE, 81, THERE, 1) == 0
    assert all(flows.find(HERE, 80, THERE, i) == i + 1 for i in range(taken))
    for i in range(0, taken, 2):
        flows.remove(HERE, 80, THERE, i)
    assert all(bool(flows.find(HERE, 80, THERE, i)) == bool(i % 2) for i in range(taken))


def test_room_for_every_record_of_a_small_configuration() -> None:
    """Connections, half-open ones and 1024 TIME-WAIT slots (tcp.c), whatever the limit."""
    flows = Flows(connections=1)
    assert all(flows.insert(HERE, 80, THERE, i, 1) == 0 for i in range(1024 + 1))
    flows.free()


def test_all_four_parts_of_the_tuple_count(flows: Flows) -> None:
    flows.insert(HERE, 80, THERE, 5, 1)
    for other in ((HERE + 1, 80, THERE, 5), (HERE, 81, THERE, 5), (HERE, 80, THERE + 1, 5),
                  (HERE, 80, THERE, 6), (THERE, 5, HERE, 80)):  # fmt: skip
        assert flows.find(*other) == 0


def test_hash_depends_on_the_secret() -> None:
    a, b = Flows(seed=1), Flows(seed=2)
    key = (HERE, 80, THERE, 5)
    assert a.hash(*key) != b.hash(*key)
    a.free()
    b.free()


def test_hash_spreads_neighbouring_ports(flows: Flows) -> None:
    """64 buckets, 4096 ports: each within half and twice the mean of 64 (far beyond 5 sigma)."""
    counts = [0] * 64
    for port in range(4096):
        counts[flows.hash(HERE, 80, THERE, port) >> 26] += 1
    assert min(counts) > 32
    assert max(counts) < 128


# ---- listeners ----

listens = st.lists(
    st.tuples(
        st.sampled_from(["listen", "unlisten", "look"]), st.sampled_from([0, HERE, LOCALHOST]),
        st.sampled_from([80, 81, 80 + 1024]), st.integers(1, 5), st.integers(0, 2**32 - 1),
    ),
    max_size=100,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(steps=listens)
def test_listeners_against_a_model(steps: list[tuple[str, int, int, int, int]]) -> None:
    flows = Flows()
    model: dict[tuple[int, int], set[int]] = {}
    for command, addr, port, who, h in steps:
        group = model.setdefault((addr, port), set())
        if command == "listen" and who not in group:
            assert flows.listen(addr, port, who) == 0
            group.add(who)
        elif command == "unlisten":
            flows.unlisten(addr, port, who)
            group.discard(who)
        want = group or model.get((0, port), set())
        got = flows.listener(addr, port, h)
        assert got in want if want else got == 0
    flows.free()


@pytest.mark.parametrize("members", [1, 2, 3, 7])
def test_group_is_picked_evenly_by_hash(flows: Flows, members: int) -> None:
    """SO_REUSEPORT: equal shares of the hash."""
    for who in range(1, members + 1):
        flows.listen(0, 80, who)
    counts: dict[int, int] = {}
    for i in range(2100):
        who = flows.listener(HERE, 80, i * (2**32 // 2100))
        counts[who] = counts.get(who, 0) + 1
    assert len(counts) == members
    assert max(counts.values()) - min(counts.values()) <= 2


def test_listener_slots_are_reused(flows: Flows) -> None:
    for _ in range(3):
        for port in range(1, 4097):
            assert flows.listen(0, port, port) == 0
        assert flows.listen(0, 5000, 1) == -errno.ENOMEM
        for port in range(1, 4097):
            flows.unlisten(0, port, port)


# ---- ports ----


def test_ports_are_ephemeral_free_and_not_listened_on(flows: Flows) -> None:
    """ip(7) ip_local_port_range."""
    seen = set()
    for port in range(32768, 36000):
        flows.listen(0, port, 1)
    for _ in range(60):
        port = flows.choose(HERE, THERE, 80)
        assert 32768 <= port <= 60999
        assert flows.find(HERE, port, THERE, 80) == 0
        assert flows.listener(HERE, port, 0) == 0
        assert flows.insert(HERE, port, THERE, 80, 1) == 0
        seen.add(port)
    assert len(seen) == 60


def test_ports_run_out() -> None:
    """28232 of them to one destination; another destination has its own."""
    flows = Flows(connections=40000)
    for port in range(32768, 61000):
        flows.insert(HERE, port, THERE, 80, 1)
    assert flows.choose(HERE, THERE, 80) == 0
    assert flows.choose(HERE, THERE, 81) != 0
    flows.remove(HERE, 40000, THERE, 80)
    assert flows.choose(HERE, THERE, 80) == 40000
    flows.free()


@pytest.mark.parametrize("index", range(4))
def test_chosen_port_steers_back_to_this_replica(flows: Flows, index: int) -> None:
    """Contract L7: the answer's RSS hash names our queue."""
    flows.steer(index, 4)
    for i in range(50):
        port = flows.choose(HERE, THERE + i, 80)
        assert flows.replica(HERE, port, THERE + i, 80) == index


def test_local_ports_need_no_steering(flows: Flows) -> None:
    """lo never leaves the replica."""
    flows.steer(3, 4)
    found = {
        flows.replica(LOCALHOST, flows.choose(LOCALHOST, LOCALHOST, 80), LOCALHOST, 80)
        for _ in range(40)
    }
    assert len(found) > 1


@pytest.mark.parametrize("replicas", [1, 2, 16])
def test_every_replica_has_ports(replicas: int) -> None:
    flows = Flows()
    for index in range(replicas):
        flows.steer(index, replicas)
        assert flows.choose(HERE, THERE, 443)
    flows.free()


def retas(replicas: int, changes: int = 5) -> Iterator[bytes]:
    """Indirection tables as the nic makes them, more or less, while replicas come and go."""
    dice = random.Random(replicas)
    for _ in range(changes):
        active = dice.sample(range(replicas), dice.randrange(1, replicas + 1))
        table = [active[i % len(active)] for i in range(128)]
        dice.shuffle(table)
        yield bytes(table)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 16])
def test_every_chosen_port_steers_here_whatever_the_table_becomes(replicas: int) -> None:
    flows = Flows(seed=replicas)
    for reta in retas(replicas):
        for index in set(reta):
            flows.reta(index, reta)
            for i in range(200):
                port = flows.choose(HERE, THERE + i, 80 + i)
                assert 32768 <= port <= 60999
                assert flows.replica(HERE, port, THERE + i, 80 + i) == index
    flows.free()


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 16])
def test_all_ports_of_a_replica_are_equally_likely(replicas: int) -> None:
    """Chi-square over the ports that steer here; RFC 6056 loses log2(replicas) bits and no more."""
    flows = Flows(seed=99 + replicas)
    reta = bytes(i % replicas for i in range(128))
    index = replicas // 2
    flows.reta(index, reta)
    ours = [p for p in range(32768, 61000) if flows.replica(HERE, p, THERE, 80) == index]
    draws = 20 * len(ours)
    counts = units_counts()
    flows.choose_many(HERE, THERE, 80, draws, counts)
    assert sum(counts[p] for p in ours) == draws
    square = sum((counts[p] - 20) ** 2 / 20 for p in ours)
    freedom = len(ours) - 1
    # Within five standard deviations; the seed is fixed.
    assert abs(square - freedom) < 5 * math.sqrt(2 * freedom)
    assert len(ours) == pytest.approx(28232 / replicas, rel=0.15)
    flows.free()


def units_counts() -> Any:
    return ffi.new("uint32_t[65536]")


def test_a_replica_without_a_bucket_still_has_ports(flows: Flows) -> None:
    """It drains; a connect() that was under way is not refused."""
    flows.reta(2, bytes(128))
    assert flows.choose(HERE, THERE, 80) >= 32768


def test_the_last_free_port_that_steers_here_is_found() -> None:
    reta = bytes(i % 4 for i in range(128))
    big = Flows(connections=40000)
    big.reta(1, reta)
    ours = [p for p in range(32768, 61000) if big.replica(HERE, p, THERE, 80) == 1]
    for port in ours[:-1]:
        big.insert(HERE, port, THERE, 80, 1)
    assert big.choose(HERE, THERE, 80) == ours[-1]
    big.insert(HERE, ours[-1], THERE, 80, 1)
    assert big.choose(HERE, THERE, 80) == 0
    big.free()


def test_a_port_that_is_bound_is_not_ephemeral(flows: Flows) -> None:
    flows.bind(32768, 60998)
    assert flows.choose(LOCALHOST, LOCALHOST, 80) == 60999
