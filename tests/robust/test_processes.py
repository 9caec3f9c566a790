# ruff: noqa: E501 - programs in strings
"""Fork storms, and many threads on the same sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ..worlds import KERNEL
from .rig import Bystander, Rig, wait_until

# The records are read through the application's own mapping of neat_app.
APP = """
import os, socket, sys, time
sys.path.insert(0, sys.argv[1])
from neatsock import abi
def app():
    for line in open("/proc/self/maps"):
        words = line.split()
        if len(words) > 5 and "memfd:neat-app" in words[5]:
            return abi.ffi.cast("struct neat_app *", int(words[0].split("-")[0], 16))
"""

STORM = (
    APP
    + """
def wait_for(f):
    end = time.monotonic() + 20
    while not f() and time.monotonic() < end: time.sleep(0.005)
    return f()
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
pairs = []
for _ in range(5):
    c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
    s.settimeout(10); pairs.append((c, s))
shared = app()
def used():
    return [i for i in range(1, 65536) if shared.socks[i].state.v != abi.lib.NEAT_SOCK_FREE]
def refs():
    return [shared.socks[i].refs.v for i in used()]
print(len(used()), set(refs()))
running = set()
for n in range(200):
    pid = os.fork()
    if pid == 0:
        c, s = pairs[n % 5]
        if n % 4 == 1:      # closes one end and exits
            c.close()
        elif n % 4 == 2:    # uses the connection; whose turn it is, is the parent's business
            t = socket.create_connection(a.getsockname(), 10); t.close()
        elif n % 4 == 3:    # dies of a signal
            os.kill(os.getpid(), 9)
        os._exit(0)
    running.add(pid)
    if len(running) > 40:
        running.discard(os.wait()[0])
while running:
    running.discard(os.wait()[0])
a.setblocking(False)
try:
    while True: a.accept()[0].close()
except BlockingIOError:
    pass
a.setblocking(True)
print("refs back to one:", wait_for(lambda: set(refs()) == {1} and len(used()) == 11))
for n, (c, s) in enumerate(pairs):
    c.sendall(b"%d" % n * 3000); assert s.recv(3000, socket.MSG_WAITALL) == b"%d" % n * 3000
print("processes:", wait_for(lambda: sum(p.state.v != 0 for p in shared.procs) == 1))
if os.fork() == 0:
    c, s = pairs[0]
    c.sendall(b"child"); assert s.recv(5, socket.MSG_WAITALL) == b"child"
    os._exit(0)
assert os.wait()[1] == 0
for c, s in pairs: c.close(); s.close()
a.close()
print("left:", wait_for(lambda: not used()), used(), [shared.socks[i].refs.v for i in used()])
b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen()
c = socket.create_connection(b.getsockname(), 10); s, _ = b.accept(); c.sendall(b"x"); assert s.recv(1)
"""
)


def test_fork_storm(rig: Rig, bystander: Bystander) -> None:
    """200 children inherit connections, use them, close them, are killed: no reference is lost."""
    root = rig.env["PYTHONPATH"]
    done = rig.world.run(sys.executable, "-c", STORM, root, timeout=90)
    assert done.stdout.splitlines() == [
        "11 {1}",
        "refs back to one: True",
        "processes: True",
        "left: True [] []",
    ], done.stdout + done.stderr
    assert done.stderr == ""
    wait_until(lambda: len(rig.status()["apps"]) == 1, "the application is gone")


# What a kill between the last reference and the end of the connection leaves: the table entry is
# cleared, the record says who was closing it, nothing was said to the replica.
CLOSING = """
import ctypes, os, signal, socket, sys, time
sys.path.insert(0, sys.argv[1])
from neatsock import abi
def base():
    for line in open("/proc/self/maps"):
        words = line.split()
        if len(words) > 5 and "memfd:neat-app" in words[5]:
            return int(words[0].split("-")[0], 16)
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
far, near = os.pipe()
pid = os.fork()
if pid == 0:
    c = socket.create_connection(a.getsockname(), 10); os.write(near, b"x")
    shared = abi.ffi.cast("struct neat_app *", base())
    proc = next(i for i in range(256) if shared.procs[i].pid.v == os.getpid())
    row = base() + abi.lib.NEAT_APP_FDS + proc * abi.lib.NEAT_FDS_MAX * 8
    word = ctypes.c_uint64.from_address(row + 8 * c.fileno())
    record = shared.socks[word.value & 0xffffffff]
    assert record.refs.v == 1
    word.value = 0
    record.refs.v = abi.refs_closing(proc if sys.argv[2] == "process" else abi.lib.NEAT_REFS_NEATD)
    os.kill(os.getpid(), signal.SIGSTOP if sys.argv[2] == "neatd" else signal.SIGKILL)
s, _ = a.accept(); os.read(far, 1)
print(pid, flush=True)
s.settimeout(20)
print("end", s.recv(1), flush=True)
sys.stdin.read()
"""


def test_killed_in_the_middle_of_the_last_close(rig: Rig, bystander: Bystander) -> None:
    """Its application lives on, and yet the peer sees the end."""
    with rig.world.start(
        *(sys.executable, "-c", CLOSING, rig.env["PYTHONPATH"], "process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout and program.stdout.readline()
        assert program.stdout.readline() == "end b''\n"
        program.kill()


# A kill between the mark that NEAT_MSG_FORKED is on its way and the message leaves the mark.
MARKED = (
    APP
    + """
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept(); c.settimeout(20)
far, near = os.pipe()
app().forked.v = 1
if os.fork() == 0:
    os.read(far, 1); os._exit(0)
s.close(); os.write(near, b"x")
assert c.recv(1) == b""
"""
)


def test_killed_between_mark_and_message(rig: Rig, bystander: Bystander) -> None:
    """neatd hears of the next child nevertheless, and closes what that leaves."""
    done = rig.world.run(sys.executable, "-c", MARKED, rig.env["PYTHONPATH"])
    assert done.stderr == ""


# Threads that drain events, and one that forks: each has locks that the other wants.
FORKING = """
import os, signal, socket, threading
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
a = socket.create_server(("127.0.0.1", 0))
over = threading.Event()
def answer(s):
    while data := s.recv(100): s.sendall(data)
def ask(c):
    while not over.is_set(): c.sendall(b"x"); assert c.recv(1) == b"x"
    c.close()
jobs = []
for _ in range(3):
    c = socket.create_connection(a.getsockname()); s, _ = a.accept()
    jobs += [threading.Thread(target=ask, args=[c]), threading.Thread(target=answer, args=[s])]
for j in jobs: j.start()
for _ in range(400):
    if os.fork() == 0: os._exit(0)
over.set()
for j in jobs: j.join(20)
assert not any(j.is_alive() for j in jobs), "a thread hangs"
"""


def test_a_thread_forks_while_others_are_woken(rig: Rig, bystander: Bystander) -> None:
    KERNEL.run(sys.executable, "-c", FORKING)
    rig.world.run(sys.executable, "-c", FORKING)


def test_neatd_killed_between_sweep_and_order(tmp_path: Path) -> None:
    """The next neatd gives the order: a stopped process holds nothing, its record is neatd's."""
    rig = Rig(tmp_path, 1)
    program = rig.world.start(
        *(sys.executable, "-c", CLOSING, rig.env["PYTHONPATH"], "neatd"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert program.stdout
        child = int(program.stdout.readline())
        stat = Path(f"/proc/{child}/stat")
        wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "it is stopped")
        os.kill(rig.pids()["neatd"], signal.SIGKILL)
        assert program.stdout.readline() == "end b''\n"
        os.kill(child, signal.SIGKILL)
    finally:
        program.kill()
        program.communicate()
        rig.down()


SHARED = """
import errno, os, select, socket, sys, threading, time
results = []
def note(kind, f, *args):
    try:
        value = f(*args)
        results.append((kind, "data" if value else "end"))
    except OSError as err:
        results.append((kind, errno.errorcode.get(err.errno, str(err))))
def settle(jobs):
    for j in jobs: j.join(15)
    alive = sum(j.is_alive() for j in jobs)
    out = sorted(set(results)); results.clear()
    return alive, out
def asleep(jobs):
    # Every one of them blocks: their kernel state is S.
    end = time.monotonic() + 10
    while time.monotonic() < end:
        states = [open(f"/proc/self/task/{j.native_id}/stat").read().rsplit(")", 1)[1].split()[0] for j in jobs]
        if set(states) == {"S"}: return
        time.sleep(0.001)
def start(n, f, *args):
    jobs = [threading.Thread(target=f, args=args, daemon=True) for _ in range(n)]
    for j in jobs: j.start()
    return jobs
def pair(a):
    c = socket.create_connection(a.getsockname(), 10); c.settimeout(None); s, _ = a.accept()
    return c, s
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
# recv and poll in many threads; the peer closes, or somebody here shuts it down
for how in ("peer closes", "shutdown", "peer resets"):
    c, s = pair(a)
    def poll_once():
        p = select.poll(); p.register(s, select.POLLIN); return p.poll(20000)
    jobs = start(10, note, "recv", s.recv, 10) + start(5, note, "poll", poll_once)
    asleep(jobs)
    if how == "peer closes": c.close()
    elif how == "shutdown": s.shutdown(socket.SHUT_RDWR)
    else:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0"); c.close()
    alive, out = settle(jobs)
    if how == "peer resets": out = sorted({k for k, v in out})   # one reader gets the error, the others the end
    print(how, alive, out)
# a writer that is blocked
c, s = pair(a)
def fill(): note("send", lambda: [c.sendall(b"x" * 1000000) for _ in range(50)])
signal = __import__("signal"); signal.signal(signal.SIGPIPE, signal.SIG_IGN)
jobs = start(4, fill); asleep(jobs)
c.shutdown(socket.SHUT_RDWR)
print("writers", settle(jobs))
# accept in many threads: some get connections, the others are woken by shutdown
for n in (0, 3):
    b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen(16)
    jobs = start(10, note, "accept", b.accept); asleep(jobs)
    clients = [socket.create_connection(b.getsockname(), 10) for _ in range(n)]
    end = time.monotonic() + 10
    while len(results) < n and time.monotonic() < end: time.sleep(0.001)
    b.shutdown(socket.SHUT_RDWR)
    print("accept", n, settle(jobs)); b.close()
# close while others use the number: no promise which error, but nobody reads another's bytes
wrong = []; stop = time.monotonic() + 1.0
def churn():
    me = threading.get_native_id() % 251
    while time.monotonic() < stop:
        c, s = pair_of_own(); tag = bytes([me]) * 100
        c.sendall(tag); got = s.recv(100, socket.MSG_WAITALL)
        if got != tag: wrong.append((me, got))
        c.close(); s.close()
def pair_of_own():
    b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen(2)
    c = socket.create_connection(b.getsockname(), 10); c.settimeout(None); s, _ = b.accept(); b.close()
    return c, s
print("churn", settle(start(8, churn)), wrong)
"""


def test_threads_on_shared_sockets(rig: Rig, bystander: Bystander) -> None:
    """Blocked threads are woken by what others do to their socket, as Linux does it."""
    want = KERNEL.run(sys.executable, "-c", SHARED).stdout
    assert rig.world.run(sys.executable, "-c", SHARED).stdout == want


RACE = """
import os, random, select, socket, sys, threading, time
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
stop = time.monotonic() + 2.0
dice = random.Random(5)
current = [None] * 4
def attack():
    while time.monotonic() < stop:
        s = random.choice(current)
        if s is None: continue
        try:
            what = random.randrange(5)
            if what == 0: s.setblocking(False); s.recv(100)
            elif what == 1: s.send(b"y" * 50, socket.MSG_DONTWAIT)
            elif what == 2: select.select([s], [s], [], 0)
            elif what == 3: s.getpeername()
            else: d = s.dup(); d.close()
        except (OSError, ValueError):
            pass
def feed():
    while time.monotonic() < stop:
        i = random.randrange(4)
        try:
            c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept()
            old, current[i] = current[i], s
            c.send(b"x" * 100)
            if old: old.close()
            if random.random() < 0.5: s.shutdown(socket.SHUT_RDWR)
            c.close()
        except OSError:
            pass
jobs = [threading.Thread(target=attack) for _ in range(6)] + [threading.Thread(target=feed)]
for j in jobs: j.start()
for j in jobs: j.join(20)
assert not any(j.is_alive() for j in jobs), "a thread hangs"
c = socket.create_connection(a.getsockname(), 10); s, _ = a.accept(); s.settimeout(10)
c.sendall(b"still"); assert s.recv(5, socket.MSG_WAITALL) == b"still"
print("fine")
"""


def test_calls_race_with_close(rig: Rig, bystander: Bystander) -> None:
    assert rig.world.run(sys.executable, "-c", RACE).stdout == "fine\n"
