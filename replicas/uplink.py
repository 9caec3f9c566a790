"""The instance's NIC: its TAP device or wire, its queue pairs, the address that programs share.

Set up before the replicas: each of them learns the address from its queue pair, which the NIC has
filled in. The keeper holds the TAP descriptor and the memory, so either side may be restarted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import mmap
import os
import secrets
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

from neatsock import abi

from .link import NIC, KeeperLink, News, key
from .registry import Registry
from .wire import UplinkError, Wire

LIB = abi.lib
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
SIOCGIFMTU, SIOCSIFTXQLEN = 0x8921, 0x8943
TAP_QUEUE_LEN = 10000  # frames towards us; the default of 500 overflows in bursts
MTU = 1500
MTU_MAX = 9000
FLOWS = 131072  # connections that the NIC tracks, 44 bytes each, touched on use


@dataclass(frozen=True)
class Uplink:
    """Where the instance is on the network: on a TAP device, or (`ifname` None) on a wire."""

    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address | None = None
    ifname: str | None = None
    wire: Path | None = None
    impair: dict[str, int] = field(default_factory=dict)  # fields of struct neat_wire

    @property
    def name(self) -> str:
        """For people."""
        return f"tap {self.ifname}" if self.ifname else f"wire {self.wire}"


@dataclass(frozen=True)
class Queue:
    """Descriptors of one replica's queue pair: the memory, and the NIC's doorbell."""

    memory: int
    doorbell: int

    def filled_in(self) -> bool:
        """The NIC has written address, MTU and hash key; `mtu` comes last."""
        with mmap.mmap(self.memory, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            view = abi.ffi.from_buffer(page)
            mtu = int(abi.ffi.cast("struct neat_queue_pair *", view).mtu)
            abi.ffi.release(view)
        return mtu != 0

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.doorbell)


# ---- TAP ----


def _attach(fd: int, ifname: str, flags: int) -> None:
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", ifname.encode(), flags))


def open_tap(ifname: str) -> int:
    """Descriptor of the TAP device, made if it does not exist. UplinkError says why not."""
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise UplinkError(
            f"cannot open /dev/net/tun: {err.strerror}; is the tun driver there (modprobe tun)?"
        ) from err
    try:
        try:
            # One queue: then a second instance on the same device is told so (EBUSY).
            _attach(fd, ifname, flags)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            _attach(fd, ifname, flags | IFF_MULTI_QUEUE)  # a device that was made with it
    except OSError as err:
        os.close(fd)
        raise UplinkError(_why_no_tap(ifname, err)) from err
    return fd


def _why_no_tap(ifname: str, err: OSError) -> str:
    owner = f"ip tuntap add {ifname} mode tap vnet_hdr user {os.geteuid()}"
    why = {
        errno.EPERM: f"that takes root or CAP_NET_ADMIN, or a device of yours; as root: {owner}",
        errno.EBUSY: "another program has it; end that program or choose another name",
        errno.EINVAL: "a device of that name exists, but is no TAP; choose another name",
    }.get(err.errno or 0, err.strerror)
    return f"cannot use the TAP device {ifname}: {why}"


def tune_tap(ifname: str) -> int:
    """Lengthen the device's queue if we may; its MTU. Blocks not at all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = ifname.encode()
        with contextlib.suppress(OSError):  # a short queue costs throughput only
            request = struct.pack("16si20x", name, TAP_QUEUE_LEN)
            fcntl.ioctl(any_socket, SIOCSIFTXQLEN, request)
        try:
            answer = fcntl.ioctl(any_socket, SIOCGIFMTU, struct.pack("16s24x", name))
        except OSError:
            return MTU
        return min(int(struct.unpack_from("i", answer, 16)[0]), MTU_MAX)


# ---- what the keeper holds ----


def _configure(
    keeper: KeeperLink, uplink: Uplink, replicas: int, active: int, wire: Wire | None
) -> None:
    mtu = MTU
    if wire is not None:
        fd = wire.our_end()
    else:
        assert uplink.ifname is not None
        fd = open_tap(uplink.ifname)
        mtu = tune_tap(uplink.ifname)
    inner = abi.pack(
        "struct neat_msg_n_config",
        LIB.NEAT_MSG_N_CONFIG,
        backend=LIB.NEAT_NIC_WIRE if wire is not None else LIB.NEAT_NIC_TAP,
        replicas=replicas,
        active=active,
        addr=int(uplink.address.ip),
        prefix=uplink.address.network.prefixlen,
        gateway=int(uplink.gateway) if uplink.gateway else 0,
        mtu=mtu,
        # Locally administered, unicast (IEEE 802: bits 1 and 0 of the first octet); the same after
        # a restart of the instance, so that nobody's ARP entry for the address is wrong then.
        mac=bytes([0x02, 0x4E]) + uplink.address.ip.packed + bytes(2),
        rss_key=secrets.token_bytes(40),
        wire=uplink.impair,
    )
    keeper.store(NIC, 0, key(LIB.NEAT_MSG_N_CONFIG), inner, [fd])
    os.close(fd)


def _track(keeper: KeeperLink, instance: int) -> None:
    """The table in which the NIC notes who owns which connection outlives it."""
    head, each = abi.ffi.sizeof("struct neat_flow_table"), abi.ffi.sizeof("struct neat_flow")
    size = head + FLOWS * each
    table = abi.memory_file("struct neat_flow_table", LIB.NEAT_OBJ_FLOWS, 0, instance, size)
    inner = abi.pack("struct neat_msg_header", LIB.NEAT_MSG_N_FLOWS)
    keeper.store(NIC, 0, key(LIB.NEAT_MSG_N_FLOWS), inner, [table])
    os.close(table)


def _new_queue(keeper: KeeperLink, instance: int, index: int) -> Queue:
    memory = abi.memory_file(
        "struct neat_queue_pair",
        LIB.NEAT_OBJ_QUEUE_PAIR,
        index,
        instance,
        LIB.NEAT_QP_SIZE,
    )
    doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    inner = abi.pack("struct neat_msg_n_queue", LIB.NEAT_MSG_N_QUEUE, replica=index)
    keeper.store(NIC, 0, key(LIB.NEAT_MSG_N_QUEUE, 0, index), inner, [memory, doorbell])
    return Queue(memory, doorbell)


def _take_stored(store: list[News]) -> tuple[set[int], dict[int, Queue]]:
    """(types of messages stored, stored queue pairs): what a predecessor of ours got done."""
    done, queues = set(), {}
    for item in store:
        if item.role == NIC and item.key >> 48 == LIB.NEAT_MSG_N_QUEUE:
            queues[item.key & 0xFFFF] = Queue(*item.fds)
            item.fds = []
        elif item.role == NIC:
            done.add(item.key >> 48)
            item.close()
    return done, queues


def _check(item: News) -> None:
    """UplinkError when the NIC says, or shows by its end, that it cannot do it."""
    if item.role != NIC:
        return
    if item.kind == LIB.NEAT_MSG_K_FROM and abi.header(item.inner).type == LIB.NEAT_MSG_ERROR:
        raise UplinkError(abi.text(abi.unpack("struct neat_msg_error", item.inner).text))
    if item.kind == LIB.NEAT_MSG_K_DIED and os.WIFEXITED(item.status):
        raise UplinkError(f"neat-nic ended with status {os.WEXITSTATUS(item.status)}")


def ensure(
    keeper: KeeperLink,
    uplink: Uplink,
    wire: Wire | None,
    instance: int,
    replicas: int,
    active: int,
    registry: Registry,
    store: list[News],
) -> tuple[list[Queue], list[News]]:
    """The NIC is set up: started, or what is missing of a start that a dead neatd began.

    Blocks until it has filled in every queue pair. Returns the news that came meanwhile; takes the
    NIC's descriptors out of `store`.
    """
    done, stored = _take_stored(store)
    if LIB.NEAT_MSG_N_CONFIG not in done:
        _configure(keeper, uplink, replicas, active, wire)
    if LIB.NEAT_MSG_N_FLOWS not in done:
        _track(keeper, instance)
    queues = [stored.get(i) or _new_queue(keeper, instance, i) for i in range(replicas)]
    keeper.spawn(NIC, 0)
    news: list[News] = []
    while not all(queue.filled_in() for queue in queues):
        item = keeper.receive(wait=True)
        assert item is not None
        news.append(item)
        _check(item)
    page = registry.at
    page.addrs[0].addr = int(uplink.address.ip)
    page.addrs[0].prefix = uplink.address.network.prefixlen
    page.naddrs.v = 1
    registry.changed()
    return queues, news
