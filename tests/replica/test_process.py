"""A real neat-replica process, driven by a keeper and applications written in Python."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from .mini import (
    ABI,
    DEAD,
    HUP,
    LOCALHOST,
    ROOT,
    RX_EOF,
    App,
    Replica,
    ffi,
    pair,
    succeed,
)


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replica") / "neat-replica"
    sources = sorted((ROOT / "replicas/stack").glob("*.c"))
    includes = [f"-I{ROOT}/replicas/abi", f"-I{ROOT}/replicas/stack"]
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    subprocess.run(["gcc", *flags, *includes, *map(str, sources), "-o", str(out)], check=True)
    return out


@pytest.fixture
def replica(binary: Path) -> Iterator[Replica]:
    replica = Replica(binary)
    yield replica
    replica.kill()


def test_bytes_both_ways_then_eof_both_ways(replica: Replica) -> None:
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    client, server = pair(app, listener)
    request = os.urandom(5000)
    client.write(request[:1024])
    assert server.read(1024) == request[:1024]
    server.write(b"pong")
    assert client.read(4) == b"pong"
    client.shutdown_write()
    wait_until(lambda: server.flags & RX_EOF, "EOF at the server")
    server.write(b"after")
    assert client.read(5) == b"after"
    server.close()
    wait_until(lambda: client.flags & RX_EOF, "EOF at the client")
    client.close()
    wait_until(lambda: client.flags == 0 and server.flags == 0, "both slots free")


def test_applications_reach_each_other(replica: Replica) -> None:
    server_app, client_app = App(replica, 1), App(replica, 2)
    listener = server_app.listen(8080)
    replica.go()
    client, server = pair(server_app, listener, client_app)
    data = os.urandom(20000)
    client.write(data[:1000])
    assert server.read(1000) == data[:1000]
    assert (server.pub.rport, server.pub.raddr) == (client.pub.lport, LOCALHOST)


def test_connect_to_nobody_is_refused(replica: Replica) -> None:
    app = App(replica, 1)
    replica.go()
    client = app.connect(LOCALHOST, 9)
    wait_until(lambda: client.flags & HUP, "refusal")
    assert client.errno == errno.ECONNREFUSED


def test_killed_application_means_eof_or_reset_for_its_peers(replica: Replica) -> None:
    server_app, client_app = App(replica, 1), App(replica, 2)
    listener = server_app.listen(8080)
    replica.go()
    _, server = pair(server_app, listener, client_app)
    client_app.gone()
    wait_until(lambda: server.flags & RX_EOF, "EOF")
    server.close()
    answer = replica.receive("struct neat_msg_r_app", ABI.NEAT_MSG_R_APP_DONE)
    assert answer.app_id == 2


def test_killed_replica_comes_back_with_its_listeners(replica: Replica) -> None:
    """Stateless recovery (paper 6.3.6): connections reset, the listener in its old slot."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    client, server = pair(app, listener)
    replica.kill()
    succeed(replica, app, listeners={app: listener})
    for end in (client, server):
        assert end.flags & DEAD
        assert end.errno == errno.ECONNRESET
    again = app.connect(LOCALHOST, 8080)
    fresh = app.accept(listener)
    again.write(b"hello")
    assert fresh.read(5) == b"hello"


def test_no_traffic_no_cpu(replica: Replica) -> None:
    """Here waiting is the measurement: CPU ticks must not move."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    app.connect(LOCALHOST, 8080)
    app.accept(listener)
    app.channel.asleep.v = ABI.NEAT_ASLEEP_FUTEX
    wait_until(lambda: replica.status.at.awake.v == 0, "asleep")
    sleeps, ticks = replica.status.at.sleeps.v, replica.cpu_ticks()
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 1.0, "one second")
    assert replica.cpu_ticks() <= ticks + 1  # the kernel bills whole ticks of 10 ms
    # A delayed ACK and the like may still come; a loop that polls would count in hundreds.
    assert replica.status.at.sleeps.v - sleeps <= 10


def test_what_a_timer_sends_to_this_replica_arrives_before_it_sleeps(replica: Replica) -> None:
    """A keepalive probe: nothing else would wake it for an hour. Delayed ACKs come the same way."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    client, _ = pair(app, listener)
    app.channel.asleep.v = ABI.NEAT_ASLEEP_FUTEX
    options = client.words.opts.w
    options[ABI.NEAT_OPT_FLAGS] |= ABI.NEAT_OPTF_KEEPALIVE
    options[ABI.NEAT_OPT_KEEPIDLE_S], options[ABI.NEAT_OPT_KEEPINTVL_S] = 1, 3600
    client.words.optgen.v += 1
    client.kick()
    status = replica.status.at

    def asleep_with() -> int:
        return int(status.segments_out.v) if not status.awake.v else 0

    before = wait_until(asleep_with, "asleep")
    wait_until(lambda: asleep_with() > before, "a probe")
    wait_until(lambda: status.segments_in.v == status.segments_out.v, "the probe arrives")
    wait_until(lambda: asleep_with() >= before + 2, "its answer")


def test_a_process_blocked_in_the_kernel_is_no_company(replica: Replica) -> None:
    """It stays marked awake; the replica must not nap beside it for ever."""
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(replica.process.pid, {core})
    app = App(replica, 1)
    app.channel.cpu.v = core % ABI.NEAT_CPUS_MAX
    replica.go()
    asleep = app.app.at.replica_asleep

    def active() -> bool:
        app.push(ABI.NEAT_CMD_KICK, 0, 0)  # slot 0 is nobody's: dropped
        return bool(asleep.v == ABI.NEAT_REPLICA_NAPS)

    wait_until(active, "a nap beside a process that uses its channel: it may put off its doorbells")
    wait_until(lambda: asleep.v == ABI.NEAT_ASLEEP_FUTEX, "real sleep when it stops to use it")


def full_eventfd() -> int:
    fd = os.eventfd(0, 0)
    os.eventfd_write(fd, 2**64 - 2)
    return fd


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize(
    "make",
    [full_eventfd, closed_pipe, lambda: os.open("/dev/null", os.O_RDONLY)],
    ids=["full and blocking", "EPIPE", "EBADF"],
)
def test_an_eventfd_that_cannot_be_rung(replica: Replica, make: Callable[[], int]) -> None:
    """neatd looks at what it passes on; what the program does to it later ends no replica."""
    app = App(replica, 1)
    listener = app.listen(8080)
    fd = make()
    message = ffi.new("struct neat_msg_r_channel *")
    message.app_id, message.number, message.gen = 1, 0, int(app.channels.at.open[0].v)
    replica.send(ABI.NEAT_MSG_R_CHANNEL, message, [fd])
    replica.go()
    wait_until(lambda: app.channels.at.ch[0].eventfd_known.v == message.gen, "it has it")
    app.channel.asleep.v = ABI.NEAT_ASLEEP_EVENTFD
    client, server = pair(app, listener)
    client.write(b"ping")
    assert server.read(4) == b"ping"
    os.close(fd)
