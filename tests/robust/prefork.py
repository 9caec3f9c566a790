"""A server whose workers fork, exec, daemonize and are killed in all ways, and its clients.

`prefork.py serve SEED`: prints its port, then serves until its process group is killed.
`prefork.py call PORT SEED SECONDS`: says what came wrong or was waited for in vain; then "calls N".
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

WORKERS = 4
PAUSE_S = 0.03
LATE_S = 20.0
OPS = "ekfdxspytKv"
ECHO = "import os\nwhile data := os.read(0, 4096): os.write(1, data)"


def echo(conn: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := conn.recv(4096):
            conn.sendall(data)


def in_child(conn: socket.socket, then: str) -> None:
    """fork: the child has it from now on."""
    if os.fork() == 0:
        if then == "d":
            os.setsid()
            if os.fork():
                os._exit(0)
        if then == "x":
            os.dup2(conn.fileno(), 0)
            os.dup2(conn.fileno(), 1)
            os.execv(sys.executable, [sys.executable, "-S", "-c", ECHO])
        echo(conn)
        os._exit(0)


def handle(conn: socket.socket, siblings: list[int]) -> None:
    op = conn.recv(1).decode()
    if op in "fdx":
        in_child(conn, op)
    elif op == "t":  # a thread forks while this one goes on to close it
        threading.Thread(target=in_child, args=[conn.dup(), "f"]).start()
    elif op == "s":
        subprocess.Popen(["cat"], stdin=conn, stdout=conn)
    elif op == "p":
        conn.set_inheritable(True)
        os.posix_spawn("/bin/sleep", ["sleep", "0.05"], os.environ)
    elif op == "y":
        conn.set_inheritable(True)
        os.system("sleep 0.05 &")
        echo(conn)
    elif op == "v":
        subprocess.Popen(["sleep", "0.05"], close_fds=False, start_new_session=True)
        echo(conn)
    elif op == "K":
        for pid in siblings:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        echo(conn)
    elif op == "k":
        conn.send(conn.recv(100))
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        echo(conn)


def worker(listener: socket.socket, siblings: list[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        conn, _ = listener.accept()
        with contextlib.suppress(OSError), conn:
            handle(conn, siblings)


def serve(seed: int) -> None:
    rng = random.Random(seed)
    os.setpgid(0, 0)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    print(listener.getsockname()[1], flush=True)
    workers: list[int] = []
    while True:
        while len(workers) < WORKERS:
            pid = os.fork()
            if pid == 0:
                worker(listener, workers[:1])
            workers.append(pid)
        time.sleep(rng.random() * PAUSE_S)
        if rng.random() < 0.3:
            os.kill(rng.choice(workers), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitpid(-1, os.WNOHANG)[0]:
                if dead in workers:
                    workers.remove(dead)


def call(port: int, rng: random.Random, seen: collections.Counter[str]) -> None:
    op = rng.choice(OPS)
    data = rng.randbytes(rng.choice([1, 1000, 30000]))
    got = b""
    try:
        with socket.create_connection(("127.0.0.1", port), LATE_S) as conn:
            conn.settimeout(LATE_S)
            conn.sendall(op.encode() + data)
            conn.shutdown(socket.SHUT_WR)
            while more := conn.recv(65536):
                got += more
        seen[op + (" whole" if got == data else " part")] += 1
    except TimeoutError:
        print("WRONG: nothing comes after", op, len(got), "of", len(data), conn, flush=True)
        seen["wrong"] += 1
    except OSError as err:
        seen[f"{op} {err.errno}"] += 1
    if not data.startswith(got):
        print("WRONG bytes", op, flush=True)
        seen["wrong"] += 1


def calls(port: int, seed: int, seconds: float) -> int:
    seen: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds

    def loop(rng: random.Random) -> None:
        while time.monotonic() < end:
            call(port, rng, seen)

    threads = [threading.Thread(target=loop, args=[random.Random(seed + i)]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sorted(seen.items()))
    print("calls", sum(seen.values()))
    return seen["wrong"]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    sys.exit(calls(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])) > 0)
