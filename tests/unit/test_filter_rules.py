"""Text of filter rules: what is read, what is refused and how (neatsock/filter.py)."""

from __future__ import annotations

import ipaddress
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neatsock import abi
from neatsock.filter import (
    ACTIONS,
    DIRECTIONS,
    LAYOUT,
    PROTOCOLS,
    RULES_MAX,
    WITH_PORTS,
    Rule,
    RuleError,
    Side,
    parse,
    unpack,
)
from replicas.filter import Filter


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("drop in", Rule("drop", "in")),
        ("pass both icmp", Rule("pass", "both", "icmp")),
        (
            "reject in tcp from 10.0.0.0/8 to port 80",
            Rule(
                "reject",
                "in",
                "tcp",
                Side(ipaddress.IPv4Network("10.0.0.0/8")),
                Side(first=80, last=80),
            ),
        ),
        (
            "drop out udp from any port 0-1023 to 10.1.0.2 port 53",
            Rule(
                "drop",
                "out",
                "udp",
                Side(first=0, last=1023),
                Side(ipaddress.IPv4Network("10.1.0.2/32"), 53, 53),
            ),
        ),
        (
            "drop in to 127.0.0.0/8",
            Rule("drop", "in", None, Side(), Side(ipaddress.IPv4Network("127.0.0.0/8"))),
        ),
    ],
)
def test_what_a_rule_says(text: str, want: Rule) -> None:
    assert parse(text) == want


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an action is one of pass, drop, reject;"),
        ("block in", "an action is one of pass, drop, reject, not 'block'"),
        ("drop", "a direction is one of in, out, both;"),
        ("drop tcp", "not 'tcp'"),
        ("drop in sctp", "'sctp' is not expected here"),
        ("drop in tcp from", "must follow 'from'"),
        ("drop in tcp from 10.0.0.300", "'10.0.0.300' is no IPv4 address or prefix"),
        ("drop in tcp from 10.0.0.1/8", "write 10.0.0.0/8"),
        ("drop in tcp from ::1", "'::1' is no IPv4 address"),
        ("drop in tcp to port", "'' is no port"),
        ("drop in tcp to port http", "'http' is no port"),
        ("drop in tcp to port 65536", "'65536' is no port"),
        ("drop in tcp to port 90-80", "write 80-90"),
        ("drop in tcp to port 1-", "'1-' is no port"),
        ("drop in to port 80", "only tcp and udp have ports"),
        ("drop in icmp to port 80", "only tcp and udp have ports"),
        ("drop in tcp to any from any", "'from' is not expected here"),
    ],
)
def test_what_is_wrong_with_a_rule(text: str, why: str) -> None:
    with pytest.raises(RuleError, match=re.escape(why)):
        parse(text)


PORTS = st.tuples(*[st.integers(0, 65535)] * 2).map(sorted)
NETWORKS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda t: ipaddress.IPv4Network(t, strict=False)
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from([None, *PROTOCOLS]))

    def side() -> Side:
        return Side(draw(NETWORKS), *(draw(PORTS) if protocol in WITH_PORTS else (0, 65535)))

    action, direction = draw(st.sampled_from([*ACTIONS])), draw(st.sampled_from([*DIRECTIONS]))
    replicas = draw(st.sets(st.integers(0, abi.lib.NEAT_REPLICAS_MAX - 1)))
    return Rule(action, direction, protocol, side(), side(), tuple(sorted(replicas)))


@given(rules())
def test_text_and_layout_go_both_ways(rule: Rule) -> None:
    assert parse(str(rule), rule.replicas) == rule
    assert unpack(rule.pack()) == rule


@given(st.binary(min_size=LAYOUT.size, max_size=LAYOUT.size))
def test_any_bytes_are_a_rule_or_an_error(data: bytes) -> None:
    try:
        unpack(data)
    except RuleError:
        pass


def test_the_layout_is_that_of_the_header() -> None:
    want = Rule(
        "reject",
        "out",
        "udp",
        Side(ipaddress.IPv4Network("10.0.0.0/8"), 1, 2),
        Side(ipaddress.IPv4Network("192.168.0.0/16"), 3, 4),
        (0, 15),
    )
    assert LAYOUT.size == abi.ffi.sizeof("struct neat_filter_rule")
    rule = abi.unpack("struct neat_filter_rule", want.pack())
    assert (rule.saddr, rule.sprefix, list(rule.sport)) == (0x0A000000, 8, [1, 2])
    assert (rule.daddr, rule.dprefix, list(rule.dport)) == (0xC0A80000, 16, [3, 4])
    assert (rule.dir, rule.proto, rule.action) == (
        abi.lib.NEAT_FILTER_OUT,
        17,
        abi.lib.NEAT_FILTER_REJECT,
    )
    assert rule.replicas == 0x8001
    assert abi.lib.NEAT_FILTER_MAX == RULES_MAX


# ---- neatd ----


class Keeper:
    """R_FILTER of each replica, as the keeper keeps it; dies behind `patience` of them."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.kept: dict[int, bytes] = {}

    def store(self, _role: int, index: int, _key: int, inner: bytes) -> None:
        if self.patience == 0:
            raise EOFError
        self.patience -= 1
        self.kept[index] = inner


def neatd(keeper: Keeper, replicas: int = 3) -> Filter:
    counts = SimpleNamespace(packets=SimpleNamespace(v=0), bytes=SimpleNamespace(v=0))
    status = SimpleNamespace(at=SimpleNamespace(filter=[counts] * RULES_MAX))
    state: Any = SimpleNamespace(
        link=keeper,
        replicas=[
            SimpleNamespace(index=i, pid=0, filter_role=2, filter_status=status)
            for i in range(replicas)
        ],
    )
    return Filter(state, lambda connection: None)


def test_who_missed_a_change_gets_it_from_the_next_neatd() -> None:
    """neatd dies between two replicas, and who asked for the change does not ask again."""
    keeper = Keeper(patience=3 + 1)
    first = neatd(keeper)
    connection: Any = SimpleNamespace(send=lambda data: None)
    first.command(connection, 1, {"do": "add", "id": 1, "rule": "drop in", "replicas": [2]})
    with pytest.raises(EOFError):
        first.command(connection, 2, {"do": "add", "id": 2, "rule": "drop out"})
    assert keeper.kept[0] != keeper.kept[1]
    keeper.patience = 3
    second = neatd(keeper)
    second.recover(dict(keeper.kept))
    assert second.rules == [parse("drop in", (2,)), parse("drop out")]
    assert keeper.kept[0] == keeper.kept[1] == keeper.kept[2]
