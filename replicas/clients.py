"""The control socket: connections of libraries and of the command line.

Every datagram is checked here (length, magic, version, type); what is wrong gets NEAT_MSG_ERROR
with a text and the connection ends, nobody else notices. Nothing blocks: who does not read is
dropped. Every call says MSG_DONTWAIT: O_NONBLOCK of a socket that a program made (CHILD) is the
program's to clear. A request is taken off the socket only after it was answered, so that a
neatd that takes over finds it again; handlers are therefore idempotent.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from neatsock import abi

from .limits import SILENT_MOST, UNUSED_MOST
from .link import ANCILLARY, take_fds
from .report import log

LIB = abi.lib
LARGEST = 131072  # CLI requests and replies; everything else is at most abi.MSG_MAX
UNREAD_MOST = 4096  # datagrams; a full queue holds fewer (unix(7), SO_SNDBUF)
UCRED = struct.Struct("3i")


class Refused(Exception):
    """The request is refused with -errno and a text for a person; the connection ends."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Request:
    kind: int
    seq: int
    data: bytes
    pid: int  # sender, as the kernel vouches
    uid: int
    fds: list[int] = field(default_factory=list)

    def take_fd(self) -> int:
        """The one descriptor that came along; the caller owns it."""
        if len(self.fds) != 1:
            raise Refused(errno.EINVAL, f"one descriptor expected, {len(self.fds)} came")
        return self.fds.pop()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Connection:
    """One control connection.

    `owner` is (app id, process index) while an attached process has it; `app_id` and `pid` stay
    when that process is gone, because children it forked may still speak over its connection.
    """

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.sock = sock
        self.server = server
        self.owner: tuple[int, int] | None = None
        self.app_id: int | None = None
        self.pid = 0
        self.kept: int | None = None  # number under which the keeper has it, once without an owner
        self.refusal: Refused | None = None  # what its first request gets
        self.hung_up = False  # the other end was closed, by exec or exit
        self.busy = False
        self.silent = True  # no request came yet
        # A predecessor of ours had it, and may have answered the oldest request on it.
        self.recovered = False
        self.open = True
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def peer(self) -> tuple[int, int]:
        """(pid, uid) of who connected."""
        raw = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        pid, uid, _ = UCRED.unpack(raw)
        return pid, uid

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        """Queue one datagram. A peer that left its queue full, or went, loses the connection."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if not self.open:
            return
        try:
            self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            self.server.drop(self)

    def result(self, seq: int, status: int, value: int = 0) -> None:
        kind = LIB.NEAT_MSG_RESULT
        self.send(abi.pack("struct neat_msg_result", kind, seq, status=status, value=value))

    def error(self, seq: int, code: int, text: str) -> None:
        raw = text.encode()[:239]
        self.send(
            abi.pack("struct neat_msg_error", LIB.NEAT_MSG_ERROR, seq, status=-code, text=raw)
        )

    def peek(self) -> Request | None:
        """The oldest datagram, left on the socket. None: none now; EOFError: the peer closed."""
        try:
            how = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            data, ancillary, flags, _ = self.sock.recvmsg(LARGEST, ANCILLARY, how)
        except BlockingIOError:
            return None
        except OSError as err:
            raise EOFError from err
        fds = take_fds(ancillary)
        # An empty datagram carries its sender's credentials, the end of the stream does not.
        if not data and not any(kind == socket.SCM_CREDENTIALS for _, kind, _ in ancillary):
            raise EOFError
        pid = uid = -1
        for _, kind, raw in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = UCRED.unpack(raw)
        request = Request(0, 0, data, pid, uid, fds)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise abi.MessageError("the message or its list of descriptors is too long")
            head = abi.header(data)
            request.kind, request.seq = int(head.type), int(head.seq)
            if len(data) > abi.MSG_MAX and request.kind != LIB.NEAT_MSG_CLI:
                raise abi.MessageError("the message is too long")
        except abi.MessageError as err:
            request.close()
            raise Refused(errno.EPROTO, str(err)) from err
        return request

    def consume(self) -> None:
        """Take the datagram that peek() showed off the socket."""
        self.recovered = False
        if self.open:
            try:
                self.sock.recv(1, socket.MSG_DONTWAIT)
            except OSError:
                self.server.drop(self)


Handler = Callable[[Connection, Request], bool]


class Server:
    """Accepts and reads; `handle` returns False when its answer comes later (see finish())."""

    def __init__(
        self,
        listener: socket.socket,
        loop: asyncio.AbstractEventLoop,
        handle: Handler,
        gone: Callable[[Connection], None],
    ) -> None:
        self.listener = listener
        self.loop = loop
        self.handle = handle
        self.gone = gone
        self.connections: dict[Connection, None] = {}  # oldest first
        listener.setblocking(False)
        loop.add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:  # gone again, or out of descriptors: the next event tries again
            return
        connection = Connection(sock, self)
        # Who connected counts: a program of ours may have changed its user since.
        pid, uid = connection.peer()
        unused = [other for other in self.connections if other.app_id is None]
        if uid not in (0, os.geteuid()):
            text = f"this instance belongs to user {os.geteuid()}; start your own: neatsock up"
            connection.refusal = Refused(errno.EPERM, text)
        elif sum(other.peer()[0] == pid for other in unused) >= UNUSED_MOST:
            text = f"process {pid} has {UNUSED_MOST} connections here that it does not use"
            connection.refusal = Refused(errno.EMFILE, text)
        silent = [other for other in unused if other.silent]
        if len(silent) >= SILENT_MOST:
            # The oldest: whoever means it speaks at once.
            self.drop(next((other for other in silent if other.refusal), silent[0]))
        self.adopt(connection)

    def adopt(self, connection: Connection) -> None:
        self.connections[connection] = None
        self.loop.add_reader(connection.sock.fileno(), self._readable, connection)

    def drop(self, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        self.connections.pop(connection, None)
        self.loop.remove_reader(connection.sock.fileno())
        # Unread datagrams would turn the peer's end of file into ECONNRESET, before our last word.
        with contextlib.suppress(OSError):
            for _ in range(UNREAD_MOST):  # it may go on sending
                if not connection.sock.recv(1, socket.MSG_DONTWAIT):
                    break
        with contextlib.suppress(OSError):
            # A copy of the descriptor may be in the keeper's store for a moment longer.
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.sock.close()
        self.gone(connection)

    def _readable(self, connection: Connection) -> None:
        request: Request | None = None
        try:
            request = connection.peek()
            if request is None:
                return
            connection.silent = False
            if connection.refusal:
                raise connection.refusal
            if self.handle(connection, request):
                request.close()  # a socket among them holds its port until all copies are closed
                connection.consume()
            else:
                connection.busy = True
                self.loop.remove_reader(connection.sock.fileno())
        except EOFError:
            connection.hung_up = True
            self.drop(connection)
        except Refused as refusal:
            seq = request.seq if request else 0
            connection.error(seq, refusal.code, str(refusal))
            self.drop(connection)
        except abi.MessageError as err:
            connection.error(request.seq if request else 0, errno.EPROTO, str(err))
            self.drop(connection)
        except OSError as err:
            text = f"neatd could not do that: {err}"
            connection.error(request.seq if request else 0, err.errno or errno.EIO, text)
            self.drop(connection)
        except Exception:  # one client's request never ends the instance's control process
            log(traceback.format_exc())
            connection.error(0, errno.EIO, "neatd failed, see the instance's log")
            self.drop(connection)
        finally:
            if request:
                request.close()

    def finish(self, connection: Connection) -> None:
        """The late answer was sent: the request is done, the next may come."""
        if connection.open and connection.busy:
            connection.busy = False
            connection.consume()
        if connection.open:
            self.loop.add_reader(connection.sock.fileno(), self._readable, connection)
