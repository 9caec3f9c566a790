# ruff: noqa: E501 - programs in strings
"""Applications killed at the worst moment, and applications that write garbage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .rig import Bystander, Rig, wait_until

WRITER = """
import os, socket, sys
port = int(sys.argv[1])
c = socket.create_connection(("127.0.0.1", port), 10); c.settimeout(None)
block = bytes(range(251)) * 8000
c.sendall(block[:1000]); print("writing", flush=True)
while True:
    c.sendall(block)
"""
# Reads everything and checks it against its position; says how each connection ended.
READER = """
import socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(16)
print(a.getsockname()[1], flush=True)
period = bytes(range(251)) * 8000
while True:
    s, _ = a.accept(); at = 0; end = "EOF"
    # The writer's first block is 1000 bytes of the period, the others are whole periods.
    while True:
        try:
            data = s.recv(300000)
        except ConnectionResetError:
            end = "ECONNRESET"; break
        if not data:
            break
        at0 = at
        while data:
            phase = at if at < 1000 else (at - 1000) % len(period)
            n = min(len(data), (1000 - at if at < 1000 else len(period) - phase))
            if data[:n] != period[phase:phase + n]:
                print("WRONG at", at, flush=True); sys.exit(1)
            data = data[n:]; at += n
    s.close()
    print(end, at, flush=True)
"""


def test_killed_in_the_middle_of_a_large_write(rig: Rig, bystander: Bystander) -> None:
    """The peer reads a prefix of what was written, then the end; the reader's server lives on."""
    reader = rig.world.start(sys.executable, "-c", READER, stdout=subprocess.PIPE)
    assert reader.stdout
    port = reader.stdout.readline().strip()
    dice = random.Random(7)
    for _ in range(8):
        writer = rig.world.start(sys.executable, "-c", WRITER, port, stdout=subprocess.PIPE)
        assert writer.stdout and writer.stdout.readline() == "writing\n"
        time.sleep(dice.random() * 0.05)  # where in its work it is hit
        writer.kill()
        writer.communicate()
        end = reader.stdout.readline().split()
        assert end and end[0] in ("EOF", "ECONNRESET") and int(end[1]) >= 0, end
    reader.kill()
    reader.communicate()


# Each worker takes connections and echoes; the parent replaces the dead.
SERVER = """
import os, selectors, signal, socket, sys
a = socket.socket(); a.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
a.bind(("127.0.0.1", 0)); a.listen(128)
def work():
    a.setblocking(False)
    sel = selectors.DefaultSelector(); sel.register(a, selectors.EVENT_READ)
    while True:
        for key, _ in sel.select():
            s = key.fileobj
            try:
                if s is a:
                    new, _ = a.accept(); new.setblocking(False)
                    sel.register(new, selectors.EVENT_READ, bytearray())
                    continue
                data = s.recv(65536)
                if data:
                    s.setblocking(True); s.sendall(data); s.setblocking(False)
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            sel.unregister(s); s.close()
def spawn():
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid
print(a.getsockname()[1], flush=True)
for _ in range(3):
    print("worker", spawn(), flush=True)
while True:
    os.wait()
    print("worker", spawn(), flush=True)
"""
# Verifies an echo; a connection may end early, but never answer wrongly or not at all.
CLIENT = """
import os, random, socket, sys
dice = random.Random(int(sys.argv[2])); good = ended = 0
while True:
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 15)
    try:
        for _ in range(dice.randrange(1, 30)):
            sent = os.urandom(dice.randrange(1, 40000)); s.sendall(sent); got = b""
            while len(got) < len(sent):
                more = s.recv(65536)
                if not more:
                    if not sent.startswith(got): print("WRONG", flush=True); sys.exit(1)
                    raise ConnectionResetError
                got += more
            if got != sent: print("WRONG", flush=True); sys.exit(1)
            good += 1
    except (ConnectionResetError, BrokenPipeError):
        ended += 1
    except TimeoutError:
        print("TIMEOUT", flush=True); sys.exit(1)
    s.close()
    print(good, ended, flush=True)
"""


def test_workers_killed_in_their_accept_loops(rig: Rig, bystander: Bystander) -> None:
    """50 kills of forked workers: no client sees a wrong byte, the others go on serving."""
    server = rig.world.start(sys.executable, "-c", SERVER, stdout=subprocess.PIPE)
    assert server.stdout
    port = server.stdout.readline().strip()
    workers = [int(server.stdout.readline().split()[1]) for _ in range(3)]
    clients = [
        rig.world.start(sys.executable, "-c", CLIENT, port, str(n), stdout=subprocess.PIPE)
        for n in range(3)
    ]
    dice = random.Random(11)
    try:
        for _ in range(50):
            time.sleep(dice.random() * 0.06)  # the moment of the kill is what is varied
            os.kill(workers.pop(dice.randrange(len(workers))), signal.SIGKILL)
            workers.append(int(server.stdout.readline().split()[1]))
            bystander.check()
        for client in clients:
            assert client.stdout
            assert client.poll() is None, client.stdout.read()
            line = client.stdout.readline().split()
            while int(line[0]) < 50:
                line = client.stdout.readline().split()
    finally:
        for process in clients:
            process.kill()
            process.communicate()
        server.kill()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        server.communicate()
    wait_until(
        lambda: not any(p["port"] == int(port) for a in rig.status()["apps"] for p in a["ports"]),
        "the port of the dead application is free",
    )


SCRIBBLER = r"""
import mmap, os, random, socket, struct, sys, threading, time, ctypes
seed, seconds = int(sys.argv[1]), float(sys.argv[2])
dice = random.Random(seed)
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
pairs = []
for _ in range(20):
    c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
    c.sendall(b"x" * 5000); pairs += [c, s]
maps = []
for line in open("/proc/self/maps"):
    words = line.split()
    if len(words) > 5 and words[5].startswith("/memfd:neat") and words[1].startswith("rw"):
        lo, hi = (int(x, 16) for x in words[0].split("-"))
        maps.append((lo, hi, words[5]))
print(sorted({m[2] for m in maps}), flush=True)
assert len(maps) >= 3, maps
# Another process of the same application does the writing with plain stores: the library plays
# no part in it, and a crash of this one is its own affair.
end = time.monotonic() + seconds
libc = ctypes.CDLL(None)
def regions(lo, hi, name):
    if "channel" in name:
        return [(0, hi - lo)] * 4
    if "seg_app" in name:
        # header and the words of used slots (both halves), then some payload
        return [(0, 128 + 192 * 64), (128 + 192 * 32768, 192 * 64), (16 << 20, 1 << 16), (272 << 20, 1 << 20)]
    return [(0, 4096 + 16 * 256), (0, hi - lo if hi - lo < (40 << 20) else 40 << 20), (33554432, 1 << 16)]
values = [0, 1, 2, 3, 0xffffffff, 0xffffffffffffffff, 1 << 63, 1 << 31, 1 << 32, 4096, 65535, 65536, 1 << 20]
count = 0
while time.monotonic() < end:
    for _ in range(300):
        lo, hi, name = dice.choice(maps)
        start, size = dice.choice(regions(lo, hi, name))
        at = lo + start + dice.randrange(max(1, min(size, hi - lo - start) - 8) // 8 + 1) * 8
        if at + 8 > hi:
            continue
        kind = dice.randrange(4)
        if kind == 0:
            value = dice.getrandbits(64)
        elif kind == 1:
            value = dice.choice(values)
        elif kind == 2:   # near what is there: plausible lies
            value = ctypes.c_uint64.from_address(at).value + dice.choice((1, -1, 64, 4096, -4096))
        else:             # a command that looks right: [op 8][arg 8][gen 16][slot 32]
            value = dice.randrange(6) << 56 | dice.randrange(4) << 32 | dice.choice((1, 2, 3, 32768, 32769, 65535, 65536))
        ctypes.c_uint64.from_address(at).value = value & (1 << 64) - 1
        count += 1
    for lo, hi, name in maps:        # commands are looked at: move the tail, ring the bell
        if "channel" in name:
            ctypes.c_uint64.from_address(lo + 64).value = ctypes.c_uint64.from_address(lo + 128).value + dice.choice((1, 10, 4096, 5000))
        elif "seg_app" in name:
            libc.syscall(202, ctypes.c_void_p(lo + 32), 1, 1, None, None, 0)
print("done", count, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("replicas", [1, 2], ids=["1-replica", "2-replicas"])
def test_garbage_in_shared_memory(replicas: int, scratch: Path) -> None:
    """Programs that write at random over everything they map hurt themselves only.

    Nor does it hurt a replica that starts anew and maps what they left.
    """
    rig = Rig(scratch, replicas)  # its own: what such a program leaves may stay until the end
    bystander = Bystander(rig.world)
    before = rig.pids()
    try:
        for seed in range(3):
            scribble(rig, seed)
            bystander.lively()
        assert bystander.broken == [] and rig.pids() == before
        os.kill(before["replica0"], signal.SIGKILL)
        rig.ready(0, 2)
        bystander.lively()
        assert "Traceback" not in rig.log() and "version skew" not in rig.log()
    finally:
        bystander.close()
        rig.down()


def scribble(rig: Rig, seed: int) -> None:
    program = rig.world.start(
        sys.executable,
        "-c",
        SCRIBBLER,
        str(seed),
        "0.7",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout
    names = program.stdout.readline()
    assert "neat" in names, program.communicate()
    try:
        program.communicate(timeout=3)  # it may have hung itself
    except subprocess.TimeoutExpired:
        program.kill()
        program.communicate()
