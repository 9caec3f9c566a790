"""Which pids in an application's table are processes of it (proc_pid_stat(5), proc_pid_maps(5)).

And which records a sweep left to neatd.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from neatsock import abi
from replicas import apps


@pytest.fixture
def app() -> Iterator[Any]:
    """An object that this process maps."""
    fd = os.memfd_create("neat-app")
    os.ftruncate(fd, mmap.PAGESIZE)
    with mmap.mmap(fd, mmap.PAGESIZE):
        yield SimpleNamespace(shared=SimpleNamespace(fd=fd), uid=os.getuid())
    os.close(fd)


def test_who_maps_the_object_is_no_stranger(app: Any) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    assert not apps.stranger(app, pid)
    os.close(write)
    os.waitpid(pid, 0)


def test_neatd_maps_it_and_is_none_of_it(app: Any) -> None:
    assert apps.stranger(app, os.getpid())


def test_others_are(app: Any) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert apps.stranger(app, other.pid)
    other.communicate(b"\n")
    assert apps.stranger(app, other.pid)  # nobody's any more
    # Init's maps may be hidden from us; it is older than an instance unless it is our parent.
    assert os.getppid() == 1 or apps.stranger(app, 1)


def test_a_dying_process_is_none_yet(app: Any) -> None:
    """It has no maps, and its end will be heard of."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not apps.stranger(app, pid)
    os.waitpid(pid, 0)
    assert apps.stranger(app, pid)


def test_whom_we_cannot_look_into(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Younger than the instance, and of the program's user or any if that is root."""
    parent = os.getppid()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    monkeypatch.setattr(apps, "maps_object", lambda pid, fd: None)
    monkeypatch.setattr(os, "getppid", lambda: pid)
    try:
        assert not apps.stranger(app, pid)
        assert apps.stranger(app, parent)  # older
        app.uid = os.getuid() + 1000
        assert apps.stranger(app, pid)
        app.uid = 0
        assert not apps.stranger(app, pid)
        monkeypatch.setattr(apps, "_stat", lambda pid: (apps.PF_KTHREAD, 1))
        assert apps.stranger(app, pid)
    finally:
        os.close(write)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("sock", [1, 11, 40000, 65535])
def test_a_record_that_a_sweep_left_is_found(sock: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies in a page; another word of that value is none."""
    monkeypatch.setattr(apps, "_helper", lambda app, args, fds: args)
    shared = abi.Object.create("struct neat_app", abi.lib.NEAT_OBJ_APP, 1, 1, abi.lib.NEAT_APP_SIZE)
    app: Any = SimpleNamespace(shared=shared)
    closing = abi.refs_closing(abi.lib.NEAT_REFS_NEATD)
    record = shared.at.socks[sock]
    record.gen.v = record.flags.v = record.rcvlowat = closing
    record.refs.v = abi.refs_closing(5)
    assert apps.left_over(app) == []
    record.refs.v = closing
    assert apps.left_over(app) == ["--orphans"]
    shared.close()
