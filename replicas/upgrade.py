"""`neatsock upgrade`: asks the keeper, which does it, and hands its answer on (keeper/plan.c)."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable
from typing import Any

from neatsock import abi

from .clients import Connection, Refused
from .link import News
from .state import State

LIB = abi.lib


def _possible(path: str) -> bool:
    try:
        return len(os.fsencode(path)) <= 4000 and "\0" not in path
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


class Upgrades:
    def __init__(self, state: State, finish: Callable[[Connection], None]) -> None:
        self.state = state
        self.finish = finish
        self.waiting: list[tuple[int, Connection, int]] = []  # number, who asked, and its seq

    def command(self, connection: Connection, seq: int, command: dict[str, Any]) -> bool:
        """False: the answer comes later."""
        if self.state.options.mode != "stateful":
            text = "in stateless mode an upgrade would reset connections; use neatsock down and up"
            raise Refused(errno.ENOTSUP, text)
        path = command.get("replica_bin") or ""
        if not isinstance(path, str) or not _possible(path):
            raise Refused(errno.EINVAL, "replica_bin is no path")
        number = command.get("id", secrets.randbits(63) + 1)
        if not isinstance(number, int) or not 0 < number < 1 << 64:
            raise Refused(errno.EINVAL, "the id of an upgrade is a random number")
        self.state.link.upgrade(path, number)
        self.waiting.append((number, connection, seq))  # last: what failed is not waited for
        return False

    def on_news(self, item: News) -> None:
        """An upgrade has ended, or was not begun; it may be one that a predecessor asked for."""
        asked = [one for one in self.waiting if one[0] == item.key]
        self.waiting = [one for one in self.waiting if one[0] != item.key]
        for _, connection, seq in asked:
            self._answer(connection, seq, item)
            self.finish(connection)

    def _answer(self, connection: Connection, seq: int, item: News) -> None:
        if item.status:
            text = abi.text(abi.unpack("struct neat_msg_error", item.inner).text)
            connection.error(seq, -item.status, text)
        else:
            text = json.dumps({"upgraded": len(self.state.running())})
            connection.send(abi.pack_text(LIB.NEAT_MSG_CLI_REPLY, text.encode(), seq))
