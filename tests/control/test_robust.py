"""Garbage, floods and kills: what one client or one process does to the others."""

from __future__ import annotations

import array
import os
import signal
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from neatsock import abi

from ..waiting import wait_until
from .client import LIB, Client, Instance, Puppet, Refused, kernel_may_bind
from .conftest import alive

GOOD = abi.pack("struct neat_msg_bind", LIB.NEAT_MSG_BIND, 7, sock=1, proto=6)
HEADER = struct.Struct("<IHHII")


def patched(data: bytes, **fields: int) -> bytes:
    values = dict(
        zip(("magic", "version", "type", "len", "seq"), HEADER.unpack_from(data), strict=True)
    )
    return HEADER.pack(*(values | fields).values()) + data[HEADER.size :]


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"x", "shorter than a header"),
        (b"", "shorter than a header"),
        (b"GET / HTTP/1.0\r\n\r\n", "magic"),
        (patched(GOOD, magic=0), "magic"),
        (patched(GOOD, version=99), "version 99"),
        (patched(GOOD, len=4000), "promises 4000"),
        (patched(GOOD, type=999), "attach|type 999"),
        (patched(GOOD, type=LIB.NEAT_MSG_R_LISTEN), "attach|type 68"),
        (patched(GOOD[:20], len=20), "attach|too few"),
        (abi.pack_text(LIB.NEAT_MSG_CLI, b"{"), "JSON"),
        (abi.pack_text(LIB.NEAT_MSG_CLI, b"[]"), "JSON"),
        (abi.pack_text(LIB.NEAT_MSG_CLI, b'{"cmd": "dance"}'), "dance"),
        (abi.pack_text(LIB.NEAT_MSG_BIND, bytes(20000)), "too long"),
        (abi.pack("struct neat_msg_attach", LIB.NEAT_MSG_ATTACH, abi_size=1), "memory layout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("attached", [False, True], ids=["stranger", "attached"])
def test_garbage_gets_a_clear_error_and_ends_one_connection(
    shared: Instance, data: bytes, complaint: str, attached: bool
) -> None:
    bystander = Client(shared.path)
    client = Client(shared.path, attach=attached)
    client.send(data)
    with pytest.raises(Refused, match=complaint):
        client.receive()
    with pytest.raises(EOFError):
        client.receive()
    assert bystander.bind(1) > 0
    bystander.unbind(1)


def test_garbage_of_an_attached_program_leaves_its_sockets_alone(instance: Instance) -> None:
    client = Client(instance.path)
    port = client.listen(1).port
    client.send(b"junk")
    with pytest.raises(Refused):
        client.receive()
    again = Client(instance.path, attach=False)
    again.attach(app_id=client.app_id, proc=client.proc, instance=client.instance)
    assert again.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)


def test_too_many_descriptors(shared: Instance) -> None:
    client = Client(shared.path)
    null = os.open("/dev/null", os.O_RDONLY)
    client.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_EVENTFD), [null] * 40)
    with pytest.raises(Refused):
        client.receive()
    before = len(os.listdir(f"/proc/{shared.quick_status()['neatd']['pid']}/fd"))
    for _ in range(5):
        client = Client(shared.path, attach=False)
        client.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_EVENTFD), [null] * 40)
        with pytest.raises(Refused):
            client.receive()
        client.close()
    os.close(null)
    pid = shared.quick_status()["neatd"]["pid"]
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before, "no descriptor stays behind")


def test_who_does_not_read_is_dropped(shared: Instance) -> None:
    bystander = Client(shared.path)
    client = Client(shared.path, attach=False)
    client.sock.setblocking(False)
    request = abi.pack_text(LIB.NEAT_MSG_CLI, b'{"cmd": "status"}')
    poller = __import__("select").poll()
    poller.register(client.sock, 0)
    sent = 0

    def hung_up() -> bool:
        nonlocal sent
        try:
            client.sock.send(request)
            sent += 1
        except BlockingIOError:
            pass
        except OSError:
            return True
        return bool(poller.poll(0))

    wait_until(hung_up, "neatd hangs up")
    assert bystander.bind(1) > 0
    bystander.unbind(1)


def test_hostile_process_table(instance: Instance) -> None:
    """Numbers that make no sense in shared memory hurt only the application itself."""
    client, bystander = Client(instance.path), Client(instance.path)
    for index, pid in ((1, 2**31 - 1), (2, 2**32 - 1), (3, 1)):
        client.app.at.procs[index].pid.v = pid
        client.app.at.procs[index].state.v = LIB.NEAT_PROC_LIVE
        client.set_fd(3, 2**32 - 1, 0xFFFF, proc=index)
        client.set_fd(4, 65535, 3, proc=index)
    client.app.at.procs[4].state.v = 77
    client.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_FORKED))
    assert client.bind(1) > 0
    assert bystander.bind(2) > 0
    assert client.app.at.procs[1].state.v == LIB.NEAT_PROC_FREE


def test_socket_and_directory_are_private(instance: Instance) -> None:
    assert stat.S_IMODE(instance.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(instance.path.stat().st_mode) == 0o600


def test_other_users_are_refused(native: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        instance = Instance(Path(directory) / "run", NEATSOCK_NATIVE=str(native)).up()
        os.chmod(instance.directory, 0o755)
        os.chmod(instance.path, 0o777)
        try:
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.setuid(65534)
                    Client(instance.path)
                except Refused as refusal:
                    os.write(write, str(refusal).encode())
                finally:
                    os._exit(0)
            os.close(write)
            os.waitpid(pid, 0)
            assert b"belongs to user 0" in os.read(read, 500)
            os.close(read)
        finally:
            instance.down()


# ---- kills ----


def replica(instance: Instance, index: int) -> dict[str, Any]:
    found = instance.quick_status()
    return found["replicas"][index] if found else {}


def restarted(instance: Instance, index: int, epoch: int) -> None:
    wait_until(
        lambda: (r := replica(instance, index)) and r["epoch"] == epoch and r["state"] == "ready",
        f"replica {index} is ready in epoch {epoch}",
    )


def test_killed_replica_comes_back_with_its_listeners(instance: Instance) -> None:
    client = Client(instance.path)
    answers = [client.listen(sock) for sock in (1, 2, 3)]
    client.unbind(2)
    pid = replica(instance, 1)["pid"]
    other = replica(instance, 0)["pid"]
    os.kill(pid, signal.SIGKILL)
    restarted(instance, 1, 2)
    assert replica(instance, 0)["pid"] == other
    for answer in (answers[0], answers[2]):
        slot, gen = answer.sub[1].slot, answer.sub[1].gen
        status = int(client.pub(1, slot).status.v)
        assert status & 0xFFFFFFFF == LIB.NEAT_SLOT_LISTENING
        assert status >> 48 == gen & 0xFFFF
        assert client.port_entry(answer.port) == (LIB.NEAT_PORT_LISTENING, 3)
    assert client.pub(1, answers[1].sub[1].slot).status.v & LIB.NEAT_SLOT_LISTENING == 0
    assert client.registry.epoch[1].v == 2 and client.registry.active.v == 3
    later = client.listen(4)
    assert later.status == 0 and later.sub[1].slot not in (0, answers[0].sub[1].slot)


def test_listen_waits_for_a_replica_that_is_down(instance: Instance) -> None:
    client = Client(instance.path)
    pid = replica(instance, 0)["pid"]
    os.kill(pid, signal.SIGSTOP)
    client.send(
        abi.pack("struct neat_msg_listen", LIB.NEAT_MSG_LISTEN, 9, sock=1, sock_gen=1, backlog=9)
    )
    wait_until(
        lambda: any(p["port"] for a in instance.quick_status()["apps"] for p in a["ports"]),
        "neatd has the request",
    )
    os.kill(pid, signal.SIGKILL)
    head, data, _ = client.receive()
    answer = abi.unpack("struct neat_msg_listening", data)
    assert (head.seq, answer.status) == (9, 0) and answer.sub[0].slot and answer.sub[1].slot


def test_a_listener_that_listens_again_stays_published(fresh: Instance) -> None:
    """Also while a replica has not answered, and another socket leaves the port."""
    fresh.up("--replicas", "2", "--stopped", "0")
    client, other = Client(fresh.path), Client(fresh.path)
    shared = LIB.NEAT_SOCKF_REUSEPORT
    port = client.listen(1, flags=shared).port
    assert other.listen(1, port, flags=shared).status == 0
    pid = replica(fresh, 0)["pid"]
    os.kill(pid, signal.SIGSTOP)
    again = {"sock": 1, "sock_gen": 1, "port": port, "flags": shared, "backlog": 9}
    client.send(abi.pack("struct neat_msg_listen", LIB.NEAT_MSG_LISTEN, 9, **again))
    # What neatd answers twice later, it read after the request.
    assert other.bind(2) > 0 and other.bind(3) > 0
    other.unbind(1)
    assert other.bind(4) > 0
    assert client.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)
    os.kill(pid, signal.SIGCONT)
    _, data, _ = client.receive()
    assert abi.unpack("struct neat_msg_listening", data).status == 0
    assert client.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)


def test_killed_neatd_takes_over_where_it_was(instance: Instance, puppets: list[Puppet]) -> None:
    client = Client(instance.path)
    ports = [client.listen(1).port, client.bind(2)]
    before = instance.quick_status()
    os.kill(before["neatd"]["pid"], signal.SIGKILL)
    after = wait_until(
        lambda: (s := instance.quick_status()) and s["neatd"] != before["neatd"] and s,
        "a new neatd",
    )
    assert [r["pid"] for r in after["replicas"]] == [r["pid"] for r in before["replicas"]]
    assert [r["state"] for r in after["replicas"]] == ["ready", "ready"]
    assert after["apps"] == before["apps"]
    # The connection survived; ports are still ours, also against the kernel.
    assert client.bind(3, ports[0]) == -98
    with pytest.raises(OSError):
        socket.socket().bind(("0.0.0.0", ports[1]))
    assert client.listen(1, ports[0]).status == 0
    client.unbind(1)
    assert client.bind(4, ports[0]) == ports[0]
    # It watches the processes it inherited.
    other = Client(instance.path)
    assert other.app_id == client.app_id + 1


def test_neatd_inherits_the_watch_over_processes(instance: Instance, puppets: list[Puppet]) -> None:
    puppet = Puppet(instance, "say(c.listen(1).port)")
    puppets.append(puppet)
    port = puppet.step()
    old = instance.quick_status()["neatd"]["pid"]
    os.kill(old, signal.SIGKILL)
    puppet.kill()
    wait_until(
        lambda: (s := instance.quick_status()) and s["neatd"]["pid"] != old and s["apps"] == [],
        "the program's death is noticed by the new neatd",
    )
    wait_until(lambda: kernel_may_bind(port), "the reservation in the kernel is gone, too")


def test_request_sent_while_neatd_is_down_is_answered(instance: Instance) -> None:
    client = Client(instance.path)
    pid = instance.quick_status()["neatd"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    client.send(abi.pack("struct neat_msg_bind", LIB.NEAT_MSG_BIND, 5, sock=1, sock_gen=1, proto=6))
    os.kill(pid, signal.SIGKILL)
    head, data, _ = client.receive()
    assert head.seq == 5 and abi.unpack("struct neat_msg_result", data).value > 0
    newcomer = Client(instance.path)
    assert newcomer.bind(1) > 0


def test_listen_in_flight_survives_neatd(fresh: Instance) -> None:
    instance = fresh.up("--replicas", "2", "--stopped", "0")
    client = Client(instance.path)
    status = instance.quick_status()
    stopped = status["replicas"][0]["pid"]
    os.kill(stopped, signal.SIGSTOP)
    client.send(
        abi.pack("struct neat_msg_listen", LIB.NEAT_MSG_LISTEN, 9, sock=1, sock_gen=1, backlog=9)
    )
    wait_until(lambda: instance.quick_status()["apps"][0]["ports"], "neatd has the request")
    os.kill(status["neatd"]["pid"], signal.SIGKILL)
    wait_until(
        lambda: instance.quick_status().get("neatd", status["neatd"]) != status["neatd"], "neatd"
    )
    os.kill(stopped, signal.SIGCONT)
    head, data, _ = client.receive()
    answer = abi.unpack("struct neat_msg_listening", data)
    assert (head.seq, answer.status) == (9, 0) and answer.sub[0].slot and answer.sub[1].slot
    assert client.port_entry(answer.port) == (LIB.NEAT_PORT_LISTENING, 3)


def test_killed_keeper_takes_everything_along(fresh: Instance) -> None:
    fresh.up("--replicas", "2")
    status = fresh.quick_status()
    pids = [status["neatd"]["pid"], *(r["pid"] for r in status["replicas"])]
    os.kill(status["keeper"]["pid"], signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), "all children are gone")
    # What is left of the files does not hinder a successor.
    assert fresh.path.exists()
    fresh.up()
    assert fresh.quick_status()["replicas"][0]["state"] == "ready"


def test_everybody_killed_at_once_recovers(instance: Instance) -> None:
    client = Client(instance.path)
    port = client.listen(1).port
    status = instance.quick_status()
    for pid in [status["neatd"]["pid"], *(r["pid"] for r in status["replicas"])]:
        os.kill(pid, signal.SIGKILL)
    for index in (0, 1):
        restarted(instance, index, 2)
    assert client.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)
    assert client.bind(2, port) == -98


def test_many_kills_from_outside_are_no_fault(instance: Instance) -> None:
    for epoch in range(2, 10):
        os.kill(replica(instance, 0)["pid"], signal.SIGKILL)
        restarted(instance, 0, epoch)


def test_faults_are_counted_and_slow_the_restart_down(instance: Instance) -> None:
    for epoch in range(2, 9):
        os.kill(replica(instance, 0)["pid"], signal.SIGSEGV)
        restarted(instance, 0, epoch)
    assert instance.log().count("Segmentation fault") == 7
    assert "delayed" in instance.log()
    assert replica(instance, 1)["epoch"] == 1


def test_a_replica_that_never_starts_ends_the_instance(native: Path, tmp_path: Path) -> None:
    broken = tmp_path / "native"
    broken.mkdir()
    for name in ("neat-keeper", "libneatsock.so"):
        (broken / name).symlink_to(native / name)
    (broken / "neat-replica").write_text("#!/bin/sh\necho this replica is broken >&2\nexit 1\n")
    (broken / "neat-replica").chmod(0o755)
    instance = Instance(tmp_path / "run", NEATSOCK_NATIVE=str(broken))
    done = instance.cli("up", "--name", "t")
    assert done.returncode == 1
    assert "this replica is broken" in done.stderr and "did not start" in done.stderr
    assert not instance.path.exists()


def test_creds_of_another_process_are_not_accepted(shared: Instance) -> None:
    """A message with forged credentials needs privileges; without, the kernel refuses it."""
    client = Client(shared.path)
    ucred = struct.pack("3i", os.getpid(), 65534, 65534)
    rights = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ucred)]
    data = abi.pack(
        "struct neat_msg_bind", LIB.NEAT_MSG_BIND, 1, sock=1, sock_gen=1, port=81, proto=6
    )
    client.sock.sendmsg([data], rights)
    _, answer, _ = client.receive()
    assert abi.unpack("struct neat_msg_result", answer).status == -13  # EACCES: not root's port
    assert array.array("i").itemsize == 4
