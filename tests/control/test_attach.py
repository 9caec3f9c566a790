"""Attach, bind, listen against a real instance: answers, registry page, kernel reservation."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from neatsock import abi
from replicas.attach import readable

from ..waiting import wait_until
from .client import LIB, ROOT, Client, Instance, Puppet, Refused, ffi, kernel_may_bind

REUSEADDR, REUSEPORT = LIB.NEAT_SOCKF_REUSEADDR, LIB.NEAT_SOCKF_REUSEPORT
LOOPBACK = 0x7F000001


@pytest.fixture
def client(shared: Instance) -> Iterator[Client]:
    client = Client(shared.path)
    yield client
    # The application lives as long as this process: give back what it bound.
    for sock in range(1, 20):
        client.unbind(sock)
    client.bind(19, 80, 0x08080808)  # answered after the unbinds
    client.close()


def kernel_bind(port: int, **options: bool) -> socket.socket:
    with ExitStack() as failed:
        sock = failed.enter_context(socket.socket())
        if options.get("reuse"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        failed.pop_all()
    return sock


def test_fingerprint_is_that_of_the_c_side(tmp_path: Path) -> None:
    source = tmp_path / "f.c"
    source.write_text(
        '#include "ring.h"\n#include <stdio.h>\nint main(void)'
        '{ printf("%u", neat_abi_fingerprint()); }\n'
    )
    subprocess.run(
        ["gcc", f"-I{ROOT}/replicas/abi", str(source), "-o", str(tmp_path / "f")], check=True
    )
    assert int(subprocess.check_output([tmp_path / "f"])) == abi.fingerprint()


def test_attach_gives_the_objects_of_both_replicas(client: Client) -> None:
    assert client.proc == 0 and client.app.at.app_id == client.app_id
    entry = client.app.at.procs[0]
    assert (entry.state.v, entry.pid.v) == (LIB.NEAT_PROC_LIVE, os.getpid())
    assert [int(s.replica) for s, _ in client.segments] == [0, 1, 2, 3], "room for 4"
    assert client.registry.replicas.v == 3 and client.registry.active.v == 3
    for _, fds in client.segments:
        sizes = [os.fstat(fd).st_size for fd in fds]
        names = ("seg_pub", "seg_app", "channels", "replica_status")
        expected = [ffi.sizeof(f"struct neat_{name}") for name in names]
        expected[1] = LIB.NEAT_SEG_APP_SIZE
        assert sizes == expected


def test_what_the_replica_writes_is_read_only(client: Client) -> None:
    _, (pub, own, channels, status) = client.segments[0]
    for fd in (pub, status, client.registry_fd):
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
    # ... and what is shared cannot be shrunk under the replica's feet.
    for fd in (own, channels, client.app_fd):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)


def test_second_client_of_a_process_is_another_application(
    shared: Instance, client: Client
) -> None:
    other = Client(shared.path)
    assert other.app_id != client.app_id
    other.close()


def test_bind_chooses_a_port_and_the_kernel_knows(client: Client) -> None:
    port = client.bind(1)
    assert port > 0
    with pytest.raises(OSError) as err:
        kernel_bind(port, reuse=True)
    assert err.value.errno == errno.EADDRINUSE
    assert client.port_entry(port) == (LIB.NEAT_PORT_BOUND, 0)


def test_bind_fails_when_the_kernel_has_the_port(client: Client) -> None:
    with kernel_bind(0, reuse=True) as holder:
        holder.listen()
        port = holder.getsockname()[1]
        assert client.bind(1, port) == -errno.EADDRINUSE
        assert client.bind(1, port, flags=REUSEADDR) == -errno.EADDRINUSE
        assert client.bind(1, port, LOOPBACK) == -errno.EADDRINUSE
    assert client.bind(1, port) == port


def test_a_port_in_time_wait_may_be_bound_with_reuseaddr(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # the server closes first: TIME_WAIT is on its port
    assert client.bind(1, port, flags=REUSEADDR) == port


def test_unbind_gives_the_port_back(client: Client) -> None:
    port = client.bind(1)
    client.unbind(1)
    assert client.bind(2, port) == port
    client.unbind(2)
    assert client.bind(3) > 0  # the unbind before it is done
    wait_until(lambda: kernel_may_bind(port), "the kernel has the port back")
    assert client.port_entry(port) is None


def test_unbind_of_an_earlier_life_of_the_record_is_ignored(client: Client) -> None:
    port = client.bind(1, gen=2)
    client.unbind(1, gen=1)
    assert client.bind(2, port) == -errno.EADDRINUSE
    client.unbind(1, gen=2)


@pytest.mark.parametrize(
    "first, second, listening, expected",
    [
        (0, 0, False, errno.EADDRINUSE),
        (REUSEADDR, 0, False, errno.EADDRINUSE),
        (REUSEADDR, REUSEADDR, False, 0),
        (REUSEADDR, REUSEADDR, True, errno.EADDRINUSE),
        (REUSEPORT, REUSEPORT, False, 0),
        (REUSEPORT, REUSEADDR, False, errno.EADDRINUSE),
    ],
)
@pytest.mark.parametrize("addr", [0, LOOPBACK])
def test_two_sockets_one_port(
    client: Client, first: int, second: int, listening: bool, expected: int, addr: int
) -> None:
    """Each row is what Linux 6.18 answers; the same calls on kernel sockets are made here too."""
    assert _kernel_verdict(first, second, listening, addr) == expected
    port = client.bind(1, flags=first)
    if listening:
        assert client.listen(1, port, flags=first).status == 0
    assert client.bind(2, port, addr, flags=second) == (-expected if expected else port)


def _kernel_verdict(first: int, second: int, listening: bool, addr: int) -> int:
    with socket.socket() as a, socket.socket() as b:
        for sock, flags in ((a, first), (b, second)):
            for flag, option in (
                (REUSEADDR, socket.SO_REUSEADDR),
                (REUSEPORT, socket.SO_REUSEPORT),
            ):
                sock.setsockopt(socket.SOL_SOCKET, option, int(bool(flags & flag)))
        a.bind(("0.0.0.0", 0))
        if listening:
            a.listen()
        try:
            b.bind((socket.inet_ntoa(addr.to_bytes(4, "big")), a.getsockname()[1]))
        except OSError as err:
            return err.errno or 0
    return 0


def test_different_addresses_do_not_conflict(client: Client) -> None:
    port = client.bind(1, addr=LOOPBACK)
    assert client.bind(2, port, LOOPBACK + 1) == port
    assert client.bind(3, port, 0) == -errno.EADDRINUSE


def test_foreign_address_is_not_available(client: Client) -> None:
    assert client.bind(1, 0, 0x08080808) == -errno.EADDRNOTAVAIL


def test_binding_twice_is_invalid_unless_it_is_the_same(client: Client) -> None:
    port = client.bind(1)
    assert client.bind(1, port) == port
    assert client.bind(1, port, LOOPBACK) == -errno.EINVAL


def test_root_may_bind_a_privileged_port(client: Client) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    answer = client.bind(1, 893)
    assert answer == 893


def test_listen_is_acknowledged_by_every_replica(client: Client) -> None:
    port = client.bind(1)
    answer = client.listen(1, port)
    assert (answer.status, answer.port) == (0, port)
    assert client.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)
    for replica in (0, 1):
        slot = answer.sub[replica].slot
        assert 0 < slot < LIB.NEAT_SLOT_APP_FIRST
        status = int(client.pub(replica, slot).status.v)
        assert status & 0xFFFFFFFF == LIB.NEAT_SLOT_LISTENING
        assert status >> 48 == answer.sub[replica].gen & 0xFFFF
    assert answer.sub[2].slot == 0


def test_listen_again_changes_the_backlog_only(client: Client) -> None:
    first = client.listen(1)
    second = client.listen(1, first.port, backlog=5)
    assert bytes(ffi.buffer(second))[16:] == bytes(ffi.buffer(first))[16:]


def test_listen_without_bind_takes_an_ephemeral_port(client: Client) -> None:
    answer = client.listen(1)
    assert answer.status == 0 and answer.port >= 1024
    assert client.bind(2, answer.port) == -errno.EADDRINUSE


def test_only_one_of_two_sockets_may_listen(client: Client) -> None:
    port = client.bind(1, flags=REUSEADDR)
    assert client.bind(2, port, flags=REUSEADDR) == port
    assert client.listen(1, port, flags=REUSEADDR).status == 0
    assert client.listen(2, port, flags=REUSEADDR).status == -errno.EADDRINUSE


def test_unbind_takes_the_listeners_away(client: Client) -> None:
    answer = client.listen(1)
    client.unbind(1)
    pubs = [client.pub(replica, answer.sub[replica].slot) for replica in (0, 1)]
    wait_until(
        lambda: not any(pub.status.v & LIB.NEAT_SLOT_LISTENING for pub in pubs),
        "no listener is left",
    )
    assert client.port_entry(answer.port) is None


def test_many_listeners_at_once(client: Client) -> None:
    ports = [client.listen(sock).port for sock in range(1, 19)]
    assert len(set(ports)) == 18
    assert all(client.port_entry(p) == (LIB.NEAT_PORT_LISTENING, 3) for p in ports)


# ---- processes ----


def test_a_child_attaches_over_its_parents_connection(instance: Instance) -> None:
    client = Client(instance.path)
    client.app.at.procs[1].state.v = LIB.NEAT_PROC_CLAIMED
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = client.child(1)
            code = 0 if own.bind(7) > 0 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    wait_until(
        lambda: client.app.at.procs[1].state.v == LIB.NEAT_PROC_FREE, "the entry is free again"
    )
    assert client.bind(1) > 0  # the parent's connection is unharmed


def test_exec_keeps_the_process(instance: Instance) -> None:
    client = Client(instance.path)
    port = client.listen(1).port
    again = Client(instance.path, attach=False)
    again.attach(app_id=client.app_id, proc=client.proc, instance=client.instance)
    assert (again.app_id, again.proc) == (client.app_id, client.proc)
    assert again.app.at.procs[0].pid.v == os.getpid()
    assert again.bind(1, port) == port  # the socket is the same
    with pytest.raises(Refused, match="attach first"):
        client.bind(2)


def test_rejoin_is_refused_to_strangers(shared: Instance, client: Client) -> None:
    puppet = (
        "import sys\nfrom pathlib import Path\nfrom tests.control.client import *\n"
        "c = Client(Path(sys.argv[1]), attach=False)\n"
        "try: c.attach(app_id=int(sys.argv[2]), proc=0, instance=int(sys.argv[3]))\n"
        "except Refused as err: print(err)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", puppet, str(shared.path), str(client.app_id), str(client.instance)],
        cwd=ROOT,
        env=shared.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "not part of application" in done.stdout
    stale = Client(shared.path, attach=False)
    with pytest.raises(Refused, match="ended"):
        stale.attach(app_id=client.app_id, proc=0, instance=client.instance ^ 1)


def test_attach_in_the_name_of_another_process_is_refused(shared: Instance) -> None:
    client = Client(shared.path, attach=False)
    with pytest.raises(Refused, match="may not attach"):
        client.attach(pid=1)


def test_eventfd_reaches_the_replicas(shared: Instance, client: Client) -> None:
    """Each rings it once: the process may sleep on it already. One of a past image is not taken."""
    channels = [client.channels(replica) for replica in (0, 1)]
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    for gen in (7, 9):
        for c in channels:
            c.open[0].v = gen
        client.eventfd(fd, gen)
        wait_until(lambda g=gen: all(c.ch[0].eventfd_known.v == g for c in channels), "known")
        wait_until(lambda: readable([fd]) and os.eventfd_read(fd), "rung")
    late = os.eventfd(0, os.EFD_NONBLOCK)
    client.eventfd(late, 7)
    assert client.bind(1) > 0  # answered after it was forwarded
    client.eventfd(fd, 9)
    wait_until(lambda: readable([fd]), "rung again")
    assert not readable([late])
    os.close(fd)
    os.close(late)


# ---- deaths ----


def test_killed_program_leaves_nothing(instance: Instance, puppets: list[Puppet]) -> None:
    puppet = Puppet(instance, "a = c.listen(1); say(a.port)")
    puppets.append(puppet)
    port = puppet.step()
    watcher = Client(instance.path)
    assert watcher.bind(1, port) == -errno.EADDRINUSE
    puppet.kill()
    wait_until(lambda: watcher.bind(1, port) == port, "the port is free again")
    apps = [a["app_id"] for a in instance.quick_status()["apps"]]
    assert apps == [watcher.app_id]
    kernel = socket.socket()
    with pytest.raises(OSError):  # now the watcher's
        kernel.bind(("0.0.0.0", port))


def test_descriptors_do_not_leak(instance: Instance, puppets: list[Puppet]) -> None:
    def counts() -> list[int]:
        status = instance.quick_status()
        return list(len(os.listdir(f"/proc/{status[k]['pid']}/fd")) for k in ("keeper", "neatd"))

    before = counts()
    for _ in range(3):
        puppet = Puppet(instance, "c.listen(1); c.bind(2); say()")
        puppets.append(puppet)
        puppet.step()
        puppet.kill()
    wait_until(lambda: counts() == before, f"descriptors back to {before}")


def test_dead_child_releases_what_only_it_held(instance: Instance) -> None:
    client = Client(instance.path)
    client.new_sock(1, fd=5)
    client.new_sock(2, fd=6)
    shared_port, own_port = client.listen(1).port, client.listen(2).port
    client.app.at.procs[1].state.v = LIB.NEAT_PROC_CLAIMED
    client.set_fd(5, 1, proc=1)
    client.app.at.socks[1].refs.v = 2
    go_r, go_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            client.child(1)
            os.write(go_w, b"x")
            signal.pause()  # until killed
        finally:
            os._exit(1)
    os.close(go_w)
    os.read(go_r, 1)
    os.close(go_r)
    # The parent closes its descriptor of socket 2, which moves to the child by a crash in between.
    client.set_fd(6, 0, 0)
    client.set_fd(6, 2, proc=1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    wait_until(lambda: client.port_entry(own_port) is None, "the orphan's port is free")
    wait_until(lambda: client.app.at.socks[2].state.v == LIB.NEAT_SOCK_FREE, "its record is free")
    assert client.app.at.socks[1].state.v == LIB.NEAT_SOCK_NEW
    assert client.app.at.socks[1].refs.v == 1
    assert client.port_entry(shared_port) == (LIB.NEAT_PORT_LISTENING, 3)


def test_a_silent_child_keeps_its_sockets_alive(instance: Instance, puppets: list[Puppet]) -> None:
    """Forked, holds a listener, never said a word: the parent's death must not close it."""
    code = (
        "c.new_sock(1); port = c.listen(1).port\n"
        "r, w = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.close(0); os.close(1); os.close(w); os.read(r, 1); os._exit(0)\n"
        "c.app.at.procs[1].pid.v = child; c.app.at.procs[1].state.v = LIB.NEAT_PROC_LIVE\n"
        "c.set_fd(5, 1, proc=1); c.app.at.socks[1].refs.v = 2\n"
        "say([port, child])\n"
    )
    puppet = Puppet(instance, code)
    puppets.append(puppet)
    port, child = puppet.step()
    watcher = Client(instance.path)
    # The child waits for the parent's end of a pipe: keep it stopped, so that it survives.
    os.kill(child, 19)
    parent = puppet.process.pid
    puppet.kill()

    def pids() -> list[int]:
        return [p for app in instance.quick_status()["apps"] for p in app["pids"]]

    wait_until(lambda: child in pids() and parent not in pids(), "neatd saw the parent die")
    assert watcher.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)
    os.kill(child, 9)
    wait_until(lambda: watcher.port_entry(port) is None, "the last holder's death frees the port")


@pytest.mark.parametrize("pid", [1, 2, "tester"])  # of the first two root may not see the maps
@pytest.mark.parametrize("state", ["LIVE", "CLAIMED", "SWEPT"])
def test_an_entry_that_names_a_stranger(
    instance: Instance, puppets: list[Puppet], state: str, pid: int | str
) -> None:
    """What an application writes there does not keep it: the process is none of its own."""
    code = (
        "c.new_sock(1); port = c.listen(1).port\n"
        f"c.app.at.procs[1].pid.v = {os.getpid() if pid == 'tester' else pid}\n"
        f"c.app.at.procs[1].state.v = LIB.NEAT_PROC_{state}\n"
        "c.set_fd(5, 1, proc=1); c.app.at.socks[1].refs.v = 2\n"
        "say([port, c.app_id])\n"
    )
    puppet = Puppet(instance, code)
    puppets.append(puppet)
    port, app_id = puppet.step()
    watcher = Client(instance.path)
    assert watcher.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)
    puppet.kill()
    wait_until(lambda: watcher.port_entry(port) is None, "the port is free")

    def apps() -> list[int]:
        return [app["app_id"] for app in instance.quick_status()["apps"]]

    wait_until(lambda: app_id not in apps(), "the application is gone")


# ---- fork and exec in a row ----

DAEMONIZE = """
import signal, time
c.new_sock(1)
port = c.listen(1).port
c.app.at.procs[1].state.v = LIB.NEAT_PROC_CLAIMED
c.app.at.procs[1].pid.v = os.getpid()
c.set_fd(5, 1, proc=1); c.app.at.socks[1].refs.v = 2
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.001)
say([port, os.getpid(), c.app_id])
own = c.child(1)
say(own.bind(2))
"""


def test_a_daemon_attaches_after_its_parent_died(instance: Instance, puppets: list[Puppet]) -> None:
    puppet = Puppet(instance, DAEMONIZE)
    puppets.append(puppet)
    port, pid, app_id = puppet.step()
    watcher = Client(instance.path)

    def pids() -> list[int]:
        return [
            p for a in instance.quick_status()["apps"] for p in a["pids"] if a["app_id"] == app_id
        ]

    wait_until(lambda: not pids(), "neatd saw the parent die")
    assert watcher.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)
    puppet.go_on()
    assert puppet.step() > 0
    assert pids() == [pid]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: watcher.port_entry(port) is None, "the daemon's death frees its port")


def test_a_child_that_never_lived_does_not_keep_the_application(
    instance: Instance, puppets: list[Puppet]
) -> None:
    puppet = Puppet(instance, DAEMONIZE)
    puppets.append(puppet)
    port, pid, _ = puppet.step()
    watcher = Client(instance.path)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: watcher.port_entry(port) is None, "its port is free")


EXEC = """
import fcntl
for sock, fd, flags in ((1, 5, 0), (2, 6, LIB.NEAT_FD_CLOEXEC)):
    c.new_sock(sock, fd=fd)
    c.set_fd(fd, sock | flags << 48)
ports = [c.listen(1).port, c.listen(2).port]
if KEEP == 0:
    c.set_fd(5, 0, 0); c.unbind(1)
say([*ports, c.app_id])
os.set_inheritable(0, True)
os.execv("/bin/cat", ["cat"])
"""


@pytest.mark.parametrize("keep", [1, 0])
def test_exec_closes_what_is_close_on_exec(
    instance: Instance, puppets: list[Puppet], keep: int
) -> None:
    puppet = Puppet(instance, EXEC.replace("KEEP", str(keep)))
    puppets.append(puppet)
    kept, closed, app_id = puppet.step()
    watcher = Client(instance.path)
    puppet.go_on()
    wait_until(lambda: watcher.port_entry(closed) is None, "the close-on-exec listener is gone")
    if keep:
        assert watcher.port_entry(kept) == (LIB.NEAT_PORT_LISTENING, 3)
    ids = [app["app_id"] for app in instance.quick_status()["apps"]]
    assert (app_id in ids) == bool(keep)
    assert puppet.process.poll() is None  # cat lives on
    puppet.kill()
    wait_until(lambda: watcher.port_entry(kept) is None, "all is gone with the process")


def test_orphaned_connection_gives_its_slot_back(instance: Instance) -> None:
    """A connect() slot that only a killed child held: the claim bit and the record become free."""
    client = Client(instance.path)
    slot, bit = LIB.NEAT_SLOT_APP_FIRST + 70, 70
    record = client.app.at.socks[9]
    record.gen.v, record.refs.v = 3, 1
    record.replica, record.slot, record.slot_gen = 1, slot, 1
    record.state.v = LIB.NEAT_SOCK_CONNECT
    bits = client.app.at.slot_bits[1]
    bits[bit // 64].v = 1 << bit % 64 | 1 << 50
    client.app.at.procs[1].state.v = LIB.NEAT_PROC_CLAIMED
    client.set_fd(700, 9, 3, proc=1)
    pid = os.fork()
    if pid == 0:
        try:
            client.child(1)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    wait_until(lambda: record.state.v == LIB.NEAT_SOCK_FREE, "the record is free")
    assert record.refs.v == 0
    assert bits[bit // 64].v == 1 << 50
    assert client.app.at.procs[1].state.v == LIB.NEAT_PROC_FREE


CLOSED_BY_NEATD = abi.refs_closing(LIB.NEAT_REFS_NEATD)


def test_sweep_finishes_last_closes(native: Path) -> None:
    """Killed between the count's 0 and the end of the connection, at each step; the sweep, too."""
    shared = abi.Object.create("struct neat_app", LIB.NEAT_OBJ_APP, 1, 1, LIB.NEAT_APP_SIZE)
    channels = abi.Object.create("struct neat_channels", LIB.NEAT_OBJ_CHANNELS, 0, 1)
    first, bits = LIB.NEAT_SLOT_APP_FIRST, shared.at.slot_bits[1]
    dead, alive = abi.refs_closing(5), abi.refs_closing(7)

    def record(sock: int, refs: int, state: int, slot: int = 0) -> None:
        at = shared.at.socks[sock]
        at.gen.v, at.refs.v, at.replica, at.slot, at.slot_gen = sock, refs, 1, slot, 9
        at.state.v = state

    def run(*args: str) -> list[tuple[int, ...]]:
        command = [str(native / "neat-keeper"), *args]
        done = subprocess.run(
            command, stdin=shared.fd, stdout=subprocess.PIPE, check=True, pass_fds=[channels.fd]
        )
        return list(struct.iter_unpack("=6I", done.stdout))

    connect, listen = LIB.NEAT_SOCK_CONNECT, LIB.NEAT_SOCK_LISTEN
    record(1, dead, connect, first + 3)  # nothing done yet
    record(2, dead, connect, LIB.NEAT_SLOT_BACK | first + 4)  # CLOSE sent, claim given back
    record(3, dead, LIB.NEAT_SOCK_FREE)  # all done but the last store
    record(4, alive, connect, first + 5)
    record(5, CLOSED_BY_NEATD, listen)  # an earlier neatd was killed
    record(65535, dead, LIB.NEAT_SOCK_NEW)
    bits[0].v = 1 << 3 | 1 << 4 | 1 << 5  # that of record 2 has another owner by now
    entry = shared.at.procs[5]
    entry.pid.v, entry.state.v = 4242, LIB.NEAT_PROC_LIVE
    want = [
        (1, 1, connect, 1, first + 3, 9),
        (2, 2, connect, 1, first + 4, 9),
        (3, 3, LIB.NEAT_SOCK_FREE, 1, 0, 9),
        (5, 5, listen, 1, 0, 9),
        (65535, 65535, LIB.NEAT_SOCK_NEW, 1, 0, 9),
    ]
    assert run("--sweep", "5:4242", str(channels.fd)) == want
    assert bits[0].v == 1 << 4 | 1 << 5
    bits[0].v = 1 << 3 | 1 << 4 | 1 << 5
    assert run("--orphans") == want  # again, but nobody's claim is touched
    assert bits[0].v == 1 << 3 | 1 << 4 | 1 << 5
    assert shared.at.socks[4].refs.v == alive
    shared.close()
    channels.close()


def test_sweep_lowers_counts_against_living_processes(native: Path) -> None:
    """The helper's decrements and those of a living process meet in the same words."""
    shared = abi.Object.create("struct neat_app", LIB.NEAT_OBJ_APP, 1, 1, LIB.NEAT_APP_SIZE)
    row = LIB.NEAT_APP_FDS + 5 * LIB.NEAT_FDS_MAX * 8
    for sock in (1, 2, 65535):
        record = shared.at.socks[sock]
        record.gen.v, record.refs.v = 0x12345, 2
        record.state.v = LIB.NEAT_SOCK_NEW
    words = [
        0x2345 << 32 | 1,
        0x2345 << 32 | 2,
        0x2345 << 32 | 2,
        0x1111 << 32 | 65535,
        0xFFFFFFFFFFFFFFFF,
        LIB.NEAT_FD_INTERNAL << 48,
    ]
    for i, word in enumerate(words):
        at = row + i * 8 * 3000
        shared.memory[at : at + 8] = word.to_bytes(8, "little")
    entry = shared.at.procs[5]
    entry.pid.v, entry.state.v = 4242, LIB.NEAT_PROC_LIVE
    channels = abi.Object.create("struct neat_channels", LIB.NEAT_OBJ_CHANNELS, 0, 1)
    channels.at.open[5].v = 9
    command = [str(native / "neat-keeper"), "--sweep", "5:4242", str(channels.fd)]

    def run(*args: str) -> bytes:
        fds = [channels.fd]
        return subprocess.run(
            args, stdin=shared.fd, stdout=subprocess.PIPE, check=True, pass_fds=fds
        ).stdout

    # Another process has the entry by now: nothing happens.
    assert run(*command[:2], "5:4243", command[3]) == b""
    assert (entry.state.v, channels.at.open[5].v) == (LIB.NEAT_PROC_LIVE, 9)
    swept = run(*command)
    # Record 1 lost one of two references, record 2 both, 65535 none (another generation).
    assert [int(shared.at.socks[s].refs.v) for s in (1, 2, 65535)] == [1, CLOSED_BY_NEATD, 2]
    assert swept == struct.pack("=6I", 2, 0x12345, LIB.NEAT_SOCK_NEW, 0, 0, 0)
    assert (entry.state.v, channels.at.open[5].v) == (LIB.NEAT_PROC_FREE, 10)
    assert not any(os.pread(shared.fd, LIB.NEAT_FDS_MAX * 8, row))
    for bad in ("256:4242", "-1:4242", "5", "", "nonsense"):
        assert run(*command[:2], bad) == swept  # nobody else is taken; what is owed is said again
    cloexec = [command[0], "--cloexec", "256"]
    assert subprocess.run(cloexec, stdin=shared.fd, check=False).returncode == 2
    shared.close()
    channels.close()
