"""The instance's NIC: its TAP device, its queue pairs, the address that programs share.

Started once, before the replicas: each of them learns the address from its queue pair, which the NIC
has filled in. The keeper holds the TAP descriptor and the memory, so either side may be restarted.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import secrets
import struct
from dataclasses import dataclass
from typing import Any

from neatsock import abi

from .link import NIC, KeeperLink, News, key
from .registry import Registry

LIB = abi.lib
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
MTU = 1500


class UplinkError(Exception):
    """The NIC cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class Uplink:
    """Where the instance is on the network: `ifname` is the TAP device's name in the kernel."""

    ifname: str
    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address | None = None


@dataclass(frozen=True)
class Queue:
    """Descriptors of one replica's queue pair: the memory, and the NIC's doorbell."""

    memory: int
    doorbell: int


def open_tap(ifname: str) -> int:
    """Descriptor of the TAP device, made if it does not exist. UplinkError says why not."""
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
    request = struct.pack("16sH22x", ifname.encode(), flags)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise UplinkError(f"cannot open /dev/net/tun: {err.strerror}") from err
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as err:
        os.close(fd)
        why = {
            errno.EPERM: "it needs CAP_NET_ADMIN, or a device of yours: as root, "
            f"ip tuntap add {ifname} mode tap multi_queue vnet_hdr user {os.getuid()}",
            errno.EBUSY: "another program has it",
            errno.EINVAL: "a device of that name exists and was made with other flags",
        }.get(err.errno or 0, err.strerror)
        raise UplinkError(f"cannot use the TAP device {ifname}: {why}") from err
    return fd


def _address(link: Uplink) -> int:
    return int(link.address.ip)


def _configure(keeper: KeeperLink, uplink: Uplink, replicas: int) -> None:
    inner = abi.pack(
        "struct neat_msg_n_config",
        LIB.NEAT_MSG_N_CONFIG,
        backend=LIB.NEAT_NIC_TAP,
        replicas=replicas,
        addr=_address(uplink),
        prefix=uplink.address.network.prefixlen,
        gateway=int(uplink.gateway) if uplink.gateway else 0,
        mtu=MTU,
        # Locally administered, unicast (IEEE 802: bits 1 and 0 of the first octet).
        mac=bytes([0x02, *secrets.token_bytes(5), 0, 0]),
        rss_key=secrets.token_bytes(40),
    )
    tap = open_tap(uplink.ifname)
    keeper.store(NIC, 0, key(LIB.NEAT_MSG_N_CONFIG), inner, [tap])
    os.close(tap)


def _queue(keeper: KeeperLink, instance: int, index: int) -> Queue:
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


def _answer(item: News) -> None:
    if item.kind == LIB.NEAT_MSG_K_FROM and abi.header(item.inner).type == LIB.NEAT_MSG_ERROR:
        text = abi.unpack("struct neat_msg_error", item.inner).text
        raise UplinkError(f"neat-nic: {abi.ffi.string(text).decode()}")
    if item.kind == LIB.NEAT_MSG_K_DIED:
        raise UplinkError("neat-nic ended while it started")


def start(
    keeper: KeeperLink, uplink: Uplink, instance: int, replicas: int, registry: Registry
) -> tuple[list[Queue], list[News]]:
    """Start the NIC; blocks until it has filled in every queue pair. Other news are returned."""
    _configure(keeper, uplink, replicas)
    queues = [_queue(keeper, instance, i) for i in range(replicas)]
    keeper.spawn(NIC, 0)
    news: list[News] = []
    ready = 0
    while ready < replicas + 1:
        item = keeper.receive(wait=True)
        assert item is not None
        if item.role == NIC:
            _answer(item)
            if item.kind == LIB.NEAT_MSG_K_FROM:
                ready += abi.header(item.inner).type == LIB.NEAT_MSG_N_READY
        news.append(item)
    page: Any = registry.at
    page.addrs[0].addr, page.addrs[0].prefix = _address(uplink), uplink.address.network.prefixlen
    page.naddrs.v = 1
    registry.changed()
    return queues, news
