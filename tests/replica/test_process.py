"""A real neat-replica process, driven by a keeper and applications written in Python."""

from __future__ import annotations

import errno
import os
import select
import signal
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
    Connection,
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


def hand_over(app: App, fd: int, number: int = 0) -> int:
    """R_CHANNEL: the channel's generation, which the replica repeats when it has the descriptor."""
    message = ffi.new("struct neat_msg_r_channel *")
    message.app_id, message.number = app.app_id, number
    message.gen = int(app.channels.at.open[number].v)
    app.replica.send(ABI.NEAT_MSG_R_CHANNEL, message, [fd])
    return int(message.gen)


def sleep_on_eventfd(app: App, connection: Connection) -> None:
    app.app.at.slots[connection.slot].sub.v = 1  # process 0
    app.channel.asleep.v = ABI.NEAT_ASLEEP_EVENTFD


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize(
    "make",
    [closed_pipe, lambda: os.open("/dev/null", os.O_RDONLY)],
    ids=["EPIPE", "EBADF"],
)
def test_an_eventfd_that_cannot_be_rung(replica: Replica, make: Callable[[], int]) -> None:
    """neatd looks at what it passes on; what the program does to it later ends no replica."""
    app = App(replica, 1)
    listener = app.listen(8080)
    fd = make()
    gen = hand_over(app, fd)
    replica.go()
    wait_until(lambda: app.channel.eventfd_known.v == gen, "it has it")
    client, server = pair(app, listener)
    sleep_on_eventfd(app, server)
    client.write(b"ping")
    assert server.read(4) == b"ping"
    wait_until(lambda: app.channel.asleep.v == ABI.NEAT_AWAKE, "it rings")
    client.write(b"pong")
    assert server.read(4) == b"pong"
    os.close(fd)


def test_an_eventfd_that_blocks_does_so_once(replica: Replica) -> None:
    """Filled after the replica had it; no message comes that would wake the replica there."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    client, server = pair(app, listener)
    fd = os.eventfd(0, 0)
    gen = hand_over(app, fd)
    os.eventfd_read(fd)
    assert app.channel.eventfd_known.v == gen
    os.eventfd_write(fd, 2**64 - 2)
    sleep_on_eventfd(app, server)
    client.write(b"ping")
    assert server.read(4) == b"ping"
    wait_until(lambda: app.channel.eventfd_known.v == 0, "it is given up, and the program may know")
    hand_over(app, fd)
    app.listen(8081)  # answered, so that was read
    assert app.channel.eventfd_known.v == 0
    os.close(fd)


def test_no_other_eventfd_of_an_application_is_rung_after_one_that_blocked(
    replica: Replica,
) -> None:
    """Else each of its processes could put the replica to sleep once."""
    app = App(replica, 1)
    other = app.channels.at.ch[1]
    app.channels.at.open[1].v = 1
    app.channels.at.change.v += 1
    listener = app.listen(8080)
    replica.go()
    client, server = pair(app, listener)
    full, empty = os.eventfd(0, 0), os.eventfd(0, os.EFD_NONBLOCK)
    for number, fd in enumerate((full, empty)):
        hand_over(app, fd, number)
        wait_until(lambda n=number: app.channels.at.ch[n].eventfd_known.v == 1, "it has it")  # type: ignore[misc]
    os.eventfd_read(empty)
    os.eventfd_write(full, 2**64 - 3)
    sleep_on_eventfd(app, server)
    client.write(b"ping")
    assert server.read(4) == b"ping"
    wait_until(lambda: app.channel.eventfd_known.v == 0, "that one blocked")
    app.app.at.slots[server.slot].sub.v = 2  # process 1
    other.asleep.v = ABI.NEAT_ASLEEP_EVENTFD
    client.write(b"pong")
    assert server.read(4) == b"pong"
    wait_until(lambda: other.asleep.v == ABI.NEAT_AWAKE, "its turn")
    wait_until(lambda: other.eventfd_known.v == 0, "it is given up, too")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(empty)
    os.close(full)
    os.close(empty)


def test_an_eventfd_that_blocks_does_not_end_the_last_rites(replica: Replica) -> None:
    """Who sleeps behind it would hear of the end late, or never."""
    hostile, bystander = App(replica, 1), App(replica, 2)
    replica.go()
    full, fd = os.eventfd(0, 0), os.eventfd(0, os.EFD_NONBLOCK)
    for app, its in ((hostile, full), (bystander, fd)):
        gen = hand_over(app, its)
        wait_until(lambda a=app, g=gen: a.channel.eventfd_known.v == g, "it has it")  # type: ignore[misc]
    os.eventfd_read(fd)
    os.eventfd_write(full, 2**64 - 3)
    os.kill(replica.process.pid, signal.SIGPWR)
    replica.control.close()
    assert replica.process.wait(10) == 0
    assert os.eventfd_read(fd)
    os.close(full)
    os.close(fd)


def test_no_answer_is_lost_when_the_keeper_reads_late(replica: Replica) -> None:
    """More than a socket holds (net.core.wmem_default); R_READY may be among them."""
    replica.go()
    message = ffi.new("struct neat_msg_r_listen *")
    message.app_id = 99  # nobody: answered at once, with ENOENT
    asked = 0
    # Until its answers fill one direction, so that it waits, and our questions the other one.
    while asked < 2000 and select.select([], [replica.control], [], 1)[1]:
        message.h.seq = asked
        replica.send(ABI.NEAT_MSG_R_LISTEN, message)
        asked += 1
    kind = "struct neat_msg_r_listen", ABI.NEAT_MSG_R_LISTENING
    answers = [int(replica.receive(*kind).h.seq) for _ in range(asked)]
    assert answers == list(range(asked))


def test_a_timer_that_ran_out_before_does_not_cut_the_last_rites_short(replica: Replica) -> None:
    """SIGALRM of a ring is pending when the keeper's death (SIGPWR, end of file on fd 3) comes."""
    app = App(replica, 1)
    replica.go()
    pid = replica.process.pid
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGALRM)
    os.kill(pid, signal.SIGPWR)
    replica.control.close()
    os.kill(pid, signal.SIGCONT)
    assert replica.process.wait(10) == 0
    assert app.channels.at.door.v & 0xFF == ABI.NEAT_DOOR_ENDED


def fill_rings(app: App, procs: int) -> int:
    """Full command rings of so many processes, of commands that name no slot; how many commands."""
    channels, entries = app.channels.at, int(ABI.NEAT_CMD_ENTRIES)
    for n in range(procs):
        channels.ch[n].cmd_tail.v += entries
    return procs * entries


def test_all_last_words_of_many_processes_are_done(replica: Replica) -> None:
    """More than one turn of the loop does, and programs wait for the last; none is said again."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    pairs = [pair(app, listener) for _ in range(20)]
    procs = range(1, 1 + len(pairs))
    for n in procs:
        app.channels.at.open[n].v = 1
    app.channels.at.change.v += 1
    os.kill(replica.process.pid, signal.SIGSTOP)
    fill_rings(app, 1 + len(pairs))
    for n, (client, _) in zip(procs, pairs, strict=True):
        last = app.channels.at.ch[n].cmd[ABI.NEAT_CMD_ENTRIES - 1]
        last.v = ABI.NEAT_CMD_CLOSE << 56 | client.gen << 32 | client.slot
        app.channels.at.open[n].v = 2 if n % 2 else 3  # ended, or another process has it
    app.channels.at.change.v += 1
    app.wake()
    os.kill(replica.process.pid, signal.SIGCONT)
    wait_until(lambda: all(server.flags & RX_EOF for _, server in pairs), "all connections end")


def test_a_connection_comes_back_whose_taker_died(replica: Replica) -> None:
    """Taken out of the queue, and not yet anybody's; others died as well."""
    app = App(replica, 1)
    listener = app.listen(8080)
    replica.go()
    app.channels.at.open[1].v = app.channels.at.open[2].v = 1
    client = app.connect(LOCALHOST, 8080)
    pub, words = app.pub.at.slots[listener], app.app.at.slots[listener]
    wait_until(lambda: pub.accept_tail.v == 1, "a connection to accept")
    words.accept_head.v = 1
    os.kill(replica.process.pid, signal.SIGSTOP)
    fill_rings(app, 3)
    app.channels.at.open[1].v = app.channels.at.open[2].v = 2
    app.channels.at.change.v += 1
    app.wake()
    os.kill(replica.process.pid, signal.SIGCONT)
    server = app.accept(listener)
    client.write(b"hello")
    assert server.read(5) == b"hello"


def test_commands_count_as_a_sign_of_life(replica: Replica) -> None:
    """A turn of the loop takes as long as programs want: to the keeper that must be no hang."""
    app = App(replica, 1)
    for n in range(ABI.NEAT_PROCS_MAX):
        app.channels.at.open[n].v = 1
    replica.go()
    os.kill(replica.process.pid, signal.SIGSTOP)
    before, commands = replica.status.at.heartbeat.v, fill_rings(app, ABI.NEAT_PROCS_MAX)
    app.wake()
    os.kill(replica.process.pid, signal.SIGCONT)
    last = app.channels.at.ch[ABI.NEAT_PROCS_MAX - 1]
    wait_until(lambda: last.cmd_head.v == ABI.NEAT_CMD_ENTRIES, "all commands are done")
    assert replica.status.at.heartbeat.v - before >= commands // 64
