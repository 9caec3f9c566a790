"""neatd, the control process: `python -m neatsock.replicas.neatd`, started by neat-keeper only.

One event loop, no threads, nothing in the data path. Everything it knows is a projection of what
the keeper stores, so it may be killed at any time.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib
import ipaddress
import json
import os
import resource
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from neatsock import abi, ranges
from neatsock.instance import StartOptions

from .apps import App
from .attach import Attachments, readable
from .bindings import Bindings
from .capture import Captures
from .clients import Connection, Refused, Request, Server
from .components import IP, spawn
from .components import NAMES as COMPONENTS
from .components import recover as recover_components
from .filter import Filter
from .limits import HOLDS_MOST, Limits, default_buffers_mib
from .link import NIC, REPLICA, STANDBY, KeeperLink, News, key
from .moves import Moves
from .policy import Policy
from .ports import QUARANTINE_SIZE
from .registry import Registry
from .report import log
from .scale import Automatic, Scaler, recall
from .state import (
    MODES,
    Health,
    Options,
    Replica,
    State,
    replica_of,
    start_replica,
    store_queue,
)
from .upgrade import Upgrades
from .uplink import Queue, Uplink
from .uplink import ensure as ensure_uplink
from .wire import UplinkError, Wire

LIB = abi.lib
LINGER_S = 1.0  # an --auto instance ends this long after its last program
REPLICAS_ROOM = 4  # an instance can be scaled to as many at least
FIRST_ATTACH_S = 30.0  # ... and waits this long for its first one


# As in keeper/options.c (tests/unit/test_options.py compares).
KEEPER_OPTIONS = {
    "--faults": 5,
    "--fault-window-ms": 10000,
    "--hang-ms": 500,
    "--stopped-ms": 1000,
    "--quarantine-ms": 60000,
    "--rerandomize": 0,
}


def parse(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="neatd", description=__doc__, allow_abbrev=False)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--replicas", type=ranges.REPLICAS, default=1)
    parser.add_argument("--spin-us", type=ranges.SPIN_US, default=50)
    parser.add_argument("--batch", type=ranges.BATCH, default=64)
    parser.add_argument("--components", choices=("single", "multi"), default="single")
    parser.add_argument("--time-wait-ms", type=ranges.TIME_WAIT_MS, default=60000)
    parser.add_argument("--mode", choices=MODES, default="stateful")
    parser.add_argument("--replicas-max", type=ranges.REPLICAS, default=0)
    parser.add_argument("--scale", choices=("manual", "auto"), default="manual")
    parser.add_argument("--scale-up-at", type=ranges.LOAD, default=ranges.UP_AT)
    parser.add_argument("--scale-down-at", type=ranges.LOAD, default=ranges.DOWN_AT)
    parser.add_argument("--scale-period-ms", type=ranges.SCALE_PERIOD_MS, default=1000)
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--apps-max", type=ranges.APPS, default=ranges.APPS_MOST)
    parser.add_argument("--app-sockets", type=ranges.APP_SOCKETS, default=0)
    parser.add_argument("--app-ports", type=ranges.APP_PORTS, default=1024)
    parser.add_argument("--app-buffers", type=ranges.APP_BUFFERS_MIB, default=0, metavar="MIB")
    parser.add_argument("--auto", action="store_true")
    parser.add_argument("--tap")
    parser.add_argument("--address", type=ipaddress.IPv4Interface)
    parser.add_argument("--gateway", type=ipaddress.IPv4Address)
    parser.add_argument("--wire", type=Path)
    parser.add_argument("--impair", default="", help="FIELD=NUMBER,... of struct neat_wire")
    _keeper_options(parser)
    args = parser.parse_args(argv)
    most = args.replicas_max or max(args.replicas, REPLICAS_ROOM)
    if not args.replicas <= most <= LIB.NEAT_REPLICAS_MAX:
        parser.error(f"--replicas-max must be {args.replicas} to {LIB.NEAT_REPLICAS_MAX}")
    return Options(
        args.dir,
        args.name,
        args.replicas,
        args.spin_us,
        args.batch,
        args.time_wait_ms,
        args.auto,
        uplink_of(args) if args.address else None,
        args.mode,
        most,
        policy_of(args, most) if args.scale == "auto" else None,
        args.pin,
        args.components,
        limits_of(args),
        options_of(args, most),
    )


def _keeper_options(parser: argparse.ArgumentParser) -> None:
    """What keeper/options.c understands: ours only to be shown, with its defaults."""
    keeper = parser.add_argument_group("of the keeper")
    for flag, default in KEEPER_OPTIONS.items():
        keeper.add_argument(flag, type=int, default=default)


def options_of(args: argparse.Namespace, most: int) -> dict[str, Any]:
    """What the instance runs with, by the names of StartOptions; as JSON can say it."""
    asked = vars(args) | {"replicas_max": most, "app_buffers": limits_of(args).app_buffers_mib}
    found = {field.name: asked[field.name] for field in fields(StartOptions)}
    plain = (int, float, str, type(None))
    return {name: v if isinstance(v, plain) else str(v) for name, v in found.items()}


def limits_of(args: argparse.Namespace) -> Limits:
    buffers = args.app_buffers or default_buffers_mib(args.replicas)
    return Limits(args.apps_max, args.app_sockets, args.app_ports, buffers)


def policy_of(args: argparse.Namespace, most: int) -> Policy:
    return Policy(
        minimum=args.replicas,
        maximum=most,
        up_at=args.scale_up_at / 100,
        down_at=args.scale_down_at / 100,
        period_s=args.scale_period_ms / 1000,
    )


def uplink_of(args: argparse.Namespace) -> Uplink:
    fields = dict(item.split("=", 1) for item in args.impair.split(",") if item)
    impair = {name: int(value) for name, value in fields.items()}
    return Uplink(args.address, args.gateway, args.tap, args.wire, impair)


def listening_socket(path: Path) -> socket.socket:
    """The control socket. The keeper holds the lock on the name, so what is there is stale."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Inherited by accepted sockets: messages sent before accept() carry credentials too.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    return listener


def ended(news: list[News]) -> set[int]:
    """Replicas that the keeper says have drained."""
    return {
        item.index
        for item in news
        if item.kind == LIB.NEAT_MSG_K_FROM
        and item.role == REPLICA
        and abi.header(item.inner).type == LIB.NEAT_MSG_R_DRAINED
    }


def told_to_drain(store: list[News]) -> set[int]:
    """Replicas for which the keeper has the order to drain."""
    orders = key(LIB.NEAT_MSG_R_DRAIN)
    return {item.index for item in store if item.role == REPLICA and item.key == orders}


class Lifetime:
    """When an --auto instance ends: nobody attached, nobody announced, for LINGER_S."""

    def __init__(
        self, state: State, loop: asyncio.AbstractEventLoop, end: Callable[[], None]
    ) -> None:
        self.state = state
        self.loop = loop
        self.end = end
        self.holders: dict[int, int] = {}  # pid -> pidfd
        self.timer: asyncio.TimerHandle | None = None
        self.patience = FIRST_ATTACH_S

    def hold(self, pid: int) -> None:
        """`neatsock run` announces a program before it becomes it: stay until it is gone.

        Once for each process. Refused when HOLDS_MOST are, ProcessLookupError when it is dead.
        """
        known = self.holders.get(pid)
        if known is not None and readable([known]):
            self._holder_gone(pid, known)  # another process has its number
        elif known is not None:
            return
        if len(self.holders) >= HOLDS_MOST:
            text = f"{HOLDS_MOST} programs are announced to this instance, its limit; end some"
            raise Refused(errno.ENFILE, text)
        pidfd = os.pidfd_open(pid)
        self.state.link.remember("hold", pid, fds=[pidfd])
        self.recover(pid, pidfd)
        self.check()

    def recover(self, pid: int, pidfd: int) -> None:
        """Somebody announced himself to a predecessor of ours, or just now."""
        self.holders[pid] = pidfd
        self.loop.add_reader(pidfd, self._holder_gone, pid, pidfd)

    def _holder_gone(self, pid: int, pidfd: int) -> None:
        self.loop.remove_reader(pidfd)
        del self.holders[pid]
        os.close(pidfd)
        self.state.link.forget("hold", pid)
        self.check()

    def check(self) -> None:
        """Call after every change of the applications or holders."""
        if not self.state.options.auto:
            return
        if self.state.apps or self.holders:
            self.patience = LINGER_S
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
        elif self.timer is None:
            self.timer = self.loop.call_later(self.patience, self._end)

    def _end(self) -> None:
        log("no program is attached any more: the instance ends")
        self.end()


class Neatd:
    def __init__(self, options: Options, link: KeeperLink, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.link = link
        self.loop = loop
        store, news = self._read_store()
        own = [self._own_state(stored) for stored in store if stored.role == LIB.NEAT_ROLE_NEATD]
        self.boot, self.listener, registry = self._booted(own)
        self.wire: Wire | None = None
        replicas, early = self._replicas(store, own, registry)
        self.state = State(
            options,
            link,
            registry,
            abi.read_only(registry.page.fd),
            self.boot["instance"],
            replicas,
        )
        self.bindings = Bindings(self.state, loop)
        self._rest_ports(own)
        self.attachments = Attachments(
            self.state, loop, self.bindings.release_orphan, self.bindings.app_gone
        )
        self.lifetime = Lifetime(self.state, loop, self.end)
        self.server = Server(self.listener, loop, self.handle, self._connection_gone)
        self.filter = Filter(self.state, self.server.finish)
        self.upgrades = Upgrades(self.state, self.server.finish)
        self.captures = Captures(self.state)
        again = any(stored["kind"] == "scale" for stored, _ in own)
        self.scaler = Scaler(self.state, self.bindings, self.filter.gone, again)
        self.moves = Moves(self.state, self.bindings, loop, self.scaler.nudge)
        self.scaler.draining = self.moves.begin
        self.bindings.refused = self.scaler.refused
        self.bindings.nudge = self.scaler.nudge
        self.attachments.server = self.bindings.server = self.server
        self.attachments.changed = self.lifetime.check
        self.bindings.read_news = self._link_readable
        self._recover(own, store)
        self._spawn(ended(news))
        for item in [*news, *early]:
            self.on_news(item)
        if again:
            # What a predecessor remembered, but may have died before it did.
            self.scaler.resume(told_to_drain(store))
            self.scaler.nudge()
            self.moves.begin()
        # From here on a crash is no failure to start (keeper/neatd.c).
        link.barrier()
        loop.call_soon(self._link_readable)
        self.automatic = Automatic(self.scaler, loop)
        loop.add_reader(link.fileno(), self._link_readable)
        self.lifetime.check()

    # ---- start and recovery ----

    def _read_store(self) -> tuple[list[News], list[News]]:
        """(stored messages, other news), up to the keeper's K_SYNCED."""
        store: list[News] = []
        news: list[News] = []
        while True:
            item = self.link.receive(wait=True)
            assert item is not None
            if item.kind == LIB.NEAT_MSG_K_SYNCED:
                return store, news
            (store if item.kind == LIB.NEAT_MSG_K_STORED else news).append(item)

    @staticmethod
    def _own_state(stored: News) -> tuple[dict[str, Any], list[int]]:
        return json.loads(stored.inner[abi.HEADER_SIZE :]), stored.fds

    def _booted(
        self, own: list[tuple[dict[str, Any], list[int]]]
    ) -> tuple[dict[str, Any], socket.socket, Registry]:
        for state, fds in own:
            if state["kind"] == "boot":
                return state, socket.socket(fileno=fds[1]), Registry.adopt(fds[0])
        boot: dict[str, Any] = {
            "instance": secrets.randbits(63) | 1,
            "secret": secrets.token_hex(32),
            "since": time.monotonic(),
        }
        registry = Registry.create(boot["instance"])
        registry.at.replicas.v = (1 << self.options.replicas) - 1
        listener = listening_socket(self.options.socket_path)
        self.link.remember("boot", fds=[registry.page.fd, listener.fileno()], **boot)
        return boot, listener, registry

    def _rest_ports(self, own: list[tuple[dict[str, Any], list[int]]]) -> None:
        """Ports that were given back rest on, whoever was neatd then."""
        found = [fds[0] for state, fds in own if state["kind"] == "ports"]
        fd = found[0] if found else abi.sealed_memory("ports", QUARANTINE_SIZE)
        if not found:
            self.link.remember("ports", fds=[fd])
        self.bindings.quarantine.share(fd)
        os.close(fd)

    def _wire(self, own: list[tuple[dict[str, Any], list[int]]]) -> Wire | None:
        """The wire, if we are on one. Ends the instance when it cannot be had."""
        uplink = self.options.uplink
        if uplink is None or uplink.wire is None:
            return None
        for state, fds in own:
            if state["kind"] == "wire":
                return Wire.adopt(uplink.wire, self.link, fds, state["used"])
        return Wire.join(uplink.wire, self.link)

    def _queues(
        self,
        store: list[News],
        own: list[tuple[dict[str, Any], list[int]]],
        registry: Registry,
    ) -> tuple[list[Queue], list[News]]:
        """Queue pairs of the NIC, none without an uplink; the news that came meanwhile."""
        uplink, count = self.options.uplink, self.options.replicas_max
        if uplink is None:
            return [], []
        try:
            self.wire = self._wire(own)
            instance = self.boot["instance"]
            active = (1 << self.options.replicas) - 1
            found = ensure_uplink(
                self.link, uplink, self.wire, instance, count, active, registry, store
            )
        except UplinkError as err:
            log(str(err))
            self.link.stop()
            sys.exit(1)
        if self.wire is not None:
            self.wire.serve(self.loop)
        return found

    def _replicas(
        self,
        store: list[News],
        own: list[tuple[dict[str, Any], list[int]]],
        registry: Registry,
    ) -> tuple[list[Replica], list[News]]:
        """All replicas, those that a predecessor did not get to included."""
        known: dict[int, Replica] = {}
        queued: set[int] = set()
        peers: dict[int, int] = {}
        for item in store:
            if item.role == REPLICA and item.key >> 48 == LIB.NEAT_MSG_R_CONFIG:
                fd = item.fds[1]
                status = abi.Object("struct neat_replica_status", fd, os.fstat(fd).st_size)
                item.fds = [other for other in item.fds if other != fd]
                known[item.index] = replica_of(item.index, status)
                item.close()
            elif item.role in (REPLICA, IP) and item.key >> 48 == LIB.NEAT_MSG_R_QUEUE:
                queued.add(item.index)
                item.close()
            elif item.role == REPLICA and item.key >> 48 == LIB.NEAT_MSG_R_PEER:
                peers[item.index] = peers.get(item.index, 0) + 1
                item.close()
        for index, parts in recover_components(store).items():
            if index in known:
                known[index].parts = parts
            if peers.get(index) != 2:
                known.pop(index, None)  # its messages are not all there yet
        queues, news = self._queues(store, own, registry)
        # Room for all is made at once, so that programs need not be told when one comes.
        found = []
        scale = next((s for s, _ in own if s["kind"] == "scale"), None)
        for i in range(self.options.replicas_max):
            replica = known.get(i) or start_replica(self.link, self.options, self.boot, registry, i)
            if queues and i not in queued:
                store_queue(self.link, self.options, i, queues[i])
            recall(replica, scale, self.options.replicas)
            found.append(replica)
        for queue in queues:
            queue.close()
        return found, news

    def _spawn(self, over: set[int]) -> None:
        """Once the keeper has their listeners: who starts later takes them up before R_START."""
        for replica in self.state.replicas:
            # Who drains is the keeper's; who ended and is wanted back is started when we hear it.
            if replica.serving and replica.index not in over:
                spawn(self.link, replica.index, replica.parts)

    def _recover(self, own: list[tuple[dict[str, Any], list[int]]], store: list[News]) -> None:
        """Take over applications, their memory, processes and ports from a predecessor."""
        segments: dict[int, dict[int, tuple[int, ...]]] = {}
        eventfds: dict[tuple[int, int], list[int]] = {}
        for item in store:
            kind = item.key >> 48
            app_id, number = item.key >> 16 & 0xFFFFFFFF, item.key & 0xFFFF
            if item.role == REPLICA and kind == LIB.NEAT_MSG_R_SEGMENT:
                segments.setdefault(app_id, {})[item.index] = tuple(item.fds)
            elif item.role == REPLICA and kind == LIB.NEAT_MSG_R_CHANNEL:
                eventfds.setdefault((app_id, number), []).extend(item.fds)
        if own and self.options.uplink:
            self.captures.recovered()
        # Connections by themselves last: they may be those of processes.
        for state, fds in sorted(own, key=lambda piece: piece[0]["kind"] == "conn"):
            self._recover_own(state, fds, segments, eventfds)
        for item in store:
            if item.role == REPLICA and item.key >> 48 == LIB.NEAT_MSG_R_LISTEN:
                self.bindings.recover_listener(item.index, item.inner)
        self.bindings.recovered()
        filters = LIB.NEAT_MSG_R_FILTER
        rules = {item.index: item.inner for item in store if item.key >> 48 == filters}
        if rules:
            self.filter.recover(rules)
        self.state.registry.sweep()
        known = set(self.state.apps)
        for app in list(self.state.apps.values()):
            self.attachments.recovered(app)
        # Kept only for a replica that has not finished with the application.
        for app_id, pairs in segments.items():
            if app_id in known:
                continue
            self.attachments.leaving[app_id] = set(pairs)
            for fd in (fd for pair in pairs.values() for fd in pair):
                os.close(fd)

    def _recover_own(
        self,
        state: dict[str, Any],
        fds: list[int],
        segments: dict[int, dict[int, tuple[int, ...]]],
        eventfds: dict[tuple[int, int], list[int]],
    ) -> None:
        kind, app_id = state["kind"], state["app"]
        if kind == "counter":
            self.state.next_app = state["next_app"]
        elif kind == "app":
            shared = abi.Object("struct neat_app", fds[0], LIB.NEAT_APP_SIZE)
            known = segments.get(app_id, {})
            app = App(app_id, shared, state["uid"], state["comm"], [])
            app.segments = [known[i] for i in range(len(self.state.replicas)) if i in known]
            self.state.apps[app_id] = app
        elif kind == "proc" and app_id in self.state.apps:
            app, index = self.state.apps[app_id], state["number"]
            mine = eventfds.get((app_id, index), [])
            self.attachments.recover_process(app, index, state["pid"], fds, mine)
        elif kind == "conn" and app_id in self.state.apps:
            app = self.state.apps[app_id]
            self.attachments.recover_connection(app, state["number"], state["pid"], fds[0])
        elif kind == "bind":
            self.bindings.recover(state, fds)
        elif kind == "uplink":
            self.state.nic_error = state["pid"], state["text"]
        elif kind == "hold":
            self.lifetime.recover(app_id, fds[0])

    # ---- keeper ----

    def _link_readable(self) -> None:
        try:
            for _ in range(64):
                item = self.link.receive()
                if item is None:
                    return
                self.on_news(item)
        except EOFError:
            sys.exit(0)

    def on_news(self, item: News) -> None:
        if item.role == NIC and item.kind == LIB.NEAT_MSG_K_FROM:
            self._from_nic(item)
        if item.kind in (LIB.NEAT_MSG_K_STARTED, LIB.NEAT_MSG_K_DIED):
            pid = item.pid if item.kind == LIB.NEAT_MSG_K_STARTED else None
            if item.role == NIC:
                self.state.nic_pid = pid
                self.captures.nic_died()
            elif item.role == STANDBY:
                self.state.standby_pid = pid
        if item.kind == LIB.NEAT_MSG_K_UPGRADED:
            self.upgrades.on_news(item)
        if item.role in COMPONENTS and item.index < len(self.state.replicas):
            self._from_component(self.state.replicas[item.index], item)
        if item.role != REPLICA or item.index >= len(self.state.replicas):
            item.close()
            return
        replica = self.state.replicas[item.index]
        if item.kind == LIB.NEAT_MSG_K_STARTED:
            replica.pid, replica.epoch, replica.ready = item.pid, item.epoch, bool(item.status)
            if self.state.standby_pid == item.pid:
                self.state.standby_pid = None  # promoted
            self.state.registry.set_epoch(item.index, item.epoch)
            self.scaler.started(replica)
            if replica.ready:
                self.scaler.ready(replica)
        elif item.kind == LIB.NEAT_MSG_K_DIED:
            replica.pid, replica.ready = 0, False
            self.scaler.update()
        elif item.kind == LIB.NEAT_MSG_K_HEALTH:
            replica.health = Health.of(item.inner)
        elif item.kind == LIB.NEAT_MSG_K_FROM:
            self._from_replica(replica, item)
        item.close()

    def _from_nic(self, item: News) -> None:
        """What it cannot do any more: for the status, also of a successor of ours."""
        if abi.header(item.inner).type != LIB.NEAT_MSG_ERROR:
            return
        text = abi.text(abi.unpack("struct neat_msg_error", item.inner).text)
        self.state.nic_error = item.pid, text
        self.link.remember("uplink", pid=item.pid, text=text)

    def _from_component(self, replica: Replica, item: News) -> None:
        replica.parts.on_news(item)
        if item.kind == LIB.NEAT_MSG_K_FROM:
            head = abi.header(item.inner)
            if head.type == LIB.NEAT_MSG_R_FILTERED:
                self.filter.in_force(replica.index, int(head.seq))
        if replica.ready and not replica.announced:
            self.scaler.ready(replica)

    def _from_replica(self, replica: Replica, item: News) -> None:
        kind = int(abi.header(item.inner).type)
        if kind == LIB.NEAT_MSG_R_READY:
            self.scaler.ready(replica)
        elif kind == LIB.NEAT_MSG_R_DRAINED:
            self.scaler.drained(replica)
            self.attachments.replica_gone(replica.index)
        elif kind == LIB.NEAT_MSG_R_APP_DONE:
            done = abi.unpack("struct neat_msg_r_app", item.inner)
            self.attachments.app_done(replica.index, int(done.app_id))
        elif kind == LIB.NEAT_MSG_R_LISTENING:
            self.bindings.acknowledged(replica.index, item.inner)
        elif kind == LIB.NEAT_MSG_R_FILTERED:
            self.filter.in_force(replica.index, int(abi.header(item.inner).seq))

    # ---- clients ----

    def handle(self, connection: Connection, request: Request) -> bool:
        """One request. False: the answer comes later."""
        kind = request.kind
        if kind == LIB.NEAT_MSG_CLI:
            return self._cli(connection, request)
        if kind == LIB.NEAT_MSG_ATTACH:
            self.attachments.attach(connection, request)
            self.lifetime.check()
            return True
        if kind == LIB.NEAT_MSG_CHILD:
            self.attachments.child(connection, request)
        elif kind == LIB.NEAT_MSG_EVENTFD:
            self.attachments.eventfd(connection, request)
        elif kind == LIB.NEAT_MSG_BIND:
            app, _ = self.attachments.owner(connection)
            message = abi.unpack("struct neat_msg_bind", request.data)
            if message.proto == socket.IPPROTO_UDP and request.fds:
                twin = request.fds[0]
                status, value = self.bindings.bind_datagram(app, message, request.uid, twin)
            elif request.fds:
                status, value = self.bindings.bind_twin(app, message, request.fds[0])
            else:
                status, value = self.bindings.bind(app, message, request.uid)
            connection.result(request.seq, status, value)
        elif kind == LIB.NEAT_MSG_LISTEN:
            app, _ = self.attachments.owner(connection)
            message = abi.unpack("struct neat_msg_listen", request.data)
            return self.bindings.listen(app, message, request.uid, connection)
        elif kind == LIB.NEAT_MSG_UNBIND:
            app = self.attachments.app_of(connection)
            self.bindings.unbind(app, abi.unpack("struct neat_msg_bind", request.data))
        elif kind == LIB.NEAT_MSG_FORKED:
            self.attachments.forked(connection)
        elif kind != LIB.NEAT_MSG_EXITED:
            raise Refused(errno.EPROTO, f"neatd does not know messages of type {kind}")
        return True

    def _connection_gone(self, connection: Connection) -> None:
        self.captures.gone(connection)
        self.attachments.connection_gone(connection)

    # ---- command line ----

    def _cli(self, connection: Connection, request: Request) -> bool:
        try:
            command = json.loads(request.data[abi.HEADER_SIZE :])
            name = command["cmd"]
        except (ValueError, KeyError, TypeError) as err:
            raise Refused(errno.EINVAL, "a command is JSON with a member cmd") from err
        answer: dict[str, Any] = {"keeper": {"pid": os.getppid()}}
        if name == "filter":
            return self.filter.command(connection, request.seq, command)
        if name == "upgrade":
            return self.upgrades.command(connection, request.seq, command)
        if name == "capture":
            self.captures.command(connection, request, command)
            return True
        if name == "status":
            answer |= self.status()
        elif name == "scale":
            self._scale(command.get("replicas"))
            answer |= self.status()
        elif name == "hold":
            self.lifetime.hold(request.pid)
        elif name == "down":
            answer["attached"] = sum(len(app.processes) for app in self.state.apps.values())
        else:
            raise Refused(errno.EINVAL, f"this instance does not know the command {name!r}")
        text = json.dumps(answer).encode()
        connection.send(abi.pack_text(LIB.NEAT_MSG_CLI_REPLY, text, request.seq))
        if name == "down":
            log(f"process {request.pid} asks for the end")
            # After the request was taken off the socket: unread, it would turn into ECONNRESET.
            self.loop.call_soon(self.end)
        return True

    def _scale(self, count: Any) -> None:
        most = self.options.replicas_max
        if not isinstance(count, int) or not 1 <= count <= most:
            raise Refused(
                errno.EINVAL,
                f"this instance has room for 1 to {most} replicas; "
                "more: neatsock down, then neatsock up --replicas-max",
            )
        log(f"scaled to {count}")
        self.scaler.scale_to(count)

    def end(self) -> None:
        """The whole instance ends, this process included."""
        if self.wire is not None:
            self.wire.close()
        self.link.stop()

    def _nic_status(self) -> dict[str, Any]:
        status: dict[str, Any] = {"pid": self.state.nic_pid}
        if uplink := self.options.uplink:
            status |= {"uplink": uplink.name, "address": str(uplink.address)}
        error = self.state.nic_error
        # A NIC that was started since has said itself what it found.
        if error and self.state.nic_pid in (error[0], None):
            status["error"] = error[1]
        return status

    def status(self) -> dict[str, Any]:
        return {
            "neatd": {"pid": os.getpid()},
            "nic": self._nic_status(),
            "standby": {"pid": self.state.standby_pid},
            "mode": self.options.mode,
            "replicas": [self._replica_status(replica) for replica in self.state.running()],
            "apps": [
                {
                    "app_id": app.app_id,
                    "name": app.comm,
                    "pids": [process.pid for process in app.processes.values()],
                    "ports": self.bindings.ports_of(app.app_id)[:64],
                }
                for app in list(self.state.apps.values())[:128]
            ],
            "name": self.options.name,
            "auto": self.options.auto,
            "spin_us": self.options.spin_us,
            "components": self.options.components,
            "limits": self.options.limits.status(),
            "options": self.options.asked,
            "uptime_s": round(time.monotonic() - self.boot["since"], 3),
            "placement": {
                "cpus": len(os.sched_getaffinity(0)),
                "replicas": self.options.replicas,
                "replicas_max": self.options.replicas_max,
                "scale": "auto" if self.options.policy else "manual",
                "pinned": self.options.pin,
            },
        }

    @staticmethod
    def _replica_status(replica: Replica) -> dict[str, Any]:
        at = replica.status.at
        return {
            "index": replica.index,
            "pid": replica.pid or None,
            "state": replica.state,
            "connections": int(at.connections.v),
            "accepted": int(at.accepted.v),
            "segments_in": int(at.segments_in.v),
            "segments_out": int(at.segments_out.v),
            "retransmits": int(at.retransmits.v),
            "drops": int(at.drops.v),
            "resets": int(at.resets.v),
            "cpu_s": round(replica.cpu_s(), 6),
            "epoch": replica.epoch,
            "cpu": int(at.cpu.v),
            "components": [part.report() for part in replica.parts.components.values()],
            **replica.health.status(time.monotonic()),
        }


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's if it is installed."""
    try:
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    return loop


def main(argv: list[str]) -> int:
    options = parse(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = event_loop()
    try:
        Neatd(options, KeeperLink(), loop)
    except Exception as err:
        traceback.print_exc()
        log(f"cannot start: {type(err).__name__}: {err}")
        # At once: the keeper kills whom it sees hang up, and would take that for the reason.
        os._exit(1)
    loop.run_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
