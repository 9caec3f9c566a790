"""`neatsock upgrade`: asks the keeper, which does it, and hands its answer on (keeper/plan.c)."""

from __future__ import annotations

import errno
import json
import os
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
        self.waiting: list[tuple[Connection, int]] = []

    def command(self, connection: Connection, seq: int, command: dict[str, Any]) -> bool:
        """False: the answer comes later."""
        if self.state.options.mode != "stateful":
            text = "in stateless mode an upgrade would reset connections; use neatsock down and up"
            raise Refused(errno.ENOTSUP, text)
        path = command.get("replica_bin") or ""
        if not isinstance(path, str) or not _possible(path):
            raise Refused(errno.EINVAL, "replica_bin is no path")
        self.state.link.upgrade(path)
        self.waiting.append((connection, seq))  # last: what fails before must not be waited for
        return False

    def on_news(self, item: News) -> None:
        """Answers come in the order of the requests; only a refusal for a second one is early."""
        if not self.waiting:
            return  # a predecessor's
        connection, seq = self.waiting.pop(-1 if item.status == -errno.EBUSY else 0)
        if item.status:
            text = abi.text(abi.unpack("struct neat_msg_error", item.inner).text)
            connection.error(seq, -item.status, text)
        else:
            text = json.dumps({"upgraded": len(self.state.running())})
            connection.send(abi.pack_text(LIB.NEAT_MSG_CLI_REPLY, text.encode(), seq))
        self.finish(connection)
