"""A wire between two instances: who offers it, who takes its other end.

The instance that comes first makes a socket pair, listens at the wire's path and gives one end to
whoever connects there; that connection tells how long it is in use. Frames never come here: both
ends are the NICs'.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from neatsock import abi

from .link import KeeperLink, take_fds

LIB = abi.lib
ANSWER_S = 10.0


class UplinkError(Exception):
    """The NIC cannot be had; the text says why and what to do."""


def _seqpacket(fd: int | None = None) -> socket.socket:
    if fd is not None:
        return socket.socket(fileno=fd)
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _connect(path: Path) -> socket.socket | None:
    """A connection to whoever offers this wire; None when nobody does."""
    sock = _seqpacket()
    sock.settimeout(ANSWER_S)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as err:
        sock.close()
        raise UplinkError(f"cannot use the wire {path}: {err.strerror}") from err
    return sock


def _take_end(sock: socket.socket, path: Path) -> int:
    """The end that the other instance gives us. Blocks for up to ANSWER_S."""
    try:
        space = socket.CMSG_SPACE(4)
        data, ancillary, _, _ = sock.recvmsg(abi.MSG_MAX, space, socket.MSG_CMSG_CLOEXEC)
        kind = abi.header(data).type
    except (OSError, abi.MessageError) as err:
        raise UplinkError(f"the instance at the wire {path} does not answer: {err}") from err
    fds = take_fds(ancillary)
    if kind == LIB.NEAT_MSG_ERROR:
        raise UplinkError(abi.text(abi.unpack("struct neat_msg_error", data).text))
    if len(fds) != 1:
        raise UplinkError(f"the instance at the wire {path} gave no end of it")
    return fds[0]


def _listen(path: Path) -> socket.socket:
    sock = _seqpacket()
    path.unlink(missing_ok=True)  # nobody answered there
    try:
        sock.bind(str(path))
    except OSError as err:
        sock.close()
        raise UplinkError(f"cannot make the wire {path}: {err.strerror}") from err
    sock.listen(8)
    return sock


class Wire:
    """Our part in a wire. Descriptors are owned; the keeper has copies of all of them.

    Offered by us: `listener`, `theirs`, and `connection` while somebody has the other end. Taken:
    only `connection`. `ours` is there until the NIC gets it.
    """

    def __init__(self, path: Path, keeper: KeeperLink) -> None:
        self.path = path
        self.keeper = keeper
        self.ours: int | None = None
        self.theirs: int | None = None
        self.listener: socket.socket | None = None
        self.connection: socket.socket | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def join(cls, path: Path, keeper: KeeperLink) -> Wire:
        """Take the end that is offered at `path`, or offer one. UplinkError says why not."""
        self = cls(path, keeper)
        try:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise UplinkError(f"cannot use the wire {path}: {err.strerror}") from err
        try:
            # Of two instances that come at once, one offers and the other takes.
            fcntl.flock(directory, fcntl.LOCK_EX)
            self.connection = _connect(path)
            if self.connection is None:
                self.listener = _listen(path)
        finally:
            os.close(directory)
        if self.connection is not None:
            self.ours = _take_end(self.connection, path)
        else:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.ours, self.theirs = near.detach(), far.detach()
        self._remember()
        return self

    @classmethod
    def adopt(cls, path: Path, keeper: KeeperLink, fds: list[int], used: bool) -> Wire:
        """What a predecessor remembered."""
        self = cls(path, keeper)
        self.ours, *rest = fds
        if len(rest) > 1:
            self.listener, self.theirs = _seqpacket(rest[0]), rest[1]
            rest = rest[2:]
        if used:
            self.connection = _seqpacket(rest[0])
        return self

    def _remember(self) -> None:
        assert self.ours is not None
        fds = [self.ours]
        if self.listener is not None and self.theirs is not None:
            fds += [self.listener.fileno(), self.theirs]
        if self.connection is not None:
            fds.append(self.connection.fileno())
        self.keeper.remember("wire", fds=fds, used=self.connection is not None)

    def our_end(self) -> int:
        """A descriptor of our end; the caller's."""
        assert self.ours is not None
        return os.dup(self.ours)

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the other end away from now on."""
        self.loop = loop
        if self.listener is None:
            return
        self.listener.setblocking(False)
        loop.add_reader(self.listener.fileno(), self._offer)
        if self.connection is not None:
            loop.add_reader(self.connection.fileno(), self._given_back)

    def _offer(self) -> None:
        assert self.listener is not None and self.theirs is not None and self.loop is not None
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if self.connection is not None:
            self._given_back()  # the other end may have been closed just now
        if self.connection is not None:
            text = f"the wire {self.path} joins two instances already; use another path"
            with contextlib.suppress(OSError):
                kind, code = LIB.NEAT_MSG_ERROR, -errno.EBUSY
                raw = text.encode()[:239]
                sock.send(abi.pack("struct neat_msg_error", kind, status=code, text=raw))
            sock.close()
            return
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.theirs]))
        try:
            sock.sendmsg([abi.pack("struct neat_msg_result", LIB.NEAT_MSG_RESULT)], [rights])
        except OSError:
            sock.close()
            return
        self.connection = sock
        self.loop.add_reader(sock.fileno(), self._given_back)
        self._remember()

    def _given_back(self) -> None:
        """The instance that had the other end is gone: the next one may have it."""
        assert self.connection is not None and self.loop is not None
        try:
            if self.connection.recv(1, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.loop.remove_reader(self.connection.fileno())
        self.connection.close()
        self.connection = None
        self._remember()

    def close(self) -> None:
        """The instance ends: nobody finds the wire any more."""
        if self.listener is not None:
            self.path.unlink(missing_ok=True)
