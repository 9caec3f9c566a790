# ruff: noqa: E501 - programs in strings
"""Full rings, full queues, no descriptors left: callers wait or get an errno, and all goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..worlds import KERNEL
from .rig import Bystander, Rig, stopped, wait_until

# Says "go" and waits for a line before the operations, so that the replica is stopped meanwhile.
COMMANDS = """
import errno, socket, sys, threading
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(64)
pairs = []
for _ in range(20):
    c = socket.create_connection(listener.getsockname(), 10); s, _ = listener.accept()
    c.settimeout(None); s.settimeout(None)
    pairs.append((c, s))
print("go", flush=True); sys.stdin.readline()
address = listener.getsockname()
started = []
def operate():
    # Every one of these is a command: 5000 connects that are closed at once (10000 commands).
    for i in range(5000):
        t = socket.socket(); t.setblocking(False)
        e = t.connect_ex(address)
        assert e in (errno.EINPROGRESS, errno.EAGAIN), e
        t.close()
        if i % 250 == 0:
            print("at", i, flush=True)
worker = threading.Thread(target=operate); worker.start()
for n, (c, s) in enumerate(pairs):
    c.sendall(b"%d" % n * 1000)
print("sent", flush=True)
worker.join()
for n, (c, s) in enumerate(pairs):
    want = b"%d" % n * 1000
    assert s.recv(len(want), socket.MSG_WAITALL) == want
    s.close()
    assert c.recv(1) == b""
listener.setblocking(False)
while True:     # those that were established before they were closed fill the queue
    try:
        listener.accept()
    except BlockingIOError:
        break
c = socket.create_connection(address, 10)
print("all", flush=True)
"""


def test_command_ring_is_full(rig1: Rig) -> None:
    """The replica is stopped: commands fill their ring. When it goes on, so does everything."""
    witness = Bystander(rig1.world)
    program = rig1.world.start(
        sys.executable, "-c", COMMANDS, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdin and program.stdout
    assert program.stdout.readline() == "go\n"
    stat = Path(f"/proc/{program.pid}/stat")

    def ticks() -> int:
        return int(stat.read_text().rsplit(")", 1)[1].split()[11])

    with stopped(rig1.pids()["replica0"]):
        program.stdin.write("\n")
        program.stdin.flush()
        seen = []
        while "at 2000\n" not in seen:  # 4000 of 4096 entries
            seen.append(program.stdout.readline())
            assert seen[-1], "the program died"
        before = ticks()
        wait_until(lambda: ticks() > before, "the program waits for room")
        assert program.poll() is None
    out, _ = program.communicate(timeout=60)
    assert program.returncode == 0 and out.endswith("all\n"), out
    witness.lively()
    witness.close()
    assert witness.broken == []


ACCEPT_QUEUE = """
import socket, sys
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(4)
clients = []
for i in range(40):
    c = socket.socket(); c.settimeout(0.05 if i > 4 else 5)
    try:
        c.connect(listener.getsockname())
    except TimeoutError:
        break
    c.settimeout(20)
    clients.append(c)
print("queue is full" if len(clients) < 40 else "no limit")
# Room again: the next one gets through, and everybody in the queue is served.
waiting = socket.socket(); waiting.setblocking(False)
waiting.connect_ex(listener.getsockname())
listener.settimeout(20)
served = []
for _ in clients:
    s, _ = listener.accept(); s.settimeout(20)
    served.append(s)
print("all accepted")
for n, c in enumerate(clients):
    c.sendall(b"%03d" % n)
print(sorted(s.recv(3, socket.MSG_WAITALL) for s in served) == [b"%03d" % n for n in range(len(clients))])
late = socket.create_connection(listener.getsockname(), 20)
print("connects again")
"""


def test_accept_queue_is_full(rig1: Rig, scratch: Path) -> None:
    witness = Bystander(rig1.world)
    want = KERNEL.run(sys.executable, "-c", ACCEPT_QUEUE).stdout
    assert want.startswith("queue is full\n")
    assert rig1.world.run(sys.executable, "-c", ACCEPT_QUEUE).stdout == want
    witness.lively()
    witness.close()
    assert witness.broken == []


NO_DESCRIPTORS = """
import errno, os, resource, socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(64)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
clients = [socket.create_connection(listener.getsockname(), 10) for _ in range(3)]
fill = []
while True:
    try:
        fill.append(os.dup(0))
    except OSError as err:
        print(errno.errorcode[err.errno]); break
listener.setblocking(False)
for _ in range(5):
    try:
        listener.accept(); print("accepted")
    except OSError as err:
        print(errno.errorcode[err.errno])
try:
    socket.socket(); print("socket")
except OSError as err:
    print(errno.errorcode[err.errno])
try:
    listener.dup(); print("dup")
except OSError as err:
    print(errno.errorcode[err.errno])
for fd in fill[:10]:
    os.close(fd)
# Nobody was lost: the three are still in the queue.
served = [listener.accept()[0] for _ in range(3)]
for n, c in enumerate(clients):
    c.sendall(b"%d" % n)
print(sorted(s.recv(1) for s in served))
"""


def test_no_descriptors_left_in_accept(rig: Rig, bystander: Bystander) -> None:
    want = KERNEL.run(sys.executable, "-c", NO_DESCRIPTORS).stdout
    assert want.count("EMFILE") == 8
    assert rig.world.run(sys.executable, "-c", NO_DESCRIPTORS).stdout == want


NO_SLOTS = """
import errno, os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
# Descriptors are no limit for records: each one is a socket of its own until its number is closed.
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(1024)
for _ in range(20):
    many = [socket.socket() for _ in range(400)]
    for s in many:
        s.setblocking(False); s.connect_ex(listener.getsockname())
    for s in many:
        s.close()
    listener.setblocking(False)
    try:
        while True:
            listener.accept()
    except BlockingIOError:
        pass
c = socket.create_connection(listener.getsockname(), 10)
print("again")
"""


def test_records_and_slots_come_back(rig: Rig, bystander: Bystander) -> None:
    assert rig.world.run(sys.executable, "-c", NO_SLOTS).stdout == "again\n"
