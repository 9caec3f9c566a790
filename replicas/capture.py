"""`neatsock pcap`: a queue pair's frames into a file that the command line has opened.

A capture lives as long as the connection of the command that asked for it, so it ends with that
command, however that ends. The NIC writes; neatd only hands it the descriptor.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

from neatsock import abi

from .clients import Connection, Refused, Request
from .link import NIC
from .state import State

LIB = abi.lib
DIRECTIONS = {"rx": LIB.NEAT_CAPTURE_RX, "tx": LIB.NEAT_CAPTURE_TX, "both": 0}


class Captures:
    """Which command captures which replica's queue pair."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.running: dict[Connection, int] = {}

    def command(self, connection: Connection, request: Request, command: dict[str, Any]) -> None:
        """{"cmd": "capture", "replica": I, "dir": "rx"|"tx"|"both"} and the file's descriptor."""
        replica, direction = command.get("replica"), command.get("dir")
        if self.state.options.uplink is None:
            raise Refused(
                errno.ENOTSUP,
                "this instance has no uplink, so no frame passes a queue of the NIC (a local "
                "connection stays inside its replica); start it with neatsock up --tap or --wire",
            )
        known = [at.index for at in self.state.running()]
        if replica not in known:
            there = ", ".join(map(str, known))
            raise Refused(errno.EINVAL, f"there is no replica {replica}, only {there}")
        if direction not in DIRECTIONS:
            raise Refused(errno.EINVAL, f"a direction is rx, tx or both, not {direction!r}")
        if replica in self.running.values() or connection in self.running:
            raise Refused(errno.EBUSY, f"replica {replica} is being captured already")
        fd = request.take_fd()
        try:
            # The NIC does not wait for a reader, and for a disk only.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Refused(errno.EINVAL, "a capture needs a regular file")
            os.ftruncate(fd, 0)  # not before: a refusal leaves the file as it is
            self._send(replica, DIRECTIONS[direction], [fd])
        finally:
            os.close(fd)
        self.running[connection] = replica
        answer = json.dumps({"replica": replica}).encode()
        connection.send(abi.pack_text(LIB.NEAT_MSG_CLI_REPLY, answer, request.seq))

    def gone(self, connection: Connection) -> None:
        """The command ended."""
        replica = self.running.pop(connection, None)
        if replica is not None:
            self._send(replica)

    def nic_died(self) -> None:
        """The newcomer captures nothing: the commands are told by the end of their connections."""
        for connection in list(self.running):
            connection.server.drop(connection)

    def recovered(self) -> None:
        """The commands that asked our predecessor have lost their connections."""
        for replica in range(len(self.state.replicas)):
            self._send(replica)

    def _send(self, replica: int, direction: int = 0, fds: list[int] | None = None) -> None:
        kind = LIB.NEAT_MSG_N_CAPTURE
        inner = abi.pack("struct neat_msg_n_capture", kind, replica=replica, dir=direction)
        self.state.link.send(NIC, 0, inner, fds)
