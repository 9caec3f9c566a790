"""Applications come and go: ATTACH, CHILD, EVENTFD, and the death of processes."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

from neatsock import abi

from . import apps
from .apps import App, Orphan, Process
from .clients import Connection, Refused, Request, Server
from .limits import ATTACHED_MOST, CONNECTIONS_MOST
from .link import REPLICA, key
from .report import log
from .state import State

LIB = abi.lib
NO_PROCESS = 0xFFFFFFFF
LOOK_PAUSE_MOST_S = 0.5


def readable(files: Iterable[int | socket.socket]) -> bool:
    """Any of them, now."""
    poller = select.poll()
    for file in files:
        poller.register(file, select.POLLIN)
    return bool(poller.poll(0))


def alive(pid: int) -> bool:
    """Not dead, reaped or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return False
    dead = readable([pidfd])
    os.close(pidfd)
    return not dead


def _eventfd_of(request: Request) -> int:
    """The eventfd that came along, non-blocking from now on; the caller owns it."""
    fd = request.take_fd()
    try:
        if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
            raise Refused(errno.EINVAL, "EVENTFD needs an eventfd")
        os.set_blocking(fd, False)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _seqpacket_of(request: Request) -> socket.socket:
    """The socket that came along; the caller owns it."""
    fd = request.take_fd()
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        sock.close()
        raise Refused(errno.EINVAL, "CHILD needs one end of an AF_UNIX SOCK_SEQPACKET pair")
    return sock


class Attachments:
    def __init__(
        self,
        state: State,
        loop: asyncio.AbstractEventLoop,
        release: Callable[[App, Orphan], None],
        app_gone: Callable[[App], None],
    ) -> None:
        self.state = state
        self.loop = loop
        self.release = release  # of a socket that may hold a port
        self.app_gone = app_gone
        self.server: Server | None = None
        self.leaving: dict[int, set[int]] = {}  # applications that replicas still have memory of
        self.changed: Callable[[], None] = lambda: None  # an application has gone

    # ---- requests ----

    def attach(self, connection: Connection, request: Request) -> None:
        """NEAT_MSG_ATTACH: a new application, or one of ours after exec."""
        message = self._checked(request)
        pid, uid = connection.peer()
        if connection.owner is not None and not connection.recovered:
            raise Refused(errno.EISCONN, "this connection is attached already")
        if int(message.pid) != pid:
            raise Refused(errno.EPERM, f"process {pid} may not attach process {message.pid}")
        if connection.owner is not None:
            # A predecessor of ours had attached it, and did not answer to the end.
            app, process = self.owner(connection)
            self._answer(app, process.index, connection, request.seq)
            return
        if message.app_id:
            app, index = self._rejoined(message, pid)
        else:
            app, index = self._new_app(uid, pid, abi.text(message.comm)), 0
        # First of all: whatever fails from here on, its end lets the application go.
        connection.app_id, connection.pid = app.app_id, pid
        app.connections.add(connection)
        self._image(app, index, pid, connection)
        self._answer(app, index, connection, request.seq)

    def child(self, parent: Connection, request: Request) -> None:
        """NEAT_MSG_CHILD: a forked process opens its own connection over its parent's."""
        message = self._checked(request)
        app = self.app_of(parent)
        if int(message.pid) != request.pid:
            raise Refused(errno.EPERM, f"process {request.pid} may not attach {message.pid}")
        process = self._sender(app, request, int(message.proc))
        if process is None:
            return
        if len(app.connections) >= CONNECTIONS_MOST:
            text = f"this application has {CONNECTIONS_MOST} connections to neatd, its limit"
            raise Refused(errno.EMFILE, text)
        assert self.server is not None
        sock = _seqpacket_of(request)
        known = self.state.process_connection(app.app_id, process.index)
        if known is not None and os.path.sameopenfile(known.sock.fileno(), sock.fileno()):
            sock.close()  # a predecessor of ours had done this
            return
        connection = Connection(sock, self.server)
        self.server.adopt(connection)
        self._own(app, process, connection)
        self._remember_process(app, process)

    def eventfd(self, connection: Connection, request: Request) -> None:
        """NEAT_MSG_EVENTFD: how to wake this process when it sleeps in the kernel."""
        message = abi.unpack("struct neat_msg_eventfd", request.data)
        app = self.app_of(connection)
        process = self._sender(app, request, int(message.proc))
        if process is None:
            return
        fd = _eventfd_of(request)
        self._drop_eventfd(app, process)
        process.eventfd = fd
        inner = abi.pack(
            "struct neat_msg_r_channel",
            LIB.NEAT_MSG_R_CHANNEL,
            app_id=app.app_id,
            number=process.index,
            gen=int(message.gen),
        )
        at = key(LIB.NEAT_MSG_R_CHANNEL, app.app_id, process.index)
        for replica in range(len(app.segments)):
            self.state.link.store(REPLICA, replica, at, inner, [fd])

    def forked(self, connection: Connection) -> None:
        """NEAT_MSG_FORKED: there may be processes we have not heard of."""
        self._look_soon(self.app_of(connection))

    def _look_soon(self, app: App) -> None:
        wait_s = app.next_look - time.monotonic()
        if wait_s <= 0:
            self._look_again(app)
        elif not app.looking:  # the flag stays set: until we look nobody says it again
            app.looking = True
            self.loop.call_later(wait_s, self._look_again, app)

    def _look_again(self, app: App) -> None:
        app.looking = False
        if self.state.apps.get(app.app_id) is not app:
            return
        begin = time.monotonic()
        app.shared.at.forked.v = 0  # before we look: who forks after this says so again
        self.look_for_children(app)
        self._free_unborn(app)
        end = time.monotonic()
        # A program that forges entries has a tenth of our time.
        app.next_look = end + min(9 * (end - begin), LOOK_PAUSE_MOST_S)

    def _sender(self, app: App, request: Request, index: int) -> Process | None:
        """The process with this entry, which spoke over anybody's connection. None: it is dead."""
        before = app.processes.get(index)
        if before is not None and before.pid != request.pid and readable([before.pidfd]):
            self._died(app, before)  # not handled yet, and a sibling has freed its entry
        if index not in app.processes:
            self.look_for_children(app)
        process = app.processes.get(index)
        entry = apps.live_entries(app).get(index) if process is None else None
        if entry == (request.pid, LIB.NEAT_PROC_LIVE) and alive(request.pid):
            # It has gone on to exec already: its maps do not show whose it was, the kernel vouches.
            process = self._watch(app, index, request.pid)
        if process is not None and process.pid == request.pid:
            return process
        if alive(request.pid):
            text = f"process entry {index} is not one of process {request.pid}"
            raise Refused(errno.EINVAL, text)
        return None  # its last words; its parent, over whose connection they came, goes on

    def app_of(self, connection: Connection) -> App:
        """Whose connection this is, shared with children or not. Refused if nobody attached."""
        if connection.app_id is None or connection.app_id not in self.state.apps:
            raise Refused(errno.ENOTCONN, "attach first")
        return self.state.apps[connection.app_id]

    def owner(self, connection: Connection) -> tuple[App, Process]:
        """Who sent this. Refused when it has not attached."""
        if connection.owner is None:
            raise Refused(errno.ENOTCONN, "attach first")
        app = self.state.apps[connection.owner[0]]
        return app, app.processes[connection.owner[1]]

    def _checked(self, request: Request) -> Any:
        message = abi.unpack("struct neat_msg_attach", request.data)
        if int(message.abi_size) != abi.fingerprint():
            raise Refused(
                errno.EPROTO,
                "the program's neatsock has another memory layout than this instance; "
                "end the instance (neatsock down) and start it with the same version",
            )
        return message

    # ---- applications ----

    def _check_limits(self, pid: int) -> None:
        most = self.state.options.limits.apps_max
        if len(self.state.apps) + len(self.leaving) >= most:
            raise Refused(
                errno.ENFILE,
                f"this instance has room for {most} programs at the same time, and they are there; "
                "more: end some, or neatsock down and neatsock up --apps-max",
            )
        ours = [p for app in self.state.apps.values() for p in app.processes.values()]
        if sum(process.pid == pid for process in ours) >= ATTACHED_MOST:
            raise Refused(errno.EMFILE, f"process {pid} has attached {ATTACHED_MOST} times already")

    def _new_app(self, uid: int, pid: int, comm: str) -> App:
        self._check_limits(pid)
        app_id = self.state.next_app
        shared = abi.Object.create(
            "struct neat_app", LIB.NEAT_OBJ_APP, app_id, self.state.instance, LIB.NEAT_APP_SIZE
        )
        shared.at.app_id = app_id
        app = App(app_id, shared, uid, comm, [])
        try:
            app.segments = [self._new_segment(app_id, r.index) for r in self.state.replicas]
        except OSError:
            app.close()
            raise
        self.state.next_app += 1
        link = self.state.link
        link.remember("counter", next_app=self.state.next_app)
        link.remember("app", app_id, fds=[shared.fd], uid=uid, comm=comm)
        for replica, segment in enumerate(app.segments):
            message = abi.pack("struct neat_msg_r_app", LIB.NEAT_MSG_R_SEGMENT, app_id=app_id)
            at = key(LIB.NEAT_MSG_R_SEGMENT, app_id)
            link.store(REPLICA, replica, at, message, list(segment))
        entry = shared.at.procs[0]
        entry.pid.v = pid
        entry.state.v = LIB.NEAT_PROC_LIVE
        self.state.apps[app_id] = app
        return app

    def _new_segment(self, app_id: int, replica: int) -> tuple[int, ...]:
        """Descriptors of seg_pub, seg_app, channels."""
        objects: tuple[tuple[str, int, int | None, dict[str, int]], ...] = (
            ("seg_pub", LIB.NEAT_OBJ_SEG_PUB, None, {"app_id": app_id}),
            ("seg_app", LIB.NEAT_OBJ_SEG_APP, LIB.NEAT_SEG_APP_SIZE, {}),
            ("channels", LIB.NEAT_OBJ_CHANNELS, None, {"app_id": app_id}),
        )
        fds: list[int] = []
        try:
            for name, kind, size, fields in objects:
                ctype, instance = f"struct neat_{name}", self.state.instance
                fds.append(abi.memory_file(ctype, kind, replica, instance, size, **fields))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return tuple(fds)

    def _rejoined(self, message: Any, pid: int) -> tuple[App, int]:
        app = self.state.apps.get(int(message.app_id))
        if app is None or int(message.instance) != self.state.instance:
            raise Refused(
                errno.ESTALE, "the inherited sockets belong to an instance that has ended"
            )
        entries = apps.live_entries(app)
        index = int(message.proc)
        if index == NO_PROCESS:
            index = next((i for i, (owner, _) in entries.items() if owner == pid), NO_PROCESS)
        if index not in entries or entries[index][0] != pid:
            raise Refused(errno.EPERM, f"process {pid} is not part of application {app.app_id}")
        return app, index

    def _drop_app(self, app: App) -> None:
        """Its last process is gone: every connection closes as a last close would."""
        link = self.state.link
        for connection in list(app.connections):
            self._unkeep(app, connection)
            connection.app_id = None
        self.app_gone(app)
        gone = abi.pack("struct neat_msg_r_app", LIB.NEAT_MSG_R_APP_GONE, app_id=app.app_id)
        # Kept, and the segment with it, until the replica has sent what is left and answers.
        self.leaving[app.app_id] = {replica.index for replica in self.state.running()}
        for replica in range(len(self.state.replicas)):
            link.store(REPLICA, replica, key(LIB.NEAT_MSG_R_APP_GONE, app.app_id), gone)
        link.forget("app", app.app_id)
        for pid in list(app.silent):
            self._forget_silent(app, pid)
        del self.state.apps[app.app_id]
        app.close()
        self.changed()

    def app_done(self, replica: int, app_id: int) -> None:
        """R_APP_DONE: this replica has nothing of the application any more."""
        waiting = self.leaving.get(app_id, set())
        waiting.discard(replica)
        if not waiting:
            self.leaving.pop(app_id, None)

    def replica_gone(self, replica: int) -> None:
        """It had nothing of anybody."""
        for app_id in list(self.leaving):
            self.app_done(replica, app_id)

    # ---- processes ----

    def _image(self, app: App, index: int, pid: int, connection: Connection) -> None:
        """A process attaches, for the first time or again: exec replaced the image that did.

        The connection of that image stays until nobody has its other end, as after a death.
        """
        process = app.processes.get(index)
        if process is not None and process.pid != pid:
            self._died(app, process)  # its end is known, but was not handled yet
            process = None
        if process is None:
            process = self._watch(app, index, pid)
        self._drop_eventfd(app, process)
        old = self.state.connections.get((app.app_id, index))
        if old is not None:
            self._exec_closed(app, process)
            self._disown(old)
        self._own(app, process, connection)
        self._remember_process(app, process)

    def _own(self, app: App, process: Process, connection: Connection) -> None:
        before = self.state.process_connection(app.app_id, process.index)
        if before is not None:
            self._disown(before)
        connection.owner = (app.app_id, process.index)
        connection.app_id, connection.pid = app.app_id, process.pid
        self.state.connections[connection.owner] = connection
        app.connections.add(connection)

    def _disown(self, connection: Connection) -> None:
        if connection.owner is not None:
            self.state.connections.pop(connection.owner, None)
            connection.owner = None
            self._keep(connection)

    def _keep(self, connection: Connection) -> None:
        """Remember it by itself, before the record of the process that had it goes.

        Children of that process may speak over it, and have no other way to us.
        """
        app = self.state.apps.get(connection.app_id or 0)
        if app is None or not connection.open or connection not in app.connections:
            return
        used = {other.kept for other in app.connections}
        number = next(i for i in range(len(used) + 1) if i not in used)
        if number >= CONNECTIONS_MOST:
            return  # who attaches as often as that loses it with us
        connection.kept = number
        fds = [connection.sock.fileno()]
        self.state.link.remember("conn", app.app_id, number, fds=fds, pid=connection.pid)

    def _unkeep(self, app: App, connection: Connection) -> None:
        if connection.kept is not None:
            self.state.link.forget("conn", app.app_id, connection.kept)
            connection.kept = None

    def _remember_process(self, app: App, process: Process) -> None:
        connection = self.state.process_connection(app.app_id, process.index)
        fds = [process.pidfd] + ([connection.sock.fileno()] if connection else [])
        self.state.link.remember("proc", app.app_id, process.index, fds=fds, pid=process.pid)
        if connection:
            self._unkeep(app, connection)

    def _drop_eventfd(self, app: App, process: Process) -> None:
        if process.eventfd is None:
            return
        os.close(process.eventfd)
        process.eventfd = None
        at = key(LIB.NEAT_MSG_R_CHANNEL, app.app_id, process.index)
        for replica in range(len(app.segments)):
            self.state.link.drop(REPLICA, replica, at)

    def _answer(self, app: App, index: int, connection: Connection, seq: int) -> None:
        state = self.state
        attached = abi.pack(
            "struct neat_msg_attached",
            LIB.NEAT_MSG_ATTACHED,
            seq,
            app_id=app.app_id,
            proc=index,
            replicas=len(app.segments),
            spin_us=state.options.spin_us,
            instance=state.instance,
        )
        connection.send(attached, [state.registry_ro, app.shared.fd])
        for replica, (pub, own, channels) in enumerate(app.segments):
            segment = abi.pack(
                "struct neat_msg_segment",
                LIB.NEAT_MSG_SEGMENT,
                seq,
                replica=replica,
                epoch=state.replicas[replica].epoch,
            )
            pub_ro = abi.read_only(pub)
            connection.send(segment, [pub_ro, own, channels, state.replicas[replica].status_ro])
            os.close(pub_ro)

    # ---- deaths ----

    def _watch(self, app: App, index: int, pid: int, pidfd: int | None = None) -> Process:
        """Poll the process's pidfd. ProcessLookupError when it is dead already."""
        if pidfd is None:
            pidfd = os.pidfd_open(pid)
        process = Process(index, pid, pidfd)
        app.processes[index] = process
        if pid in app.silent:
            self._forget_silent(app, pid)  # it has spoken
            if self._unborn(app):
                self.loop.call_soon(self._look_soon, app)  # not now: we are looking
        self.loop.add_reader(pidfd, self._died, app, process)
        return process

    def look_for_children(self, app: App) -> None:
        """Processes that were forked and hold sockets, but have not said a word yet."""
        entries = apps.live_entries(app)
        strangers: dict[int, bool] = {}
        gone: list[tuple[int, int]] = []
        for index, (pid, state) in entries.items():
            if index in app.processes or pid == 0:
                continue
            if state == LIB.NEAT_PROC_CLAIMED and not self._told(entries, app, index):
                continue
            if state == LIB.NEAT_PROC_SWEPT and alive(pid):
                continue
            if pid not in strangers:
                strangers[pid] = apps.stranger(app, pid)
            if strangers[pid]:
                # A child that went on to exec has said so over a connection, perhaps not read yet.
                if not (self._unread(app) and alive(pid)):
                    gone.append((index, pid))
                continue
            if any(process.pid == pid for process in app.processes.values()):
                continue  # a process has one entry; when that one is dead, we look again
            try:
                process = self._watch(app, index, pid)
            except (OSError, OverflowError):  # dead already, or no pid at all
                gone.append((index, pid))
            else:
                self._remember_process(app, process)
        if gone:
            self._free(app, gone)

    @staticmethod
    def _told(entries: dict[int, tuple[int, int]], app: App, index: int) -> bool:
        """The pid in a claimed entry is the living child's: its parent has said so.

        A dead one may be the parent's, whose own entry is another process's by now.
        """
        pid = entries[index][0]
        parent, state = entries.get(int(app.shared.at.procs[index].parent.v), (0, 0))
        return state == LIB.NEAT_PROC_LIVE and parent != pid and alive(pid)

    def _died(self, app: App, process: Process) -> None:
        """Its connection stays until nobody has its other end: a child may be about to speak."""
        self.loop.remove_reader(process.pidfd)
        try:
            self.look_for_children(app)
        finally:
            self._forget(app, process)
        try:
            if app.processes or app.connections:
                self._free(app, [(process.index, process.pid)])
                self.look_for_children(app)  # the entry may have a new holder already
                if self._unborn(app):
                    self._look_soon(app)
        finally:
            self._drop_if_gone(app)

    def _forget(self, app: App, process: Process) -> None:
        """What we have of a dead process."""
        connection = self.state.process_connection(app.app_id, process.index)
        if connection is not None:
            self._disown(connection)
        self._drop_eventfd(app, process)
        self.state.link.forget("proc", app.app_id, process.index)
        process.close()
        del app.processes[process.index]

    def _drop_if_gone(self, app: App) -> None:
        if app.app_id in self.state.apps and not app.processes and not app.connections:
            self._drop_app(app)

    def _free(self, app: App, entries: list[tuple[int, int]]) -> None:
        """(index, pid) of dead processes: their descriptors are closed, others may have them."""
        self._swept(app, lambda: apps.sweep(app, entries))
        gone = abi.pack("struct neat_msg_r_app", LIB.NEAT_MSG_R_CHANNEL_GONE, app_id=app.app_id)
        for replica in range(len(app.segments)):
            self.state.link.send(REPLICA, replica, gone)

    def _swept(self, app: App, sweep: Callable[[], list[Orphan]]) -> None:
        """Release what nobody holds any more."""
        try:
            orphans = sweep()
        except (OSError, subprocess.SubprocessError) as err:
            # Its sockets stay open until the application ends; nothing else depends on it.
            log(f"a process entry was not swept: {err}")
            return
        for orphan in orphans:
            self._release_orphan(app, orphan)

    def _release_orphan(self, app: App, orphan: Orphan) -> None:
        if orphan.state == LIB.NEAT_SOCK_CONNECT and orphan.replica < len(app.segments):
            self._release_slot(app, orphan, orphan.replica, orphan.slot, orphan.slot_gen)
        elif orphan.state == LIB.NEAT_SOCK_DGRAM:
            for replica in range(len(app.segments)):
                sub = app.shared.at.socks[orphan.sock].sub[replica]
                slot = int(sub.slot) & (LIB.NEAT_SLOTS - 1)
                if slot:
                    self._release_slot(app, orphan, replica, slot, int(sub.gen))
        self.release(app, orphan)
        record = app.shared.at.socks[orphan.sock]
        record.state.v = LIB.NEAT_SOCK_FREE
        record.refs.v = 0  # last: from here on it is anybody's

    def _release_slot(self, app: App, orphan: Orphan, replica: int, slot: int, gen: int) -> None:
        kind = LIB.NEAT_MSG_R_RELEASE
        message = abi.pack(
            "struct neat_msg_r_listen",
            kind,
            app_id=app.app_id,
            slot=slot,
            gen=gen,
            sock=(orphan.gen & 0xFFFF) << 16 | orphan.sock,
        )
        self.state.link.store(REPLICA, replica, key(kind, app.app_id, slot), message)

    def connection_gone(self, connection: Connection) -> None:
        """No death in itself: the pidfd tells about that; exec closes the connection too."""
        if connection.app_id is None or connection.app_id not in self.state.apps:
            return
        app = self.state.apps[connection.app_id]
        app.connections.discard(connection)
        self._unkeep(app, connection)
        try:
            if connection.owner is not None:
                self._owned_gone(app, connection, app.processes[connection.owner[1]])
            elif connection.pid not in (process.pid for process in app.processes.values()):
                # Nobody has its other end: no child of that process that has not spoken.
                unborn = [entry for entry in self._unborn(app) if entry[1] == connection.pid]
                if unborn:
                    self._free(app, unborn)
        finally:
            self._drop_if_gone(app)

    def _owned_gone(self, app: App, connection: Connection, process: Process) -> None:
        self._disown(connection)
        # Not if it was us who hung up: then the program goes on with its sockets.
        if connection.hung_up:
            self._exec_closed(app, process)
            if not apps.has_descriptors(app, process.index):
                self._died(app, process)  # the new image has nothing of ours
                return
        # Last: until then a successor of ours sees that connection end, too.
        self._remember_process(app, process)

    def _exec_closed(self, app: App, process: Process) -> None:
        """The process left its image (exec): what was close-on-exec is closed."""
        if apps.maps_object(process.pid, app.shared.fd) is False:
            self._swept(app, lambda: apps.sweep_cloexec(app, process.index))

    def _unborn(self, app: App) -> list[tuple[int, int]]:
        """(index, pid) of entries claimed for a child by who did not live to fill them in."""
        known = {process.pid for process in app.processes.values()}
        return [
            (index, pid)
            for index, (pid, state) in apps.live_entries(app).items()
            if state == LIB.NEAT_PROC_CLAIMED
            and index not in app.processes
            and pid not in known
            and pid
        ]

    def _free_unborn(self, app: App) -> None:
        """Unless such a child lives and has not run yet: then its end makes us look again."""
        unborn = self._unborn(app)
        if not unborn:
            return
        # Before the look at who is there: from here on the dead have no more children. An entry
        # may name the child already, which has gone on to exec.
        unread = self._unread(app)
        gone = [e for e in unborn if not alive(e[1]) or (not unread and apps.stranger(app, e[1]))]
        known = {process.pid for process in app.processes.values()}
        for pid, pidfd in apps.live_holders(app, known | set(app.silent)).items():
            app.silent[pid] = pidfd
            self.loop.add_reader(pidfd, self._silent_died, app, pid)
        named = {pid for pid, _ in apps.live_entries(app).values()}
        if gone and named >= set(app.silent):
            self._free(app, gone)

    @staticmethod
    def _unread(app: App) -> bool:
        """Somebody said something that we have not read yet."""
        return readable(connection.sock for connection in app.connections)

    def _silent_died(self, app: App, pid: int) -> None:
        self._forget_silent(app, pid)
        self._look_soon(app)

    def _forget_silent(self, app: App, pid: int) -> None:
        pidfd = app.silent.pop(pid)
        self.loop.remove_reader(pidfd)
        os.close(pidfd)

    # ---- recovery ----

    def recover_process(
        self, app: App, index: int, pid: int, fds: list[int], eventfds: list[int]
    ) -> None:
        """A process that a predecessor watched; fds: pidfd[, connection]; eventfds: copies."""
        process = self._watch(app, index, pid, fds[0])
        for fd in eventfds[1:]:
            os.close(fd)
        if eventfds:
            process.eventfd = eventfds[0]
        if len(fds) > 1:
            assert self.server is not None
            connection = Connection(socket.socket(fileno=fds[1]), self.server)
            connection.recovered = True
            self._own(app, process, connection)
            self.server.adopt(connection)

    def recover_connection(self, app: App, number: int, pid: int, fd: int) -> None:
        """One whose process is gone. Call after recover_process() of all processes."""
        if any(os.path.sameopenfile(other.sock.fileno(), fd) for other in app.connections):
            os.close(fd)  # a predecessor of ours died before it forgot the process
            self.state.link.forget("conn", app.app_id, number)
            return
        assert self.server is not None
        connection = Connection(socket.socket(fileno=fd), self.server)
        connection.app_id, connection.pid, connection.kept = app.app_id, pid, number
        app.connections.add(connection)
        self.server.adopt(connection)

    def recovered(self, app: App) -> None:
        """All of an application was recovered; one that has neither process nor connection goes."""
        self._swept(app, lambda: apps.left_over(app))
        app.shared.at.forked.v = 0  # a predecessor of ours had put off that look
        self.look_for_children(app)
        if self._unborn(app):
            self._look_soon(app)
        self._drop_if_gone(app)
