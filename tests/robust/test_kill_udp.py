"""A replica is killed under datagrams: its sockets go on, and nothing in a ring is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

from .rig import Rig, wait_until

# A server and four clients on sockets of their own; every answer is checked. A datagram may be lost
# or come twice when a replica dies, an error or a wrong byte may not.
LOAD = """
import os, socket, struct, sys, threading
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); server.bind(("127.0.0.1", 0))
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def serve():
    while True:
        data, peer = server.recvfrom(65536)
        server.sendto(data[::-1], peer)
threading.Thread(target=serve, daemon=True).start()
counts = [0] * 4
def client(me):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.2)
    if me % 2: s.connect(server.getsockname())
    number = 0
    while True:
        number += 1
        data = struct.pack("QQ", me, number) + os.urandom(number % 3000)
        try:
            s.send(data) if me % 2 else s.sendto(data, server.getsockname())
            while True:
                got = s.recv(65536)[::-1]
                if got == data: break
                # An answer that was given up on, or the same one twice.
                who, which = struct.unpack("QQ", got[:16])
                if who != me or which > number: say("WRONG")
        except TimeoutError:
            continue
        except OSError as err:
            say("ERROR", me, err)
        counts[me] += 1
for i in range(4): threading.Thread(target=client, args=[i], daemon=True).start()
while sys.stdin.readline():
    say(*counts)
"""


def counts(load: subprocess.Popen[str]) -> list[int]:
    assert load.stdin and load.stdout
    load.stdin.write("\n")
    load.stdin.flush()
    line = load.stdout.readline()
    assert "WRONG" not in line and "ERROR" not in line, line
    return [int(word) for word in line.split()]


def all_moved(load: subprocess.Popen[str], before: list[int]) -> bool:
    return all(now > then + 20 for now, then in zip(counts(load), before, strict=True))


def test_datagram_sockets_go_on(rig: Rig) -> None:
    command = (sys.executable, "-c", LOAD)
    load = rig.world.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        wait_until(partial(all_moved, load, [0] * 4), "the load runs")
        for kill in range(6):
            victim = kill % len(rig.epochs())
            epoch = rig.epochs()[victim]
            os.kill(rig.pids()[f"replica{victim}"], signal.SIGKILL)
            rig.ready(victim, epoch + 1)
            wait_until(partial(all_moved, load, counts(load)), "every client has answers again")
    finally:
        load.kill()
        load.wait()


UNREAD = """
import socket, sys
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(("127.0.0.1", 0)); a.settimeout(10)
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); b.connect(a.getsockname())
for i in range(100): b.send(b"%d" % i)
while len(a.recv(100, socket.MSG_PEEK)) == 0: pass
import select
assert select.select([a], [], [], 10)[0]
print("sent", flush=True)
sys.stdin.readline()
print([int(a.recv(100)) for _ in range(100)] == list(range(100)))
b.send(b"after")
print(a.recv(100), b.getpeername() == a.getsockname())
"""


def test_unread_datagrams_stay_readable(rig1: Rig) -> None:
    program = rig1.world.start(
        sys.executable, "-c", UNREAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdin and program.stdout
    assert program.stdout.readline() == "sent\n"
    epoch = rig1.epochs()[0]
    os.kill(rig1.pids()["replica0"], signal.SIGKILL)
    rig1.ready(0, epoch + 1)
    assert program.communicate("\n", 20)[0] == "True\nb'after' True\n"


def test_ports_of_a_killed_program_are_free(rig: Rig) -> None:
    """Its twin is closed by the kernel, its entry by neatd: the port can be had again at once."""
    code = (
        "import os, signal, socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    again = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)\n"
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.sendto(b'x', s.getsockname())\n"
        "print(s.recv(1))\n"
    )
    for _ in range(5):
        port = rig.world.run(sys.executable, "-c", code, check=False).stdout.strip()
        assert rig.world.run(sys.executable, "-c", again, port).stdout == "b'x'\n"
