"""`neatsock pcap`: frames of a replica's NIC queues into a pcapng file."""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from pathlib import Path

from neatsock import instance
from neatsock.instance import InstanceError


def _open(path: Path) -> tuple[int, bool]:
    """(descriptor, the file is new). Its bytes stay: neatd empties it when the capture begins."""
    flags, new = os.O_WRONLY | os.O_CLOEXEC, False
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            fd, new = os.open(path, flags | os.O_CREAT, 0o600), True
    except OSError as err:
        raise InstanceError(f"cannot write {path}: {err.strerror}") from err
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        # The NIC does not wait for a reader: a pipe that is full would end the capture.
        raise InstanceError(f"{path} is no regular file; capture into one and read that")
    return fd, new


def capture(name: str, replica: int, direction: str, path: Path, seconds: float | None) -> bool:
    """Capture until `seconds` are over, or for ever. False: the instance ended it before.

    Ends by KeyboardInterrupt, too. InstanceError says why it cannot begin.
    """
    file, new = _open(path)
    command = {"cmd": "capture", "replica": replica, "dir": direction}
    try:
        at = instance.socket_path(name)
        with instance.connection(at) as sock:
            instance.exchange(sock, at, command, [file])
            new = False
            return _wait(sock, seconds)
    finally:
        os.close(file)
        if new:
            path.unlink(missing_ok=True)


def _wait(sock: socket.socket, seconds: float | None) -> bool:
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        left = None if end is None else max(0.0, end - time.monotonic())
        if select.select([sock], [], [], left)[0]:
            return False  # nothing is ever said here: it hung up
    return True
