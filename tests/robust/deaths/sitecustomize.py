"""First in the Python path of an instance, lets a test kill its neatd at a place of its choice.

The file that NEAT_DEATH names says where, and for which message type: "send TYPE N" is before the
N-th message of that type goes to a program, "take TYPE N" after the N-th was answered, but before
it is off the socket. Of what neatd and the keeper wrap: "told TYPE N" is when the N-th is sent,
"hear TYPE N" when the N-th was read; TYPE is a word for a piece of neatd's own state. "bound 0 N"
is after its N-th bind(). Who dies there removes the file, so that a successor goes on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TYPE = slice(6, 8)  # of struct neat_msg_header
HEADER, WRAP = 16, 48  # struct neat_msg_header, neat_msg_keeper
KEEPER_FD = 3


def wrapped(data: bytes) -> str:
    """What a message of the keeper, or for it, wraps."""
    if data[WRAP + HEADER : WRAP + HEADER + 1] == b"{":
        return str(json.loads(data[WRAP + HEADER :])["kind"])
    return str(int.from_bytes(data[WRAP:][TYPE], "little"))


def install(order: Path) -> None:
    """From now on sockets look whether it is their turn."""
    sendmsg, recvmsg, recv = socket.socket.sendmsg, socket.socket.recvmsg, socket.socket.recv
    bind = socket.socket.bind
    seen: Counter[str] = Counter()
    peeked: dict[int, int] = {}  # descriptor -> type of its oldest message

    def reached(place: str, kind: object) -> None:
        try:
            *where, count = order.read_text().split()
        except FileNotFoundError:
            return
        if where == [place, str(kind)]:
            seen[place] += 1
            if seen[place] == int(count):
                order.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    def sending(self: socket.socket, buffers: Any, *args: Any) -> int:
        if self.fileno() != KEEPER_FD:
            reached("send", int.from_bytes(buffers[0][TYPE], "little"))
        done = sendmsg(self, buffers, *args)
        if self.fileno() == KEEPER_FD:
            reached("told", wrapped(buffers[0]))
        return done

    def peeking(self: socket.socket, *args: Any) -> Any:
        found = recvmsg(self, *args)
        if self.fileno() == KEEPER_FD:
            reached("hear", wrapped(found[0]))
        peeked[self.fileno()] = int.from_bytes(found[0][TYPE], "little")
        return found

    def taking(self: socket.socket, *args: Any) -> bytes:
        reached("take", peeked.get(self.fileno(), 0))
        return recv(self, *args)

    def binding(self: socket.socket, *args: Any) -> None:
        bind(self, *args)
        reached("bound", 0)

    patched: Any = socket.socket
    patched.bind = binding
    patched.sendmsg, patched.recvmsg, patched.recv = sending, peeking, taking


if "NEAT_DEATH" in os.environ and "neatsock.replicas.neatd" in sys.orig_argv:
    install(Path(os.environ["NEAT_DEATH"]))
