"""neatd's end of fd 3: orders to the keeper, news from it.

Orders are sent blocking: the keeper reads whatever else happens, and descriptors may be closed as
soon as a call returns. What is stored under role NEATD is this process's own memory: a successor
gets it back, in order, before anything else.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
from dataclasses import dataclass
from typing import Any

from neatsock import abi

LIB = abi.lib
NEATD: int = LIB.NEAT_ROLE_NEATD
NIC: int = LIB.NEAT_ROLE_NIC
REPLICA: int = LIB.NEAT_ROLE_REPLICA
STANDBY: int = LIB.NEAT_ROLE_STANDBY
ANCILLARY = socket.CMSG_SPACE(4 * abi.FDS_MAX) + socket.CMSG_SPACE(12)


def key(kind: int, app: int = 0, number: int = 0) -> int:
    """Key of a stored message, see struct neat_msg_keeper."""
    return kind << 48 | (app & 0xFFFFFFFF) << 16 | number & 0xFFFF


# Kinds of neatd's own state; the order makes their keys, so a new one is the last.
STATES = "boot counter app proc bind wire scale hold uplink conn ports".split()


def state_key(kind: str, app: int = 0, number: int = 0) -> int:
    """Key of a piece of neatd's own state."""
    return key(LIB.NEAT_MSG_N_STATE + STATES.index(kind), app, number)


@dataclass
class News:
    """A message of the keeper; `inner` and `fds` are those of the wrapped message."""

    kind: int
    role: int
    index: int
    pid: int
    status: int
    epoch: int
    key: int
    inner: bytes
    fds: list[int]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def take_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Descriptors of a recvmsg() result, close-on-exec."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


class KeeperLink:
    def __init__(self, fd: int = 3) -> None:
        self.sock = socket.socket(fileno=fd)
        self.waiting: list[News] = []  # came while barrier() waited
        os.set_inheritable(fd, False)

    def fileno(self) -> int:
        return self.sock.fileno()

    def receive(self, wait: bool = False) -> News | None:
        """The next message, None if there is none now. EOFError when the keeper is gone."""
        if self.waiting:
            return self.waiting.pop(0)
        return self._receive(wait)

    def _receive(self, wait: bool) -> News | None:
        if wait:
            self._poll(select.POLLIN)
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        try:
            data, ancillary, _, _ = self.sock.recvmsg(
                abi.MSG_MAX + abi.KEEPER_SIZE, ANCILLARY, flags
            )
        except BlockingIOError:
            return None
        if not data:
            raise EOFError("the keeper is gone")
        outer = abi.unpack("struct neat_msg_keeper", data)
        return News(
            int(outer.h.type),
            int(outer.role),
            int(outer.index),
            int(outer.pid),
            int(outer.status),
            int(outer.epoch),
            int(outer.key),
            data[abi.KEEPER_SIZE :],
            take_fds(ancillary),
        )

    def barrier(self) -> None:
        """Wait until the keeper has done all that was asked: what it dropped is closed.

        News that come meanwhile are returned by receive() later; the caller must see to that.
        """
        self._send(abi.wrap(LIB.NEAT_MSG_K_SYNCED, role=NEATD), [])
        while True:
            item = self._receive(wait=True)
            assert item is not None
            if item.kind == LIB.NEAT_MSG_K_SYNCED:
                return
            self.waiting.append(item)

    def _send(self, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            try:
                self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                self._poll(select.POLLOUT)

    def _poll(self, events: int) -> None:
        """Wait. The socket's own flag says nothing: uvloop makes what it watches non-blocking."""
        poller = select.poll()
        poller.register(self.sock, events)
        poller.poll()

    def store(
        self, role: int, index: int, at: int, inner: bytes, fds: list[int] | None = None
    ) -> None:
        """Keep `inner` under key `at`, forward it, replay it to every successor."""
        data = abi.wrap(LIB.NEAT_MSG_K_STORE, inner, role=role, index=index, key=at)
        self._send(data, fds or [])

    def send(self, role: int, index: int, inner: bytes, fds: list[int] | None = None) -> None:
        """Forward only."""
        self._send(abi.wrap(LIB.NEAT_MSG_K_SEND, inner, role=role, index=index), fds or [])

    def drop(self, role: int, index: int, at: int) -> None:
        self._send(abi.wrap(LIB.NEAT_MSG_K_DROP, role=role, index=index, key=at), [])

    def spawn(self, role: int, index: int) -> None:
        self._send(abi.wrap(LIB.NEAT_MSG_K_SPAWN, role=role, index=index), [])

    def upgrade(self, path: str, number: int) -> None:
        """Replace every replica by one started from `path`; K_UPGRADED tells how it went."""
        inner = abi.pack_text(LIB.NEAT_MSG_K_UPGRADE, os.fsencode(path))
        self._send(abi.wrap(LIB.NEAT_MSG_K_UPGRADE, inner, role=REPLICA, key=number), [])

    def stop(self) -> None:
        """The whole instance ends, this process included."""
        self._send(abi.wrap(LIB.NEAT_MSG_K_STOP, role=NEATD), [])

    def remember(
        self, kind: str, app: int = 0, number: int = 0, fds: list[int] | None = None, **state: Any
    ) -> None:
        """Keep a piece of our own state for a successor."""
        state |= {"kind": kind, "app": app, "number": number}
        inner = abi.pack_text(LIB.NEAT_MSG_N_STATE, json.dumps(state).encode())
        self.store(NEATD, 0, state_key(kind, app, number), inner, fds)

    def forget(self, kind: str, app: int = 0, number: int = 0) -> None:
        self.drop(NEATD, 0, state_key(kind, app, number))
