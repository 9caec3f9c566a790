# ruff: noqa: E501 - programs in strings
"""neatd killed at a chosen place of a request (deaths/sitecustomize.py): its successor finds the request again."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neatsock import abi

from ..control.client import Client, Refused
from ..waiting import wait_until
from ..worlds import ROOT
from .rig import Rig
from .test_lost_listener import SERVER, listens, overwrite_listeners, served

LIB = abi.lib
# Requests of both kinds by turns; all of it again and again would be out of step for ever.
ASKING = """
import socket, sys
first = socket.socket()
print("ready", flush=True); sys.stdin.readline()
for i in range(3):
    a = socket.socket(); a.bind(("127.0.0.1", 0)); port = a.getsockname()[1]; a.listen()
    assert a.getsockname()[1] == port
    c = socket.create_connection(("127.0.0.1", port), 20); s, _ = a.accept()
    c.sendall(b"x"); assert s.recv(9) == b"x"
print("done", flush=True)
"""


class Mortal:
    """An instance whose neatd dies where die() says."""

    def __init__(self, directory: Path, replicas: int = 2, *options: str) -> None:
        self.order = directory / "order"
        path = f"{ROOT / 'tests/robust/deaths'}:{ROOT}"
        env = {"PYTHONPATH": path, "NEAT_DEATH": str(self.order)}
        self.rig = Rig(directory / "run", replicas, *options, **env)

    def die(self, place: str, kind: int | str, count: int = 1) -> None:
        partial = self.order.with_suffix(".new")
        partial.write_text(f"{place} {kind} {count}")
        partial.rename(self.order)

    def start(self, program: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = sys.executable, "-c", program
        return self.rig.world.start(*command, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.fixture
def mortal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mortal]:
    made = Mortal(tmp_path, getattr(request, "param", 2))
    yield made
    made.rig.down()


@pytest.mark.parametrize("kind", [LIB.NEAT_MSG_BIND, LIB.NEAT_MSG_LISTEN], ids=["bind", "listen"])
def test_an_answer_that_came_twice_is_skipped(mortal: Mortal, kind: int) -> None:
    """Its type is not that of the answer to the next request, for which the library waits."""
    with mortal.start(ASKING) as program:
        assert program.stdout and program.stdout.readline() == "ready\n"
        mortal.die("take", kind)
        out, err = program.communicate("\n", timeout=60)
    assert (out, err) == ("done\n", "")
    assert not mortal.order.exists(), "neatd did not die"


ATTACHING = """
import socket
for i in range(2):
    a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen()
    c = socket.create_connection(a.getsockname(), 20); s, _ = a.accept()
    c.sendall(b"x"); assert s.recv(9) == b"x"
print("done", flush=True)
"""
ATTACHING_AGAIN = """
import os, socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(); a.set_inheritable(True)
print("ready", flush=True); sys.stdin.readline()
os.execv(sys.executable, [sys.executable, "-c", '''
import socket
a = socket.socket(fileno=%d)
c = socket.create_connection(a.getsockname(), 20); s, _ = a.accept()
c.sendall(b"x"); assert s.recv(9) == b"x"
b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen()
print("done", flush=True)
''' % a.fileno()])
"""
# Before the answer, twice in the middle of it, and after it.
ATTACH_PLACES = [
    ("send", LIB.NEAT_MSG_ATTACHED, 1),
    ("send", LIB.NEAT_MSG_SEGMENT, 1),
    ("send", LIB.NEAT_MSG_SEGMENT, 3),
    ("take", LIB.NEAT_MSG_ATTACH, 1),
]


@pytest.mark.parametrize("place", ATTACH_PLACES)
def test_a_program_attaches_whose_neatd_dies_meanwhile(
    mortal: Mortal, place: tuple[str, int, int]
) -> None:
    mortal.die(*place)
    with mortal.start(ATTACHING) as program:
        out, err = program.communicate(timeout=60)
    assert (out, err) == ("done\n", "")
    assert not mortal.order.exists(), "neatd did not die"


@pytest.mark.parametrize("place", ATTACH_PLACES)
def test_a_program_attaches_again_after_exec_whose_neatd_dies_meanwhile(
    mortal: Mortal, place: tuple[str, int, int]
) -> None:
    with mortal.start(ATTACHING_AGAIN) as program:
        assert program.stdout and program.stdout.readline() == "ready\n"
        mortal.die(*place)
        out, err = program.communicate("\n", timeout=60)
    assert (out, err) == ("done\n", "")
    assert not mortal.order.exists(), "neatd did not die"


def test_a_second_attach_over_one_connection_is_refused_by_a_successor_too(mortal: Mortal) -> None:
    mortal.die("take", LIB.NEAT_MSG_ATTACH)
    client = Client(mortal.rig.path)
    try:
        app_id = client.app_id
        client.read_attached()  # the successor's answer to the same request
        assert client.app_id == app_id
        with pytest.raises(Refused, match="attached already"):
            client.attach()
    finally:
        client.close()


def test_a_fork_that_neatd_did_not_live_to_look_at_is_said_again(mortal: Mortal) -> None:
    """While the mark is set, nobody says that it has forked: for a second."""
    client = Client(mortal.rig.path)
    try:
        before = mortal.rig.pids()["neatd"]
        client.app.at.forked.v = 1
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: mortal.rig.pids()["neatd"] != before, "its successor")
        wait_until(lambda: client.app.at.forked.v == 0, "it looked")
    finally:
        client.close()


@pytest.mark.parametrize("mortal", [2, 1], ids=["2-replicas", "1-replica"], indirect=True)
def test_a_lost_listener_that_neatd_did_not_live_to_install_anew(mortal: Mortal) -> None:
    last = len(mortal.rig.epochs()) - 1
    server = mortal.start(SERVER)
    try:
        assert server.stdout
        port = server.stdout.readline().strip()
        pid, epoch = mortal.rig.pids()[f"replica{last}"], mortal.rig.epochs()[last]
        assert overwrite_listeners(pid) == 1
        mortal.die("hear", LIB.NEAT_MSG_R_LISTENING)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not mortal.order.exists(), "neatd dies")
        mortal.rig.ready(last, epoch + 1)
        pid = mortal.rig.pids()[f"replica{last}"]
        wait_until(lambda: listens(pid), "it has a listener again")
        served(mortal.rig, port)
    finally:
        server.kill()
        server.communicate()


CONNECTING = """
import socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); port = a.getsockname()[1]
print(port, flush=True); to = int(sys.stdin.readline())
error = a.connect_ex(("127.0.0.1", to))
print(error, a.getsockname()[1] == port, a.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "refused"])
def test_a_port_that_neatd_bound_twice_when_it_died_is_not_shared(
    mortal: Mortal, accepted: bool
) -> None:
    """SO_REUSEADDR is on for that moment only: on the program's socket, and on the reservation."""
    with socket.socket() as host, mortal.start(CONNECTING) as program:
        host.bind(("127.0.0.1", 0))
        if accepted:
            host.listen()
        assert program.stdin and program.stdout
        port = int(program.stdout.readline())
        mortal.die("bound", 0)
        print(host.getsockname()[1], file=program.stdin, flush=True)
        said = program.stdout.readline().split()
        assert said == ["0" if accepted else str(errno.ECONNREFUSED), "True", "0"]
        assert not mortal.order.exists(), "neatd did not die"
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
        program.communicate("\n", timeout=60)


# As many as a replica has room for, and one more when it is told to.
LISTENERS = """
import errno, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def listener():
    a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen()
    return a
have = [listener() for _ in range(MOST)]
for _ in range(2):
    print("full", flush=True); sys.stdin.readline()
    try: listener(); print("listens", flush=True)
    except OSError as err: print(errno.errorcode[err.errno], flush=True)
""".replace("MOST", str(LIB.NEAT_LISTENERS_MAX))


def test_a_refusal_that_neatd_did_not_live_to_tell(mortal: Mortal) -> None:
    """The same as without its death: its successor does not wait for an answer that came."""
    with mortal.start(LISTENERS) as program:
        assert program.stdin and program.stdout

        def one_more() -> str:
            assert program.stdin and program.stdout
            assert program.stdout.readline() == "full\n"
            program.stdin.write("\n")
            program.stdin.flush()
            return program.stdout.readline()

        expected = one_more()
        mortal.die("hear", LIB.NEAT_MSG_R_LISTENING, 2)  # of both replicas
        assert one_more() == expected
        assert not mortal.order.exists(), "neatd did not die"


BECOMING = """
import os, socket
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen()
print("listens", flush=True)
os.execve("/bin/sleep", ["sleep", "1000"], {})
"""


def test_what_exec_closed_is_closed_although_neatd_dies_meanwhile(mortal: Mortal) -> None:
    mortal.die("told", "proc", 2)  # the first is when it attached
    with mortal.start(BECOMING) as program:
        assert program.stdout and program.stdout.readline() == "listens\n"
        try:
            wait_until(lambda: mortal.rig.status().get("apps") == [], "nothing is left of it")
        finally:
            program.kill()


# A child speaks over the connection of its parent. That ends (daemon(3)), or becomes another image.
WAYS = {
    "daemon": "os._exit(0)",
    "exec": """os.execv(sys.executable, [sys.executable, "-c", "import time; print('again', flush=True); time.sleep(1000)"])""",
}
CHILD = """
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(); a.set_inheritable(True)
if os.fork():
    WAY
print(a.getsockname()[1], os.getpid(), flush=True); sys.stdin.readline()
try:
    b = socket.socket(); b.bind(("127.0.0.1", 0)); b.listen()
    print("bound", flush=True)
except OSError as err:
    print(err, flush=True)
while True:
    s, _ = a.accept()
    if os.fork() == 0:
        s.sendall(s.recv(9)); os._exit(0)  # neatd sees its end, and closes
    s.close()
"""
CALL = """
import socket, sys
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20); c.settimeout(20)
c.sendall(b"x"); assert c.recv(9) == b"x"; assert c.recv(9) == b""
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_that_only_children_have_outlives_neatd(mortal: Mortal, way: str) -> None:
    def there() -> list[int]:
        return [pid for app in mortal.rig.status().get("apps", ()) for pid in app["pids"]]

    with mortal.start(CHILD.replace("WAY", WAYS[way])) as program:
        assert program.stdin and program.stdout
        lines = [program.stdout.readline() for _ in range(2 if way == "exec" else 1)]
        port, child = next(line for line in lines if line != "again\n").split()
        try:
            left = {int(child)} if way == "daemon" else {int(child), program.pid}
            wait_until(lambda: set(there()) == left, "neatd knows who is left")
            for _ in range(2):
                before = mortal.rig.pids()["neatd"]
                os.kill(before, signal.SIGKILL)
                wait_until(lambda b=before: mortal.rig.pids()["neatd"] != b, "its successor")
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "bound\n"
            mortal.rig.world.run(sys.executable, "-c", CALL, port)
        finally:
            os.kill(int(child), signal.SIGKILL)
            program.kill()
    wait_until(lambda: (s := mortal.rig.status()) and not s["apps"], "the application is gone")


RESTING = """
import socket, sys
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen()
def ports():
    found = set()
    for _ in range(400):
        c = socket.socket(); c.bind(("127.0.0.1", 0)); c.connect(a.getsockname()); found.add(c.getsockname()[1])
        d, _ = a.accept(); c.close(); d.close()
    return found
first = ports()
print("closed", flush=True); sys.stdin.readline()
print(len(first), len(first & ports()))
"""


def test_a_port_that_was_given_back_rests_although_neatd_died(mortal: Mortal) -> None:
    """Else six of 400 come again, and connect() from one is EADDRNOTAVAIL for what it has in TIME_WAIT."""
    with mortal.start(RESTING) as program:
        assert program.stdout and program.stdout.readline() == "closed\n"
        os.kill(mortal.rig.pids()["neatd"], signal.SIGKILL)
        assert program.communicate("\n", timeout=60) == ("400 0\n", "")
