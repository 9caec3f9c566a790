"""Rules of the packet filter: text, and the layout of struct neat_filter_rule.

    pass|drop|reject in|out|both [tcp|udp|icmp] [from WHERE] [to WHERE]
    WHERE: any|ADDRESS|ADDRESS/BITS [port N|N-M], or only port N|N-M

`neatsock filter` and neatd share this; it imports nothing outside the standard library.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

RULES_MAX = 256  # NEAT_FILTER_MAX
ACTIONS = {"pass": 0, "drop": 1, "reject": 2}  # enum neat_filter_action
DIRECTIONS = {"in": 1, "out": 2, "both": 3}  # mask of enum neat_filter_dir
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
WITH_PORTS = ("tcp", "udp")
LAYOUT = struct.Struct("<IIBBBBHHHHBxH")  # struct neat_filter_rule
ANYWHERE = ipaddress.IPv4Network("0.0.0.0/0")
SYNTAX = "pass|drop|reject in|out|both [tcp|udp|icmp] [from WHERE] [to WHERE]"


class RuleError(ValueError):
    """What is wrong with a rule, for a person."""


@dataclass(frozen=True)
class Side:
    """One end of a packet's way."""

    network: ipaddress.IPv4Network = ANYWHERE
    first: int = 0
    last: int = 65535

    @property
    def any_port(self) -> bool:
        return (self.first, self.last) == (0, 65535)

    def __str__(self) -> str:
        single = self.network.prefixlen == 32
        where = str(self.network.network_address) if single else str(self.network)
        words = [] if self.network == ANYWHERE else [where]
        if not self.any_port:
            ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
            words.append(f"port {ports}")
        return " ".join(words) or "any"


@dataclass(frozen=True)
class Rule:
    action: str
    direction: str
    protocol: str | None = None
    source: Side = Side()
    destination: Side = Side()
    replicas: tuple[int, ...] = ()  # who obeys it, ascending; () = all

    def __str__(self) -> str:
        """Text that parse() reads back as the same rule; the replicas are not in it."""
        words = [self.action, self.direction, *([self.protocol] if self.protocol else [])]
        for name, side in (("from", self.source), ("to", self.destination)):
            if side != Side():
                words.append(f"{name} {side}")
        return " ".join(words)

    def pack(self) -> bytes:
        """As struct neat_filter_rule."""
        source, destination = self.source, self.destination
        return LAYOUT.pack(
            int(source.network.network_address),
            int(destination.network.network_address),
            source.network.prefixlen,
            destination.network.prefixlen,
            DIRECTIONS[self.direction],
            PROTOCOLS[self.protocol] if self.protocol else 0,
            source.first,
            source.last,
            destination.first,
            destination.last,
            ACTIONS[self.action],
            sum(1 << replica for replica in self.replicas),
        )


def unpack(data: bytes) -> Rule:
    """The rule that pack() packed. RuleError when the bytes are no rule."""
    saddr, daddr, sbits, dbits, direction, proto, s0, s1, d0, d1, action, mask = LAYOUT.unpack(data)
    try:
        return Rule(
            _name(ACTIONS, action),
            _name(DIRECTIONS, direction),
            _name(PROTOCOLS, proto) if proto else None,
            Side(ipaddress.IPv4Network((saddr, sbits)), s0, s1),
            Side(ipaddress.IPv4Network((daddr, dbits)), d0, d1),
            tuple(i for i in range(16) if mask >> i & 1),
        )
    except (KeyError, ValueError) as err:
        raise RuleError(f"{data.hex()} is no rule") from err


def _name(table: dict[str, int], value: int) -> str:
    return {number: name for name, number in table.items()}[value]


def parse(text: str, replicas: tuple[int, ...] = ()) -> Rule:
    """RuleError says what is wrong and what would be right."""
    words = text.split()
    try:
        action = _choice(words, ACTIONS, "an action")
        direction = _choice(words, DIRECTIONS, "a direction")
        protocol = words.pop(0) if words and words[0] in PROTOCOLS else None
        sides = {"from": Side(), "to": Side()}
        for name in sides:
            if words and words[0] == name:
                words.pop(0)
                sides[name] = _side(words, name)
        if words:
            raise RuleError(f"{words[0]!r} is not expected here; a rule is {SYNTAX}")
        if protocol not in WITH_PORTS and not all(s.any_port for s in sides.values()):
            raise RuleError("only tcp and udp have ports; write e.g. drop in tcp to port 80")
    except RuleError as err:
        raise RuleError(f"rule {text!r}: {err}") from None
    return Rule(action, direction, protocol, sides["from"], sides["to"], replicas)


def _choice(words: list[str], names: dict[str, int], what: str) -> str:
    if not words or words[0] not in names:
        found = f", not {words[0]!r}" if words else ""
        raise RuleError(f"{what} is one of {', '.join(names)}{found}; a rule is {SYNTAX}")
    return words.pop(0)


def _side(words: list[str], name: str) -> Side:
    network, first, last = ANYWHERE, 0, 65535
    if not words:
        raise RuleError(f"an address, any or port N must follow {name!r}")
    if words[0] != "port":
        network = _network(words.pop(0))
    if words and words[0] == "port":
        words.pop(0)
        first, last = _ports(words.pop(0) if words else "")
    return Side(network, first, last)


def _network(word: str) -> ipaddress.IPv4Network:
    if word == "any":
        return ANYWHERE
    try:
        return ipaddress.IPv4Network(word)
    except ValueError as err:
        if "host bits" in str(err):
            wider = ipaddress.IPv4Network(word, strict=False)
            raise RuleError(f"{word} has bits behind its prefix; write {wider}") from None
        raise RuleError(f"{word!r} is no IPv4 address or prefix such as 10.0.0.0/8") from None


def _ports(word: str) -> tuple[int, int]:
    low, dash, high = word.partition("-")
    number = low.isascii() and low.isdigit() and (not dash or high.isascii() and high.isdigit())
    first = int(low) if number else -1
    last = int(high) if number and dash else first
    if not number or not 0 <= first <= 65535 or not 0 <= last <= 65535:
        raise RuleError(f"{word!r} is no port or range of ports such as 8000-8080 (0 to 65535)")
    if last < first:
        raise RuleError(f"the range {word} is empty; write {last}-{first}")
    return first, last
