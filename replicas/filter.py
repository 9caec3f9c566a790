"""The packet filter's rules: kept with the replicas in the keeper, changed by `neatsock filter`.

Every replica holds all rules and obeys those that name it or no replica; the whole list goes out
with each change, so a replica has the old rules or the new ones. The keeper stores it, also for
replicas that do not run: who starts has it before it announces itself.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from neatsock import abi
from neatsock.filter import LAYOUT, RULES_MAX, Rule, RuleError, parse, unpack

from .clients import Connection, Refused
from .link import key
from .state import State

LIB = abi.lib


@dataclass
class Change:
    """A command that is answered when all replicas have said that the rules are in force."""

    connection: Connection
    seq: int
    waiting: set[int] = field(default_factory=set)


def _replicas(command: dict[str, Any], room: int) -> tuple[int, ...]:
    """Whose the new rule is. Refused when there can be no such replica."""
    wanted = command.get("replicas") or []
    if not isinstance(wanted, list) or not all(type(replica) is int for replica in wanted):
        raise Refused(errno.EINVAL, "replicas of a rule are a list of numbers")
    for replica in wanted:
        if not 0 <= replica < room:
            text = f"this instance has no replica {replica}; a rule can be for 0 to {room - 1}"
            raise Refused(errno.EINVAL, text)
    return tuple(sorted(set(wanted)))


def edit(rules: list[Rule], command: dict[str, Any], room: int) -> list[Rule]:
    """The rules after a command, in an instance with room for so many replicas.

    Refused when it makes no sense.
    """
    do = command.get("do")
    if do == "flush":
        return []
    out = list(rules)
    number = command.get("number")
    if do == "delete":
        if not isinstance(number, int) or not 1 <= number <= len(out):
            raise Refused(
                errno.EINVAL, f"there is no rule {number}; neatsock filter list shows all"
            )
        del out[number - 1]
        return out
    if do != "add":
        raise Refused(errno.EINVAL, f"the filter does not know {do!r}")
    if len(out) >= RULES_MAX:
        raise Refused(errno.ENOSPC, f"there are {RULES_MAX} rules already, no more fit")
    try:
        rule = parse(str(command.get("rule")), _replicas(command, room))
    except RuleError as err:
        raise Refused(errno.EINVAL, str(err)) from err
    if number is None:
        number = len(out) + 1
    if not isinstance(number, int) or not 1 <= number <= len(out) + 1:
        raise Refused(errno.EINVAL, f"a rule can be number 1 to {len(out) + 1}, not {number}")
    out.insert(number - 1, rule)
    return out


class Filter:
    def __init__(self, state: State, finish: Callable[[Connection], None]) -> None:
        self.state = state
        self.finish = finish
        self.rules: list[Rule] = []
        self.generation = 0
        self.last = 0  # number of the command that made `rules`: a new neatd may meet it again
        self.changes: dict[int, Change] = {}

    # ---- replicas ----

    def recover(self, stored: dict[int, bytes]) -> None:
        """R_FILTER of each replica that has one: changes go out by their numbers.

        Who missed the last one gets it now: nobody may be left to repeat the command.
        """
        inner = stored[min(stored)]
        message = abi.unpack("struct neat_msg_r_filter", inner)
        at = abi.ffi.offsetof("struct neat_msg_r_filter", "rule")
        size = LAYOUT.size
        self.generation, self.last = int(message.h.seq), int(message.command)
        self.rules = [unpack(inner[at + i * size :][:size]) for i in range(int(message.count))]
        for replica in self.state.replicas:
            if stored.get(replica.index) != inner:
                self.store(replica.index)

    def store(self, replica: int) -> None:
        """Give a replica the rules, now and at each start."""
        inner = abi.pack(
            "struct neat_msg_r_filter",
            LIB.NEAT_MSG_R_FILTER,
            self.generation,
            count=len(self.rules),
            command=self.last,
        )
        at = abi.ffi.offsetof("struct neat_msg_r_filter", "rule")
        rules = b"".join(rule.pack() for rule in self.rules)
        inner = inner[:at] + rules + inner[at + len(rules) :]
        role = self.state.replicas[replica].filter_role
        self.state.link.store(role, replica, key(LIB.NEAT_MSG_R_FILTER), inner)

    def in_force(self, replica: int, generation: int) -> None:
        """R_FILTERED: this replica filters by that list, so by all older ones too."""
        for old in [g for g in self.changes if g <= generation]:
            change = self.changes[old]
            change.waiting.discard(replica)
            if not change.waiting:
                del self.changes[old]
                self._answer(change.connection, change.seq)
                self.finish(change.connection)

    def gone(self, replica: int) -> None:
        """Nobody waits for a replica that has ended."""
        self.in_force(replica, self.generation)

    # ---- command line ----

    def command(self, connection: Connection, seq: int, command: dict[str, Any]) -> bool:
        """False: the answer comes with the last replica's R_FILTERED."""
        if command.get("do") == "list":
            self._answer(connection, seq)
            return True
        number = command.get("id")
        if not isinstance(number, int) or not 0 < number < 1 << 32:
            raise Refused(errno.EINVAL, "a change of the filter needs a random number as id")
        if number != self.last:
            self.rules = edit(self.rules, command, len(self.state.replicas))
            self.last = number
        self.generation += 1
        for replica in self.state.replicas:
            self.store(replica.index)
        # One that does not run has the rules before it announces itself.
        waiting = {replica.index for replica in self.state.replicas if replica.pid}
        if not waiting:
            self._answer(connection, seq)
            return True
        self.changes[self.generation] = Change(connection, seq, waiting)
        return False

    def _answer(self, connection: Connection, seq: int) -> None:
        rules = [
            {
                "number": i + 1,
                "replicas": list(rule.replicas) or None,
                "rule": str(rule),
                **self._count(i),
            }
            for i, rule in enumerate(self.rules)
        ]
        text = json.dumps({"rules": rules}).encode()
        connection.send(abi.pack_text(LIB.NEAT_MSG_CLI_REPLY, text, seq))

    def _count(self, rule: int) -> dict[str, int]:
        """What all replicas together last published of a rule."""
        at = [replica.filter_status.at.filter[rule] for replica in self.state.replicas]
        return {
            "packets": sum(int(a.packets.v) for a in at),
            "bytes": sum(int(a.bytes.v) for a in at),
        }
