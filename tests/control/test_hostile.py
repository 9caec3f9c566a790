"""Well-formed messages with descriptors and memory that are not what they should be.

Whatever a program sends, it harms only itself: neatd answers, replicas and the NIC go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neatsock import abi
from replicas.clients import Refused as Denied
from replicas.limits import HOLDS_MOST
from replicas.neatd import Lifetime

from ..waiting import wait_until
from .client import LIB, Client, Instance, Puppet, Refused
from .conftest import open_files

FULL = 2**64 - 2  # the largest value of an eventfd counter, eventfd(2)


def pids(instance: Instance) -> list[int]:
    status = wait_until(instance.quick_status, "neatd answers")
    return [status["neatd"]["pid"], *(r["pid"] for r in status["replicas"])]


@pytest.fixture
def unharmed(instance: Instance) -> Iterator[Instance]:
    """Afterwards every replica takes a listener of another program, and nobody was restarted."""
    bystander, before = Client(instance.path), pids(instance)
    yield instance
    answer = bystander.listen(1)
    assert answer.status == 0 and all(answer.sub[replica].slot for replica in (0, 1))
    assert pids(instance) == before, instance.log()[-2000:]


# ---- EVENTFD ----


def open_channels(client: Client, gen: int) -> None:
    for replica in (0, 1):
        client.channels(replica).open[client.proc].v = gen
        client.channels(replica).change.v += 1


def known(client: Client, gen: int) -> None:
    """Blocks until both replicas have the eventfd of this generation, and rang it."""
    channels = [client.channels(replica) for replica in (0, 1)]
    wait_until(lambda: all(c.ch[client.proc].eventfd_known.v == gen for c in channels), "known")


NOT_EVENTFDS: dict[str, Callable[[], int]] = {
    "read-only": lambda: os.open("/dev/null", os.O_RDONLY),
    "path": lambda: os.open("/dev/null", os.O_PATH),
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "memfd": lambda: os.memfd_create("[eventfd]"),
    "socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
}


@pytest.mark.parametrize("kind", NOT_EVENTFDS)
def test_what_is_no_eventfd_never_reaches_a_replica(unharmed: Instance, kind: str) -> None:
    client = Client(unharmed.path)
    open_channels(client, 1)
    files = open_files(pids(unharmed)[0])
    fd = NOT_EVENTFDS[kind]()
    client.eventfd(fd, 1)
    with pytest.raises(Refused, match="eventfd"):
        client.receive()
    os.close(fd)
    wait_until(lambda: open_files(pids(unharmed)[0]) <= files, "no descriptor stays behind")


def test_a_full_eventfd_that_blocks_puts_no_replica_to_sleep(unharmed: Instance) -> None:
    client = Client(unharmed.path)
    open_channels(client, 1)
    fd = os.eventfd(0, 0)
    os.eventfd_write(fd, FULL)
    client.eventfd(fd, 1)
    known(client, 1)
    os.close(fd)


# ---- CHILD ----


def say_child(client: Client, fd: int) -> None:
    kind, fields = LIB.NEAT_MSG_CHILD, {"pid": os.getpid(), "proc": client.proc}
    fields |= {"abi_size": abi.fingerprint(), "instance": client.instance, "app_id": client.app_id}
    client.send(abi.pack("struct neat_msg_attach", kind, 1, **fields), [fd])


def test_a_connection_that_turns_blocking_does_not_stop_neatd(
    unharmed: Instance, puppets: list[Puppet]
) -> None:
    """O_NONBLOCK is of the open file description, of which the program keeps a descriptor."""
    puppet = Puppet(
        unharmed,
        "import socket\n"
        "from tests.control.test_hostile import say_child\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "say_child(c, theirs.fileno()); Client(Path(sys.argv[1])).close()\n"
        "theirs.setblocking(True); ours.setblocking(False)\n"
        "ask = abi.pack('struct neat_msg_bind', LIB.NEAT_MSG_BIND, 1, sock=1, sock_gen=1)\n"
        "for n in range(3000):\n"  # of which it reads no answer
        "    try: ours.send(ask)\n"
        "    except OSError: pass\n"
        "say()",
    )
    puppets.append(puppet)
    puppet.step()
    other = Client(unharmed.path)
    assert other.bind(1) > 0


def foreign_files(pid: int) -> list[str]:
    """What a process has open that is neither memory nor processes of applications."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return [at for at in found if not at.startswith(("/memfd:neat-", "anon_inode:"))]


def test_what_is_no_socket_is_no_connection(unharmed: Instance) -> None:
    pid = pids(unharmed)[0]
    files = len(foreign_files(pid))
    for make in NOT_EVENTFDS.values():
        client, fd = Client(unharmed.path), make()
        say_child(client, fd)
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            with pytest.raises(Refused):
                client.receive()
        client.close()
        os.close(fd)
    wait_until(lambda: len(foreign_files(pid)) <= files, "no descriptor stays behind")


# ---- the command line ----


def test_a_program_is_announced_once(unharmed: Instance) -> None:
    client = Client(unharmed.path, attach=False)
    files = open_files(pids(unharmed)[0])
    for _ in range(50):
        client.send(abi.pack_text(LIB.NEAT_MSG_CLI, b'{"cmd": "hold"}'))
        assert client.receive()[0].type == LIB.NEAT_MSG_CLI_REPLY
    neatd = pids(unharmed)[0]
    wait_until(lambda: open_files(neatd) <= files + 1, "one descriptor more")


def test_announced_programs_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = os.pidfd_open(os.getpid())
    state: Any = SimpleNamespace(
        link=SimpleNamespace(remember=lambda *_, **__: None), options=SimpleNamespace(auto=False)
    )
    loop: Any = SimpleNamespace(add_reader=lambda *_: None)
    lifetime = Lifetime(state, loop, lambda: None)
    monkeypatch.setattr(os, "pidfd_open", lambda _: ours)
    for pid in range(HOLDS_MOST):
        lifetime.hold(pid)
    lifetime.hold(0)
    with pytest.raises(Denied):
        lifetime.hold(HOLDS_MOST)
    os.close(ours)


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory"])
def test_a_capture_goes_to_a_regular_file(fresh: Instance, tmp_path: Path, kind: str) -> None:
    fresh.up("--wire", str(tmp_path / "wire"), "--address", "10.0.77.2/24")
    client = Client(fresh.path, attach=False)
    text = json.dumps({"cmd": "capture", "replica": 0, "dir": "both"}).encode()
    fds = os.pipe() if kind == "pipe" else (NOT_EVENTFDS[kind](),)
    client.send(abi.pack_text(LIB.NEAT_MSG_CLI, text), [fds[-1]])
    with pytest.raises(Refused, match="regular file"):
        client.receive()
    for fd in fds:
        os.close(fd)


# ---- process entries ----


def helper_faults(pid: int) -> int:
    """Page faults of the children that neatd has waited for: proc_pid_stat(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[8])


def forge(client: Client, entries: list[Any]) -> None:
    """Say that all of these are a process that is dead; blocks until they are free."""
    for entry in entries:
        entry.pid.v, entry.state.v = 2**31 - 1, LIB.NEAT_PROC_LIVE
    client.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_FORKED))
    wait_until(lambda: all(e.state.v == LIB.NEAT_PROC_FREE for e in entries), "they are freed")
    assert client.bind(1) > 0  # neatd has done with it
    client.unbind(1)


def test_forged_process_entries_are_swept_by_one_helper(unharmed: Instance) -> None:
    client, neatd = Client(unharmed.path), pids(unharmed)[0]
    entries = [client.app.at.procs[i] for i in range(1, LIB.NEAT_PROCS_MAX)]
    before = helper_faults(neatd)
    forge(client, entries[:1])
    one = helper_faults(neatd) - before
    forge(client, entries)  # so soon that it is looked at a little later
    assert one and helper_faults(neatd) - before - one < 20 * one


def test_a_process_that_is_entered_twice_is_watched_once(unharmed: Instance) -> None:
    client, neatd = Client(unharmed.path), pids(unharmed)[0]
    files = open_files(neatd)
    for index in range(1, LIB.NEAT_PROCS_MAX):
        entry = client.app.at.procs[index]
        entry.pid.v, entry.state.v = os.getpid(), LIB.NEAT_PROC_LIVE
    client.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_FORKED))
    assert client.bind(1) > 0
    assert open_files(neatd) <= files + 2  # the port's


# ---- what is handed out read-only ----


def test_read_only_objects_are_not_opened_for_writing(unharmed: Instance) -> None:
    """By mistake: the owner may change the mode, and root need not."""
    client = Client(unharmed.path)
    fds = [client.registry_fd, client.segments[0][1][0], client.segments[0][1][3]]
    for fd in fds:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o400
    if os.geteuid() == 0:
        assert in_child_as_nobody(fds) == [errno.EACCES] * len(fds)


def in_child_as_nobody(fds: list[int]) -> list[int]:
    """errno of opening each for writing, 0 if that can be done."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.setuid(65534)
            for fd in fds:
                try:
                    os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
                    os.write(write, b"\0")
                except OSError as err:
                    os.write(write, bytes([err.errno or 255]))
        finally:
            os._exit(0)
    os.close(write)
    os.wait()
    found = list(os.read(read, 64))
    os.close(read)
    return found
