"""What neatd told a replica is done although the replica died before it could read it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from .rig import Rig, stopped, wait_until

# The child holds the only reference to an accepted connection.
HOLDER = """
import os, signal, socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(16)
print(a.getsockname()[1], flush=True)
pid = os.fork()
if pid == 0:
    s, _ = a.accept(); s.sendall(b"here"); a.close()
    signal.pause()
print(pid, flush=True)
sys.stdin.read()
"""
# Tells how its connection ended.
WITNESS = """
import socket, sys
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10); c.settimeout(10)
assert c.recv(4, socket.MSG_WAITALL) == b"here"
print("connected", flush=True)
try:
    print("end of file" if not c.recv(1) else "bytes")
except OSError as err:
    print(type(err).__name__)
"""


def pids_of(rig: Rig) -> set[int]:
    found = wait_until(rig.status, "neatd answers")
    return {pid for app in found["apps"] for pid in app["pids"]}


def kill_unread(rig: Rig, stopped: int, program: int) -> None:
    """The program dies; the replica is killed with neatd's orders unread."""
    os.kill(program, signal.SIGKILL)
    wait_until(lambda: program not in pids_of(rig), "neatd saw the death")
    os.kill(stopped, signal.SIGKILL)


def test_a_release_is_not_lost(rig1: Rig) -> None:
    """A process of an application dies, then the replica: the connection is closed all the same."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = rig1.world.start(sys.executable, "-c", HOLDER, **pipes)
    assert holder.stdout
    port, child = holder.stdout.readline().strip(), int(holder.stdout.readline())
    witness = rig1.world.start(sys.executable, "-c", WITNESS, port, stdout=subprocess.PIPE)
    try:
        assert witness.stdout and witness.stdout.readline() == "connected\n"
        wait_until(lambda: child in pids_of(rig1), "the child has attached")
        replica, epoch = rig1.pids()["replica0"], rig1.epochs()[0]
        os.kill(replica, signal.SIGSTOP)
        kill_unread(rig1, replica, child)
        rig1.ready(0, epoch + 1)
        assert witness.stdout.readline() == "end of file\n"
    finally:
        for process in (holder, witness):
            process.kill()
            process.communicate()


# Writes as much as fits; the other end reads when it is told to.
WRITER = """
import signal, socket, sys
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
c.settimeout(0.5); total = 0
try:
    while True:
        total += c.send(bytes((total + i) % 251 for i in range(251)) * 100)
except TimeoutError:
    print(total, flush=True)
signal.pause()
"""
READER = """
import hashlib, socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(16)
print(a.getsockname()[1], flush=True)
s, _ = a.accept(); s.settimeout(10)
sys.stdin.readline(); total = 0
try:
    while data := s.recv(65536):
        total += len(data)
    print("end of file", total)
except OSError as err:
    print(type(err).__name__, total)
"""


def test_unsent_bytes_of_a_dead_application_are_not_lost(rig1: Rig) -> None:
    """They lie in its ring; the successor sends them, then the end, as the kernel would."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    reader = rig1.world.start(sys.executable, "-c", READER, **pipes)
    assert reader.stdout and reader.stdin
    port = reader.stdout.readline().strip()
    writer = rig1.world.start(sys.executable, "-c", WRITER, port, stdout=subprocess.PIPE)
    try:
        assert writer.stdout
        total = int(writer.stdout.readline())
        replica, epoch = rig1.pids()["replica0"], rig1.epochs()[0]
        os.kill(replica, signal.SIGSTOP)
        kill_unread(rig1, replica, writer.pid)
        rig1.ready(0, epoch + 1)
        os.kill(rig1.pids()["replica0"], signal.SIGKILL)  # again: nothing is forgotten meanwhile
        rig1.ready(0, epoch + 2)
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == f"end of file {total}\n"
    finally:
        for process in (reader, writer):
            process.kill()
            process.communicate()
    wait_until(lambda: not maps_segments(rig1), "the replica has let go of both applications")
    wait_until(lambda: not holds_segments(rig1), "the keeper too, and for replicas that never ran")


def holds_segments(rig: Rig) -> bool:
    def leads_there(fd: Path) -> bool:
        try:
            return "memfd:neat_seg" in os.readlink(fd)
        except FileNotFoundError:  # closed since it was listed
            return False

    fds = Path(f"/proc/{rig.pids()['keeper']}/fd")
    return any(leads_there(fd) for fd in fds.iterdir())


def maps_segments(rig: Rig) -> bool:
    with open(f"/proc/{rig.pids()['replica0']}/maps", encoding="ascii") as maps:
        return "memfd:neat_seg" in maps.read()


# The child asks for a connection when it is told to.
ASKER = """
import os, signal, socket, sys
s = socket.socket(); s.setblocking(False)
pid = os.fork()
if pid == 0:
    sys.stdin.readline()
    c = socket.socket(); c.setblocking(False)
    c.connect_ex(("127.0.0.1", int(sys.argv[1])))
    print("asked", flush=True)
    signal.pause()
print(pid, flush=True)
signal.pause()
"""
ENDS = """
import socket, threading
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(16)
print(a.getsockname()[1], flush=True)
def serve(s):
    with s:
        while data := s.recv(9): s.sendall(data)
while True:
    threading.Thread(target=serve, args=[a.accept()[0]], daemon=True).start()
"""
ECHO = """
import socket, sys
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
c.sendall(b"x"); assert c.recv(9) == b"x"
"""


def test_a_connect_that_was_not_obeyed_yet_ends_with_its_process(rig1: Rig) -> None:
    """The replica hears of the end before it looks at what the process had asked for."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = rig1.world.start(sys.executable, "-c", ENDS, stdout=subprocess.PIPE)
    assert server.stdout
    port = server.stdout.readline().strip()
    asker = rig1.world.start(sys.executable, "-c", ASKER, port, **pipes)
    try:
        assert asker.stdin and asker.stdout
        child = int(asker.stdout.readline())
        wait_until(lambda: child in pids_of(rig1), "the child is known")
        with stopped(rig1.pids()["replica0"]):
            asker.stdin.write("\n")
            asker.stdin.flush()
            assert asker.stdout.readline() == "asked\n"
            os.kill(child, signal.SIGKILL)
            wait_until(lambda: child not in pids_of(rig1), "neatd saw the death")
        rig1.world.run(sys.executable, "-c", ECHO, port)
        wait_until(lambda: rig1.status()["replicas"][0]["connections"] == 0, "all have ended")
    finally:
        for process in (server, asker):
            process.kill()
            process.communicate()
