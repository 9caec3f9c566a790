"""The instance ends while programs use it: nobody hangs, each hears of it once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.inject import Target
from neatsock.abi import ffi, lib

from ..system.test_uplink import OURS, PEER, uplinked
from ..worlds import neatsock_env
from .rig import Bystander, Rig, wait_until
from .test_overwritten import DOOR, opened

SLOT = "struct neat_slot_pub"

# Blocks in the calls that argv names, each in a thread (one alone: in the only thread there is);
# says what each of them returned; after() says what can be done once the instance has ended.
PROGRAM = r"""
import errno, os, select, socket, sys, threading

say_lock = threading.Lock()
def say(*words):
    with say_lock:
        print(*words, flush=True)

def result(f, *args):
    try:
        return f(*args)
    except OSError as err:
        return errno.errorcode[err.errno]

server = socket.create_server(("127.0.0.1", 0), backlog=64)
keep = []
def connection():
    client = socket.create_connection(server.getsockname())
    keep.append((client, server.accept()[0]))
    return client

def full():
    "An address where connect() blocks."
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    keep.append(listener)
    for _ in range(40):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(listener.getsockname())
        keep.append(s)
    return listener.getsockname()

def names(bits):
    return "+".join(n for n in ("IN", "HUP", "ERR") if bits & getattr(select, "POLL" + n))

def polled(kind, fd, *more):
    if kind == "poll":
        p = select.poll()
    else:
        p = select.epoll()
    p.register(fd, select.POLLIN)
    for other in more:
        p.register(other, select.POLLIN)
    keep.append(p)
    return names(p.poll()[0][1])

pipe = os.pipe()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
calls = {
    "recv": lambda s=connection(): s.recv(1),
    "send": lambda s=connection(): s.sendall(bytes(64 << 20)),
    "accept": lambda: server.accept(),
    "connect": lambda at=full(): socket.create_connection(at),
    "poll": lambda s=connection(): polled("poll", s),
    "poll+pipe": lambda s=connection(): polled("poll", s, pipe[0]),
    "select": lambda s=connection(): len(select.select([s], [], [])[0]),
    "epoll": lambda s=connection(): polled("epoll", s),
    "epoll+pipe": lambda s=connection(): polled("epoll", s, pipe[0]),
    "datagram": lambda: datagrams.recv(9).decode(),
}
unbound, bound = socket.socket(), socket.socket()
bound.bind(("127.0.0.1", 0))
wanted = sys.argv[1:]

def talk():
    a = socket.create_server(("127.0.0.1", 0))
    c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
    c.sendall(b"through")
    return s.recv(10).decode()

def after():
    say("new", result(talk))
    say("connect-ours", result(socket.create_connection, server.getsockname()))
    say("bind", result(unbound.bind, ("127.0.0.1", 0)))
    say("listen", result(bound.listen))
    say("relisten", result(server.listen))
    p = select.poll(); p.register(server)
    e = select.epoll(); e.register(server)
    say("listener", p.poll(0), e.poll(0))
    say("fork", os.waitpid(os.fork() or os._exit(7), 0)[1] >> 8)
    say("close", result(lambda: [s.close() for s in (server, bound, unbound, *keep[0])]))

def kernel_datagram():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"onwards", datagrams.getsockname())

say("ready")
if len(wanted) == 1:
    say(wanted[0], result(calls[wanted[0]]))
    sys.exit()
def thread(name):
    return threading.Thread(target=lambda: say(name, result(calls[name])), daemon=True)
threads = {n: thread(n) for n in wanted}
for t in threads.values():
    t.start()
for n, t in threads.items():
    if n != "datagram":
        t.join()
kernel_datagram()
if "datagram" in threads:
    threads["datagram"].join()
after()
"""

RETURNS = {
    "recv": "ECONNRESET",
    "send": "ECONNRESET",
    "accept": "ENETDOWN",
    "connect": "ECONNRESET",
    "poll": "IN+HUP+ERR",
    "poll+pipe": "IN+HUP+ERR",
    "select": "1",
    "epoll": "IN+HUP+ERR",
    "epoll+pipe": "IN+HUP+ERR",
}
AFTER = {
    "new": "through",
    "connect-ours": "ECONNREFUSED",
    "bind": "None",
    "listen": "ENETDOWN",
    "relisten": "ENETDOWN",
    "listener": "[] []",
    "fork": "7",
    "datagram": "onwards",
}


def asleep(pid: int) -> bool:
    """All threads of the process sleep."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all((t / "stat").read_text().rpartition(")")[2].split()[0] == "S" for t in tasks)


class Program:
    def __init__(self, rig: Rig, *calls: str) -> None:
        self.calls = calls
        self.process = rig.world.start(
            sys.executable, "-c", PROGRAM, *calls, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        threads = len(calls) + 1 if len(calls) > 1 else 1
        tasks = f"/proc/{self.process.pid}/task"
        wait_until(
            lambda: len(os.listdir(tasks)) == threads and asleep(self.process.pid), "it blocks"
        )

    def answers(self) -> tuple[dict[str, str], list[str]]:
        """What each call returned; lines on stderr."""
        try:
            out, err = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"{self.calls} hangs after: {out}{err}") from None
        return dict(line.split(" ", 1) for line in out.splitlines()), err.splitlines()


def down(rig: Rig) -> None:
    done = rig.cli("down")
    assert done.returncode == 0, done.stderr
    assert "10 processes were attached" in done.stderr


def killed(rig: Rig) -> None:
    os.kill(rig.pids()["keeper"], signal.SIGKILL)


def kill_all(found: dict[str, Any]) -> None:
    """Everybody that a status names."""
    one_each = [found[role]["pid"] for role in ("keeper", "neatd", "standby", "nic")]
    pids = [*one_each, *(replica["pid"] for replica in found["replicas"])]
    for sig in (signal.SIGSTOP, signal.SIGKILL):
        for pid in filter(None, pids):
            os.kill(pid, sig)


def all_killed(rig: Rig) -> None:
    """Nobody is left who could say a word, or start somebody."""
    kill_all(rig.status())


def all_but_neatd_killed(rig: Rig) -> None:
    found = rig.status()
    pids = rig.pids() | {"standby": found["standby"]["pid"]}
    del pids["neatd"]
    for sig in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids.values():
            os.kill(pid, sig)


def one_silent(rig: Rig) -> None:
    """A replica dies without a word, and the keeper with it; the others tell."""
    pids = rig.pids()
    os.kill(pids["replica0"], signal.SIGSTOP)
    os.kill(pids["keeper"], signal.SIGSTOP)
    for name in ("replica0", "keeper"):
        os.kill(pids[name], signal.SIGKILL)


def said_to_nobody(rig: Rig) -> None:
    """Replicas are killed in the middle of their last rites: the words are there, no wake is."""
    pids = rig.pids()
    victims = [pid for name, pid in pids.items() if name == "keeper" or name.startswith("replica")]
    with opened(rig) as targets:
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        for target in targets:
            say_the_end(target)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)


def say_the_end(target: Target) -> None:
    """As api_over() (replicas/stack/api_drain.c)."""
    slots, err_seq = ffi.offsetof("struct neat_seg_pub", "slots"), ffi.offsetof(SLOT, "err_seq")
    over = lib.NEAT_SLOT_ERROR | lib.NEAT_SLOT_HUP | lib.NEAT_SLOT_RX_EOF | lib.NEAT_SLOT_TX_SHUT
    for segment in target.named("seg_pub"):
        for slot in (s + n for s in (1, lib.NEAT_SLOT_APP_FIRST) for n in range(64)):
            at = segment.begin + slots + slot * ffi.sizeof(SLOT)
            status = number(target.read(at, 8))
            if status & (lib.NEAT_SLOT_CONNECTED | lib.NEAT_SLOT_CONNECTING):
                flags = status & 0xFFFFFFFF & ~lib.NEAT_SLOT_CONNECTING | over | lib.NEAT_SLOT_DEAD
                status = status >> 48 << 48 | errno.ECONNRESET << 32 | flags
                seq = number(target.read(at + err_seq, 4)) + 1
                target.write(at + err_seq, seq.to_bytes(4, "little"))
                target.write(at, status.to_bytes(8, "little"))
    for channels in target.named("channels"):
        target.write(channels.begin + DOOR, bytes([lib.NEAT_DOOR_ENDED]))


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


ENDS = [down, killed, all_killed, all_but_neatd_killed, one_silent, said_to_nobody]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_blocked_programs(scratch: Path, replicas: int, end: Callable[[Rig], None]) -> None:
    """Alone and with other threads; afterwards everything is the kernel's."""
    rig = Rig(scratch, replicas)
    programs = [Program(rig, *RETURNS, "datagram"), *(Program(rig, call) for call in RETURNS)]
    pids = rig.pids()
    try:
        end(rig)
        for program in programs:
            answers, said = program.answers()
            want = {call: RETURNS[call] for call in program.calls if call in RETURNS}
            if len(program.calls) > 1:
                want |= AFTER
                assert answers.pop("close").startswith("[None")
            assert answers == want
            assert len(said) == 1 and said[0].startswith("neatsock: "), said
            assert "has ended" in said[0]
        wait_until(
            lambda: not any(os.path.exists(f"/proc/{p}") for p in pids.values()), "all are gone"
        )
    finally:
        for program in programs:
            program.process.kill()
        rig.down()


# Connected to kernel programs of another network, out and in, and blocked there.
UPLINKED = r"""
import errno, os, select, socket, sys, threading
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
out = socket.create_connection((sys.argv[1], int(sys.stdin.readline())))
inward, _ = listener.accept()
full = socket.create_connection(out.getpeername())
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.sendto(b"to its link", (sys.argv[1], 9))
def epoll():
    e = select.epoll(); e.register(inward, select.EPOLLIN)
    return e.poll()[0][1] == select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
calls = {"recv": lambda: out.recv(1), "send": lambda: full.sendall(bytes(64 << 20)),
         "epoll": epoll, "accept": listener.accept}
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
def call(name):
    try:
        say(name, calls[name]())
    except OSError as err:
        say(name, errno.errorcode[err.errno])
threads = [threading.Thread(target=call, args=[name]) for name in calls]
for t in threads: t.start()
say("ready")
for t in threads: t.join()
a = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
c.sendall(b"through")
say("new", s.recv(10).decode())
"""
KERNEL_PEER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
first, _ = listener.accept()
inward = socket.create_connection((sys.argv[1], int(sys.stdin.readline())))
second, _ = listener.accept()
sys.stdin.read()
"""


def test_all_killed_with_a_nic(tmp_path: Path) -> None:
    """Connections to kernel peers end like local ones, and the device goes with the instance."""
    with uplinked(tmp_path / "run", 2) as net:
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        ours = net.neat.start(sys.executable, "-c", UPLINKED, PEER, **pipes)
        theirs = net.peer.start(sys.executable, "-c", KERNEL_PEER, OURS, **pipes)
        try:
            ports = []
            for program in (ours, theirs):
                assert program.stdout and program.stdin
                ports.append(program.stdout.readline())
            for program, port in ((ours, ports[1]), (theirs, ports[0])):
                assert program.stdin
                program.stdin.write(port)
                program.stdin.flush()
            assert ours.stdout and ours.stdout.readline() == "ready\n"
            tasks = Path(f"/proc/{ours.pid}/task")
            wait_until(lambda: len(os.listdir(tasks)) == 5 and asleep(ours.pid), "it blocks")
            kill_all(json.loads(net.instance.cli("status", "--json").stdout))
            out, err = ours.communicate(timeout=20)
            assert dict(line.split() for line in out.splitlines()) == {
                "recv": "ECONNRESET",
                "send": "ECONNRESET",
                "epoll": "True",
                "accept": "ENETDOWN",
                "new": "through",
            }
            assert len(err.splitlines()) == 1 and "has ended" in err, err
            wait_until(lambda: net.namespace not in net.peer.run("ip", "link").stdout, "no device")
        finally:
            for program in (ours, theirs):
                program.kill()
                program.communicate()


# Asks again and again, in the way that argv names, and never sleeps.
RESTLESS = r"""
import errno, select, socket, sys
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer = server.accept()[0]
client.setblocking(False)
def recv():
    try:
        return client.recv(1)
    except BlockingIOError:
        return None
def send():
    try:
        client.send(bytes(65536))
    except BlockingIOError:
        pass
poll, epoll = select.poll(), select.epoll()
poll.register(client, select.POLLIN)
epoll.register(client, select.EPOLLIN)
def connects():
    with socket.socket() as s:
        s.setblocking(False)
        s.connect_ex(server.getsockname())
    return recv()
ask = {"recv": recv, "send": send, "poll": lambda: poll.poll(0), "epoll": lambda: epoll.poll(0),
       "ticks": lambda: epoll.poll(0.05), "connects": connects}[sys.argv[1]]
print("ready", flush=True)
try:
    while not ask():
        pass
    client.recv(1)
except OSError as err:
    print(errno.errorcode[err.errno])
"""


def test_restless_programs(scratch: Path) -> None:
    """Those that never block notice, too, and those that are in the middle of something."""
    rig = Rig(scratch, 2)
    started = {
        how: rig.world.start(
            sys.executable, "-c", RESTLESS, how, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for how in ("recv", "send", "poll", "epoll", "ticks", "connects")
    }
    try:
        for process in started.values():
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        all_killed(rig)
        for how, process in started.items():
            out, err = process.communicate(timeout=20)
            assert (how, out) == (how, "ECONNRESET\n")
            assert len(err.splitlines()) == 1 and "has ended" in err
    finally:
        for process in started.values():
            process.kill()
        rig.down()


# ---- starting one ----

WAIT_ALL = """
import os, sys
os.fork() or os._exit(3)
reaped = []
while True:
    try:
        reaped.append(os.wait()[1] >> 8)
    except ChildProcessError:
        break
print(*reaped)
"""


@pytest.mark.parametrize("start", ["run", "patch"])
def test_who_starts_an_instance_has_no_child_more(scratch: Path, start: str) -> None:
    """A program that waits for all its children does not wait for the keeper."""
    command = [sys.executable, "-c", WAIT_ALL]
    if start == "run":
        command = [sys.executable, "-m", "neatsock", "run", "--", *command]
    else:
        command[2] = "import neatsock; neatsock.patch()\n" + WAIT_ALL
    env = {**os.environ, **neatsock_env(scratch)}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        assert (done.stdout, done.stderr) == ("3\n", "")
    finally:
        subprocess.run([sys.executable, "-m", "neatsock", "down"], env=env, capture_output=True)


# ---- a disk that is full ----


@pytest.fixture
def small(scratch: Path) -> Iterator[Path]:
    """A directory for an instance on a file system of 64 KiB."""
    where = scratch / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", where], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("needs root to mount a small file system")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def fill(directory: Path) -> None:
    """The file system has no byte left, not even behind the end of the log."""
    for path in (directory / "fill", *directory.glob("*.log")):
        with open(path, "ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as err:
                    assert err.errno == errno.ENOSPC


def test_full_disk_stops_nothing(small: Path) -> None:
    """What would be logged cannot be: attach, scale, a death and the end work nevertheless."""
    rig = Rig(small, 1, "--replicas-max", "2")
    try:
        pids = rig.pids()
        fill(small)
        bystander = Bystander(rig.world)
        assert rig.cli("scale", "2").returncode == 0
        os.kill(pids["replica0"], signal.SIGKILL)
        rig.ready(0, 2)
        bystander.lively()
        bystander.close()
    finally:
        done = rig.cli("down")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not os.path.exists(f"/proc/{pids['keeper']}"), "the keeper has ended")


def cli(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neatsock", *args]
    env = {**os.environ, **neatsock_env(directory)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [["up"], ["run", "--", "true"]], ids=["up", "run"])
def test_nowhere_to_write(small: Path, command: list[str]) -> None:
    """Full, read-only, or no file at all where the log should be: one line each."""
    (small / "default.log").mkdir()
    wanted = [("cannot write", "Is a directory")]
    found = [cli(small, *command)]
    (small / "default.log").rmdir()
    fill(small)
    wanted.append(("cannot write", "No space left"))
    found.append(cli(small, *command))
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    wanted.append(("cannot write", "Read-only"))
    found.append(cli(small, *command))
    for done, parts in zip(found, wanted, strict=True):
        assert done.returncode == 1 and done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and all(part in lines[0] for part in parts), done.stderr
