"""BIND, LISTEN, UNBIND: the port table, the registry page, the listeners in the replicas."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neatsock import abi

from .apps import App, Orphan
from .clients import Connection, Server
from .datagrams import check_twin, choose_home, elsewhere, owner_of, steer
from .link import REPLICA, key
from .ports import Claim, Quarantine, check_address, check_privilege, conflict, overlap
from .registry import Key
from .report import log
from .state import State

LIB = abi.lib
IP_FREEBIND = 15  # <linux/in.h>
CLOSED_S = 0.05  # from a program's close() of a listener to its UNBIND
FIN_WAIT_S = 60.0  # Linux's tcp_fin_timeout, and its TIME_WAIT
CHOICES = 16  # how often the kernel chooses again for port 0
ANSWER_S = 10.0  # a replica that does not acknowledge a listener within this time has failed
FIRST_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def first_unprivileged_port() -> int:
    try:
        return int(FIRST_UNPRIVILEGED.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1024


def _bind_shared(holder: socket.socket, name: tuple[str, int], claim: Claim) -> None:
    """Beside the program's connections that are the kernel's, in TIME_WAIT or not (socket(7)).

    Only for the moment of the bind, or others could share what we hold.
    """
    shared = (socket.SO_REUSEADDR, claim.reuseaddr), (socket.SO_REUSEPORT, claim.reuseport)
    try:
        for option, on in shared:
            holder.setsockopt(socket.SOL_SOCKET, option, int(on))
        holder.bind(name)
    finally:
        for option, _ in shared:
            holder.setsockopt(socket.SOL_SOCKET, option, 0)


def reserve(claim: Claim) -> tuple[socket.socket, int]:
    """Bind a kernel socket that never listens: (socket, port). OSError as bind(2).

    It keeps the port from programs outside of neatsock and chooses port 0 (P4).
    """
    kind = socket.SOCK_STREAM if claim.proto == socket.IPPROTO_TCP else socket.SOCK_DGRAM
    name = (socket.inet_ntoa(claim.addr.to_bytes(4, "big")), claim.port)
    holder = socket.socket(socket.AF_INET, kind)
    try:
        # Our addresses on the uplink are not the kernel's.
        holder.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        try:
            holder.bind(name)
        except OSError as err:
            shares = claim.reuseaddr or claim.reuseport
            if err.errno != errno.EADDRINUSE or not shares or claim.port == 0:
                raise
            _bind_shared(holder, name, claim)
    except OSError:
        holder.close()
        raise
    return holder, int(holder.getsockname()[1])


def reserve_rested(claim: Claim, resting: Callable[[int], bool]) -> tuple[socket.socket, int]:
    """As reserve(); for port 0 one that is not `resting`, if a few tries find one."""
    holder, port = reserve(claim)
    refused: list[socket.socket] = []
    while not claim.port and resting(port) and len(refused) < CHOICES:
        try:
            other, port = reserve(claim)
        except OSError:
            break  # no other is left, or no descriptor
        refused.append(holder)
        holder = other
    for one in refused:
        one.close()
    return holder, port


def bind_beside(twin: int, claim: Claim, reservations: list[socket.socket]) -> int:
    """Bind a kernel socket of a program's to the port that it holds by us: 0 or an errno.

    Our reservations share the port for this moment only (SO_REUSEADDR, socket(7)).
    """
    name = (socket.inet_ntoa(claim.addr.to_bytes(4, "big")), claim.port)
    if not stat.S_ISSOCK(os.fstat(twin).st_mode):
        return errno.ENOTSOCK
    with socket.socket(fileno=os.dup(twin)) as theirs:
        if theirs.family != socket.AF_INET or theirs.type != socket.SOCK_STREAM:
            return errno.EPROTOTYPE
        try:
            for holder in (theirs, *reservations):
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # A predecessor of ours may have done it, and died before it took the request off.
            if theirs.getsockname() != name:
                theirs.bind(name)
        except OSError as err:
            return err.errno or errno.EIO
        finally:
            for holder in reservations:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(claim.reuseaddr))
    return 0


@dataclass
class Binding:
    """A socket that holds a port; with `wanted` set it listens or is about to."""

    claim: Claim
    reservation: socket.socket | None
    backlog: int = 0
    home: int = 0  # UDP: the replica that receives
    order: bytes = b""  # neat_msg_r_listen that makes its subsockets
    subs: dict[int, tuple[int, int]] = field(default_factory=dict)  # replica -> (slot, gen)
    pending: set[int] = field(default_factory=set)  # replicas that have not answered
    published: bool = False  # listens for all to see; listen() again takes nothing back
    failure: int = 0  # errno of the first replica that refused
    lost: set[int] = field(default_factory=set)  # replicas whose successor did not find it
    anew: set[int] = field(default_factory=set)  # ... and which will be asked again in a moment
    refusals: dict[int, int] = field(default_factory=dict)  # recovery: replica -> errno
    waiters: list[tuple[Connection, int]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    @property
    def key(self) -> Key:
        return self.claim.proto, self.claim.addr, self.claim.port

    @property
    def datagram(self) -> bool:
        return self.claim.proto == socket.IPPROTO_UDP

    @property
    def handle(self) -> int:
        """Echoed by replicas: tells this use of the socket record from an earlier one."""
        return (self.claim.gen & 0xFFFF) << 16 | self.claim.sock


class Bindings:
    def __init__(self, state: State, loop: asyncio.AbstractEventLoop) -> None:
        self.state = state
        self.loop = loop
        self.table: dict[tuple[int, int], Binding] = {}  # (app id, socket record)
        self.first_unprivileged = first_unprivileged_port()
        self.quarantine = Quarantine(max(FIN_WAIT_S, state.options.time_wait_ms / 1000))
        self.server: Server | None = None
        self.read_news: Callable[[], None] = lambda: None  # handles what the keeper said
        self.refused: Callable[[int], None] = lambda replica: None  # to take a listener unasked
        self.nudge: Callable[[], None] = lambda: None  # programs look at their listeners again

    # ---- bind ----

    def bind(self, app: App, message: Any, uid: int) -> tuple[int, int]:
        """NEAT_MSG_BIND: (-errno or 0, port)."""
        claim = self._claim(app, message, uid, int(message.proto))
        known = self._current(claim)
        if known is None and self._full(app):
            return -errno.ENOBUFS, 0
        if known is not None:
            same = known.claim.addr == claim.addr and claim.port in (0, known.claim.port)
            return (0, known.claim.port) if same else (-errno.EINVAL, 0)
        code = self._check(claim)
        if code:
            return -code, 0
        binding, code = self._take(claim)
        return (-code, 0) if binding is None else (0, binding.claim.port)

    def bind_twin(self, app: App, message: Any, twin: int) -> tuple[int, int]:
        """NEAT_MSG_BIND with the kernel twin of a socket that is bound and connects to somebody of
        the kernel's: (-errno or 0, port). What the socket has it keeps, until UNBIND."""
        binding = self.table.get((app.app_id, int(message.sock)))
        if binding is None or binding.datagram or binding.claim.gen != int(message.sock_gen):
            return -errno.EINVAL, 0
        flags = int(message.flags)
        # The twin's is the program's word of now, which it may have changed since bind().
        claim = replace(binding.claim, reuseaddr=bool(flags & LIB.NEAT_SOCKF_REUSEADDR))
        in_the_way = [
            other.reservation
            for other in self.table.values()
            if other.reservation is not None and overlap(other.claim, claim)
        ]
        return -bind_beside(twin, claim, in_the_way), claim.port

    def bind_datagram(self, app: App, message: Any, uid: int, twin: int) -> tuple[int, int]:
        """NEAT_MSG_BIND of a UDP socket whose kernel twin holds the port: (-errno or 0, home)."""
        claim = self._claim(app, message, uid, socket.IPPROTO_UDP)
        code = check_twin(twin, claim.addr, claim.port)
        code = code or check_address(claim.addr, self.state.registry.addresses())
        if code or not 0 < claim.sock < LIB.NEAT_SOCKS_MAX:
            return -(code or errno.EINVAL), 0
        known = self._current(claim)
        if known is not None:
            return (0, known.home) if known.claim == claim else (-errno.EINVAL, 0)
        if self._full(app):
            return -errno.ENOBUFS, 0
        if elsewhere(twin) and conflict(claim, self._claims()):
            return -errno.EADDRINUSE, 0
        # What cannot live beside the twin is closed already; only its UNBIND, or our notice of its
        # process's death, is on the way.
        for other in list(self.table.values()):
            if conflict(claim, [other.claim]):
                self.release(other)
        binding = Binding(claim, None, home=self._home(claim, int(message.home)))
        try:
            self.state.registry.hold(binding.key)
        except OSError as err:
            return -(err.errno or errno.EIO), 0
        self.table[claim.owner] = binding
        self._remember(binding)
        self._publish(binding.key)
        return 0, binding.home

    def _home(self, claim: Claim, wanted: int) -> int:
        """Sockets that share a port share its home. `wanted`: index + 1, 0 = any."""
        others = [b for b in self.table.values() if b.datagram]
        for other in others:
            if other.claim.port == claim.port and other.claim.addr == claim.addr:
                return other.home
        active = int(self.state.registry.at.active.v)
        return choose_home(wanted - 1 if wanted else None, active, (b.home for b in others))

    def datagram_groups(self) -> dict[Key, list[Binding]]:
        """UDP sockets by port: those that share one have one home, and move together."""
        groups: dict[Key, list[Binding]] = {}
        for binding in self.table.values():
            if binding.datagram:
                groups.setdefault(binding.key, []).append(binding)
        return groups

    def rehome(self, group: list[Binding], home: int) -> None:
        """All sockets of a UDP port receive in another replica; still in the old one, too."""
        at, old = group[0].key, group[0].home
        for binding in group:
            binding.home = home
            self._remember(binding)
        # Before the home: who sees that moved keeps its slot in the old one.
        self.state.registry.set_also(at, old)
        self._publish_datagram(at)

    def _publish_datagram(self, at: Key) -> None:
        """Registry entry and NIC filter of a UDP port, after a socket came or went."""
        holders = [b for b in self.table.values() if b.key == at]
        if holders:
            owner = owner_of(b.claim for b in holders)
            self.state.registry.set_home(at, holders[0].home, owner)
        ours = self.state.registry.addresses()
        if not ours:
            return
        homes = {
            b.claim.addr: b.home
            for b in self.table.values()
            if b.datagram and b.claim.port == at[2] and b.claim.addr in (0, ours[0])
        }
        steer(self.state.link, at[2], homes.get(ours[0], homes.get(0)))

    def _claim(self, app: App, message: Any, uid: int, proto: int) -> Claim:
        flags = int(message.flags)
        return Claim(
            app.app_id,
            int(message.sock),
            int(message.sock_gen),
            uid,
            proto,
            int(message.addr),
            int(message.port),
            bool(flags & LIB.NEAT_SOCKF_REUSEADDR),
            bool(flags & LIB.NEAT_SOCKF_REUSEPORT),
        )

    def _current(self, claim: Claim) -> Binding | None:
        """The binding this socket has. One of an earlier life of its record is released."""
        known = self.table.get(claim.owner)
        if known is not None and known.claim.gen != claim.gen:
            self.release(known)
            return None
        return known

    def _full(self, app: App) -> bool:
        """The application has as many ports as it may (POSIX bind(): ENOBUFS)."""
        most = self.state.options.limits.app_ports
        if sum(b.claim.app_id == app.app_id for b in self.table.values()) < most:
            return False
        if not app.warned:
            text = (
                f"{app.comm} (application {app.app_id}) holds {most} ports, the limit: --app-ports"
            )
            log(text)
        app.warned = True
        return True

    def _check(self, claim: Claim) -> int:
        if not 0 < claim.sock < LIB.NEAT_SOCKS_MAX:
            return errno.EINVAL
        if claim.proto not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            return errno.EPROTONOSUPPORT
        code = check_address(claim.addr, self.state.registry.addresses())
        return code or check_privilege(claim.port, claim.uid, self.first_unprivileged)

    def _take(self, claim: Claim) -> tuple[Binding | None, int]:
        """Reserve the port and enter it everywhere: (binding, 0) or (None, errno)."""
        if claim.port and conflict(claim, self._claims()):
            return None, errno.EADDRINUSE
        reservation: socket.socket | None = None
        try:
            reservation, port = self._reserve(claim)
            claim = replace(claim, port=port)
        except OSError as err:
            # In the way may be a reservation of our own that this socket may share.
            shared = claim.port and any(overlap(claim, other) for other in self._claims())
            if err.errno != errno.EADDRINUSE or not shared:
                return None, err.errno or errno.EIO
        binding = Binding(claim, reservation)
        try:
            self.state.registry.hold(binding.key)
        except OSError as err:
            if reservation is not None:
                reservation.close()
            return None, err.errno or errno.EIO
        self.table[claim.owner] = binding
        self._remember(binding)
        return binding, 0

    def _reserve(self, claim: Claim) -> tuple[socket.socket, int]:
        try:
            return reserve_rested(claim, lambda port: self.quarantine.holds(port, self.loop.time()))
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise
        self._await_keeper()
        return reserve(claim)

    def _await_keeper(self) -> None:
        """It may still hold a copy of a reservation that was just given back."""
        self.state.link.barrier()
        self.loop.call_soon(self.read_news)

    def _claims(self) -> list[Claim]:
        return [binding.claim for binding in self.table.values()]

    def _remember(self, binding: Binding) -> None:
        claim = binding.claim
        self.state.link.remember(
            "bind",
            claim.app_id,
            claim.sock,
            fds=[binding.reservation.fileno()] if binding.reservation else [],
            gen=claim.gen,
            uid=claim.uid,
            proto=claim.proto,
            addr=claim.addr,
            port=claim.port,
            reuseaddr=claim.reuseaddr,
            reuseport=claim.reuseport,
            listening=claim.listening,
            backlog=binding.backlog,
            home=binding.home,
        )

    # ---- listen ----

    def listen(self, app: App, message: Any, uid: int, connection: Connection) -> bool:
        """NEAT_MSG_LISTEN. False: the answer comes when all replicas acknowledged."""
        seq = int(message.h.seq)
        claim = self._claim(app, message, uid, socket.IPPROTO_TCP)
        binding, code = self._current(claim), 0
        if binding is None:
            code = errno.ENOBUFS if self._full(app) else self._check(claim)
            if not code:
                binding, code = self._take(claim)
        if binding is not None and not binding.claim.listening:
            wanted = replace(binding.claim, listening=True)
            code = errno.EADDRINUSE if conflict(wanted, self._claims()) else 0
        if binding is None or code:
            connection.send(self._listening(None, seq, -code))
            return True
        binding.waiters.append((connection, seq))
        if not binding.pending:
            self._ask(binding, message)
        return False

    def _ask(self, binding: Binding, message: Any) -> None:
        binding.claim = replace(binding.claim, listening=True)
        binding.backlog = int(message.backlog)
        binding.failure = 0
        self._remember(binding)
        claim = binding.claim
        order = abi.new(
            "struct neat_msg_r_listen",
            LIB.NEAT_MSG_R_LISTEN,
            app_id=claim.app_id,
            addr=claim.addr,
            port=claim.port,
            backlog=binding.backlog,
            flags=int(message.flags),
            sock=binding.handle,
        )
        order.opts = message.opts
        binding.order = bytes(abi.ffi.buffer(order))
        # One that drains too: it may be wanted back.
        for replica in self.state.running():
            binding.pending.add(replica.index)
            self._store(binding, replica.index)
        binding.timer = self.loop.call_later(ANSWER_S, self._too_late, binding)

    def _store(self, binding: Binding, replica: int) -> None:
        order = abi.unpack("struct neat_msg_r_listen", binding.order)
        order.slot, order.gen = binding.subs.get(replica, (0, 0))
        at = key(LIB.NEAT_MSG_R_LISTEN, binding.claim.app_id, binding.claim.sock)
        self.state.link.store(REPLICA, replica, at, bytes(abi.ffi.buffer(order)))

    def install(self, replica: int) -> None:
        """Every listener into a replica that is to be started; its answers come before R_READY."""
        for binding in self.table.values():
            if binding.claim.listening and binding.order:
                self._store(binding, replica)

    def forget(self, replica: int) -> None:
        """A replica that had no connection left has ended."""
        for binding in list(self.table.values()):
            at = key(LIB.NEAT_MSG_R_LISTEN, binding.claim.app_id, binding.claim.sock)
            self.state.link.drop(REPLICA, replica, at)
            if binding.subs.pop(replica, None):
                self._name_subsocket(binding, replica)
            if replica in binding.pending:
                binding.pending.discard(replica)
                if not binding.pending:
                    self._settled(binding)
        for at_port in {binding.key for binding in self.table.values()}:
            self._publish(at_port)

    def at_home(self, replica: int) -> bool:
        """A UDP socket receives there, or is about to."""
        udp = (b for b in self.table.values() if b.claim.proto == socket.IPPROTO_UDP)
        return any(binding.home == replica for binding in udp)

    def _name_subsocket(self, binding: Binding, replica: int) -> None:
        """Tell the application where its listener is in a replica, by one store."""
        claim = binding.claim
        app = self.state.apps.get(claim.app_id)
        if app is None:
            return
        record = app.shared.at.socks[claim.sock]
        if int(record.gen.v) & 0xFFFF == claim.gen & 0xFFFF:
            slot, gen = binding.subs.get(replica, (0, 0))
            at = abi.ffi.addressof(record.sub[replica])
            abi.ffi.cast("uint64_t *", at)[0] = gen << 32 | slot

    def _too_late(self, binding: Binding) -> None:
        binding.failure = binding.failure or errno.ETIMEDOUT
        binding.pending.clear()
        self._settled(binding)

    def acknowledged(self, replica: int, data: bytes) -> None:
        """NEAT_MSG_R_LISTENING: one replica installed (or refused) a listener."""
        answer = abi.unpack("struct neat_msg_r_listen", data)
        owner = (int(answer.app_id), int(answer.sock) & 0xFFFF)
        binding = self.table.get(owner)
        if binding is None or binding.handle != int(answer.sock) or not binding.claim.listening:
            # Too late: whoever wanted this listener has gone.
            if answer.status == 0:
                self._remove(replica, owner[0], int(answer.slot), int(answer.gen))
            return
        asked = replica in binding.pending
        binding.pending.discard(replica)
        if not answer.status:
            before, now = binding.subs.get(replica), (int(answer.slot), int(answer.gen))
            if before not in (None, now):
                # One was asked for and given up before this one: connections would wait in both.
                self._remove(replica, owner[0], *before)
            binding.subs[replica] = now
        else:
            binding.subs.pop(replica, None)
            if not asked:
                self._lost(binding, replica, -int(answer.status))
                return
            binding.failure = binding.failure or -int(answer.status)
        if binding.pending:
            return
        if asked:
            self._settled(binding)
        else:
            self._name_subsocket(binding, replica)
            self._publish(binding.key)
            if replica in binding.lost:
                binding.lost.discard(replica)
                self.nudge()  # who sleeps listens to the old slot

    def _lost(self, binding: Binding, replica: int, code: int) -> None:
        """A successor did not find its predecessor's listener, or a new replica cannot take it."""
        self._name_subsocket(binding, replica)
        self._publish(binding.key)
        if code in (errno.ESTALE, errno.EINVAL):
            binding.lost.add(replica)
            # Closed, and UNBIND is on its way; else the words were overwritten: a new one, then.
            if replica not in binding.anew:
                binding.anew.add(replica)
                self.loop.call_later(CLOSED_S, self._install_anew, binding, replica)
        else:
            self.refused(replica)

    def _lost_before(self, binding: Binding, replica: int, code: int) -> None:
        """A predecessor of ours heard of it, and may have died before it did anything."""
        if self.table.get(binding.claim.owner) is binding and replica not in binding.subs:
            self._lost(binding, replica, code)

    def _install_anew(self, binding: Binding, replica: int) -> None:
        binding.anew.discard(replica)
        running = any(at.index == replica for at in self.state.running())
        if running and binding.claim.listening and self.table.get(binding.claim.owner) is binding:
            self._store(binding, replica)

    def _settled(self, binding: Binding) -> None:
        """Every replica answered: tell the registry, then the application."""
        if binding.timer is not None:
            binding.timer.cancel()
            binding.timer = None
        code = binding.failure
        binding.published = not code
        if code:
            self._unlisten(binding)
            binding.claim = replace(binding.claim, listening=False)
            self._remember(binding)
        for replica in range(len(self.state.replicas)):
            self._name_subsocket(binding, replica)
        self._publish(binding.key)
        self._reply(binding, -code)

    def _reply(self, binding: Binding, status: int) -> None:
        waiters, binding.waiters = binding.waiters, []
        for connection, seq in waiters:
            connection.send(self._listening(binding, seq, status))
            if self.server is not None:
                self.server.finish(connection)

    def _listening(self, binding: Binding | None, seq: int, status: int) -> bytes:
        message = abi.new("struct neat_msg_listening", LIB.NEAT_MSG_LISTENING, seq, status=status)
        if binding is not None and status == 0:
            message.port = binding.claim.port
            for replica, (slot, gen) in binding.subs.items():
                message.sub[replica].slot, message.sub[replica].gen = slot, gen
        return bytes(abi.ffi.buffer(message))

    def _publish(self, at: Key) -> None:
        """Registry mask of a port: replicas in which any of its sockets listens."""
        if at[0] == socket.IPPROTO_UDP:
            self._publish_datagram(at)
            return
        mask = 0
        for binding in self.table.values():
            if binding.key == at and binding.published:
                for replica in binding.subs:
                    mask |= 1 << replica
        self.state.registry.set_mask(at, mask)

    # ---- release ----

    def unbind(self, app: App, message: Any) -> None:
        """NEAT_MSG_UNBIND: the socket that held the port is gone, or listens no more."""
        binding = self.table.get((app.app_id, int(message.sock)))
        if binding is None or binding.claim.gen != int(message.sock_gen):
            return
        if int(message.flags) & LIB.NEAT_SOCKF_PORT_LOCK and not binding.datagram:
            self._stop_listening(binding)
        else:
            self.release(binding)

    def _stop_listening(self, binding: Binding) -> None:
        """As release(), but the port stays the socket's."""
        if not binding.claim.listening:
            return
        if binding.timer is not None:
            binding.timer.cancel()
            binding.timer = None
        binding.pending.clear()
        binding.claim = replace(binding.claim, listening=False)
        binding.published = False
        self._publish(binding.key)
        self._unlisten(binding)
        self._remember(binding)
        for replica in range(len(self.state.replicas)):
            self._name_subsocket(binding, replica)
        self._reply(binding, -errno.ECONNABORTED)

    def release_orphan(self, app: App, orphan: Orphan) -> None:
        binding = self.table.get((app.app_id, orphan.sock))
        if binding is not None and binding.claim.gen == orphan.gen:
            self.release(binding)

    def app_gone(self, app: App) -> None:
        for binding in [b for b in self.table.values() if b.claim.app_id == app.app_id]:
            self.release(binding)

    def _unlisten(self, binding: Binding) -> None:
        """Its replicas are told before the keeper forgets where it is: a successor of ours would
        not know any more. And once more after that: a replica that was replaced in between got it
        from the keeper again."""
        claim = binding.claim
        for replica in self.state.running():
            at = key(LIB.NEAT_MSG_R_LISTEN, claim.app_id, claim.sock)
            slot, gen = binding.subs.get(replica.index, (0, 0))
            if slot:
                self._remove(replica.index, claim.app_id, slot, gen)
            self.state.link.drop(REPLICA, replica.index, at)
            if slot:
                self._remove(replica.index, claim.app_id, slot, gen)
        binding.subs.clear()

    def _remove(self, replica: int, app_id: int, slot: int, gen: int) -> None:
        kind = LIB.NEAT_MSG_R_UNLISTEN
        message = abi.pack("struct neat_msg_r_listen", kind, app_id=app_id, slot=slot, gen=gen)
        self.state.link.send(REPLICA, replica, message)

    def release(self, binding: Binding) -> None:
        """Undo everything that bind and listen did."""
        if binding.timer is not None:
            binding.timer.cancel()
            binding.timer = None
        binding.pending.clear()
        del self.table[binding.claim.owner]
        if binding.claim.listening:
            # Off the page first: nobody connects to a listener that is going.
            self._publish(binding.key)
            self._unlisten(binding)
        self._reply(binding, -errno.ECONNABORTED)
        self.state.registry.release(binding.key)
        if binding.datagram:
            self._publish_datagram(binding.key)
        else:
            self.quarantine.add(binding.claim.port, self.loop.time())
        heirs = [] if binding.reservation is None else self._heirs(binding)
        self._hand_over(binding, heirs)
        self.state.link.forget("bind", binding.claim.app_id, binding.claim.sock)
        if binding.reservation is not None:
            binding.reservation.close()
            self._reserve_anew(heirs)

    def _heirs(self, gone: Binding) -> list[Binding]:
        """Sockets that shared the port and do not hold it in the kernel themselves."""
        return [
            other
            for other in self.table.values()
            if other.reservation is None and not other.datagram and overlap(other.claim, gone.claim)
        ]

    def _hand_over(self, gone: Binding, heirs: list[Binding]) -> None:
        """Of the same address: the reservation itself, and the port is free at no time."""
        for heir in heirs:
            if heir.key == gone.key:
                heir.reservation, gone.reservation = gone.reservation, None
                self._remember(heir)
                return

    def _reserve_anew(self, heirs: list[Binding]) -> None:
        if heirs:
            self._await_keeper()
        for heir in heirs:
            try:
                heir.reservation, _ = reserve(heir.claim)
            except OSError:
                continue
            self._remember(heir)

    # ---- recovery ----

    def recover(self, state: dict[str, Any], fds: list[int]) -> None:
        """A binding that a predecessor of ours made."""
        claim = Claim(
            state["app"],
            state["number"],
            state["gen"],
            state["uid"],
            state["proto"],
            state["addr"],
            state["port"],
            state["reuseaddr"],
            state["reuseport"],
            state["listening"],
        )
        holder = socket.socket(fileno=fds[0]) if fds else None
        binding = Binding(claim, holder, state["backlog"], state["home"])
        self.table[claim.owner] = binding
        self.state.registry.hold(binding.key)

    def recover_listener(self, replica: int, data: bytes) -> None:
        """A stored R_LISTEN: the keeper filled in the slot once the replica had answered."""
        order = abi.unpack("struct neat_msg_r_listen", data)
        binding = self.table.get((int(order.app_id), int(order.sock) & 0xFFFF))
        if binding is None or binding.handle != int(order.sock):
            at = key(LIB.NEAT_MSG_R_LISTEN, int(order.app_id), int(order.sock) & 0xFFFF)
            self.state.link.drop(REPLICA, replica, at)
            return
        refused = -int(order.status)
        order.status = 0
        binding.order = bytes(abi.ffi.buffer(order))
        if refused:
            binding.refusals[replica] = refused
        elif order.slot:
            binding.subs[replica] = (int(order.slot), int(order.gen))
        else:
            binding.pending.add(replica)

    def _agree_on_homes(self) -> None:
        """A predecessor died within rehome(): programs still go to the home in the page."""
        for at, group in self.datagram_groups().items():
            home = self.state.registry.home(at)
            if home is not None and any(binding.home != home for binding in group):
                for binding in group:
                    binding.home = home
                    self._remember(binding)

    def _complete(self, binding: Binding) -> None:
        """A predecessor died while it installed listeners in a new replica, or this one in all."""
        known = binding.subs.keys() | binding.pending | binding.refusals.keys()
        for replica in self.state.running():
            if binding.order and binding.claim.listening and replica.index not in known:
                binding.pending.add(replica.index)
                self._store(binding, replica.index)

    def recovered(self) -> None:
        """All of the store was read: wait for the answers that are missing, publish the rest."""
        self._agree_on_homes()
        for binding in self.table.values():
            self._complete(binding)
        for binding in self.table.values():
            # In use already: it is new replicas that have not answered, and nobody waits for those.
            # Also if all of them lost it, which may be one: its mask is 0 by then.
            had = {errno.ESTALE, errno.EINVAL} & set(binding.refusals.values())
            if had or (binding.subs and self.state.registry.listening(binding.key)):
                binding.pending.clear()
                for replica, code in binding.refusals.items():
                    self.loop.call_soon(self._lost_before, binding, replica, code)
            else:  # who asked will ask again
                binding.failure = next(iter(binding.refusals.values()), 0)
            waits = binding.pending or binding.failure
            binding.published = binding.claim.listening and not waits
            if binding.pending:
                binding.timer = self.loop.call_later(ANSWER_S, self._too_late, binding)
            elif binding.failure:
                self._settled(binding)
            elif binding.claim.listening:
                for replica in range(len(self.state.replicas)):
                    self._name_subsocket(binding, replica)
        # Only now: sockets may share a port, and it is on the page as long as one of them listens.
        for at in {binding.key for binding in self.table.values()}:
            self._publish(at)

    def ports_of(self, app_id: int) -> list[dict[str, Any]]:
        """For status."""
        return [
            {
                "port": binding.claim.port,
                "address": socket.inet_ntoa(binding.claim.addr.to_bytes(4, "big")),
                "listening": binding.published,
            }
            for binding in self.table.values()
            if binding.claim.app_id == app_id
        ]
