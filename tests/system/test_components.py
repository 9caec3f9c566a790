"""Replicas of several processes (--components multi): programs, and the death of each component.

ip, udp and filter keep nothing that a successor needs: their deaths cost at most retransmissions.
tcp's connections are adopted like those of a replica that is one process.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neatsock.abi import ffi
from neatsock.instance import ask

from ..robust.rig import Bystander, Rig, wait_until
from ..worlds import World
from . import programs
from .programs import Site, free_port, need, serving

NAMES = ("ip", "udp", "filter")


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("multi"), 1, "--components", "multi")
    yield made
    made.down()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("components") / "www", 1 << 24, seed=7)


def parts(rig: Rig) -> dict[str, tuple[int, int, str]]:
    """(pid, epoch, state) of each component, tcp included."""
    (replica,) = wait_until(rig.status, "neatd answers")["replicas"]
    out = {c["name"]: (c["pid"], c["epoch"], c["state"]) for c in replica["components"]}
    return out | {"tcp": (replica["pid"], replica["epoch"], replica["state"])}


def kill(rig: Rig, name: str) -> None:
    """kill -9; returns when the successor is ready."""
    pid, epoch, _ = parts(rig)[name]
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: parts(rig)[name][1] > epoch and parts(rig)[name][2] == "ready",
        f"{name} is there again",
    )


def cut_off(world: World) -> World:
    """The kernel's loopback is down: what works, works on the components."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"]).returncode:
        return world
    return World(world.name, ("unshare", "-n", *world.prefix), world.env)


def test_status_shows_the_components(multi: Rig) -> None:
    found = parts(multi)
    assert {name: state for name, (_, _, state) in found.items()} == dict.fromkeys(
        [*NAMES, "tcp"], "ready"
    )
    pids = [pid for pid, _, _ in found.values()]
    assert len(set(pids)) == 4
    text = multi.cli("status").stdout
    for name in NAMES:
        assert any(
            line.split()[:3] == [name, str(found[name][0]), "ready"] for line in text.splitlines()
        )


def test_each_component_is_a_program_of_its_own(multi: Rig) -> None:
    """Exec'ed separately: other files, other address layouts; one thread each."""
    bases = set()
    for name, (pid, _, _) in parts(multi).items():
        assert os.readlink(f"/proc/{pid}/exe").endswith(f"neat-{name}")
        assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
        bases.add(Path(f"/proc/{pid}/maps").read_text().split("-", 1)[0])
    assert len(bases) == 4


def test_a_queue_has_two_ends(multi: Rig) -> None:
    """No shared memory is mapped by three components, but the page that only ip writes."""
    holders: dict[str, list[str]] = {}
    for name, (pid, _, _) in parts(multi).items():
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[5].startswith("/memfd:") and "s" in fields[1]:
                inode = fields[4]
                if name not in holders.setdefault(inode, []) and "w" in fields[1]:
                    holders[inode].append(name)
    assert holders and max(map(len, holders.values())) <= 2


def test_files_are_served_whole(multi: Rig, site: Site, scratch: Path) -> None:
    world, port = cut_off(multi.world), free_port()
    curl = need("curl")
    with serving(world, programs.lighttpd(site, port), port, scratch / "log"):
        for name, want in (("small.txt", site.small), ("large.bin", site.large)):
            url = f"http://127.0.0.1:{port}/{name}"
            world.run(curl, "-sS", "--max-time", "60", "-o", str(scratch / name), url)
            got = (scratch / name).read_bytes()
            assert hashlib.sha256(got).digest() == hashlib.sha256(want).digest()


def test_redis(multi: Rig, scratch: Path) -> None:
    world, port = cut_off(multi.world), free_port()
    server, bench, cli = need("redis-server"), need("redis-benchmark"), need("redis-cli")
    command = [server, "--port", str(port), "--save", "", "--dir", str(scratch)]
    with serving(world, command, port, scratch / "log"):
        assert world.run(cli, "-p", str(port), "set", "key", "value").stdout.strip() == "OK"
        assert world.run(cli, "-p", str(port), "get", "key").stdout.strip() == "value"
        out = world.run(bench, "-p", str(port), "-n", "20000", "-t", "get,set", "-q").stdout
        assert "requests per second" in out


def test_filter_rules_are_in_force(multi: Rig, site: Site, scratch: Path) -> None:
    """In the filter component, after its death too."""
    world, port = multi.world, free_port()
    curl = need("curl")
    url = f"http://127.0.0.1:{port}/small.txt"
    with serving(world, programs.lighttpd(site, port), port, scratch / "log"):
        assert world.run(curl, "-sS", url).stdout == site.small.decode()
        ask(
            multi.path,
            {"cmd": "filter", "do": "add", "id": 5, "rule": f"reject in tcp to port {port}"},
        )
        try:
            for _ in range(2):
                assert world.run(curl, "-sS", url, check=False).returncode == 7  # refused
                kill(multi, "filter")
        finally:
            ask(multi.path, {"cmd": "filter", "do": "flush", "id": 6})
        assert world.run(curl, "-sS", url).stdout == site.small.decode()


@pytest.mark.parametrize("name", [*NAMES, "tcp"])
def test_a_component_dies_under_load(multi: Rig, name: str) -> None:
    """The bystander checks every byte it exchanges and counts broken connections."""
    load = Bystander(multi.world)
    for _ in range(5):
        load.lively(5)
        kill(multi, name)
    load.lively()
    load.close()
    assert load.broken == []


@pytest.fixture
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    options = ("--components", "multi", "--stopped", "0.3")
    made = Rig(tmp_path_factory.mktemp("impatient"), 1, *options)
    yield made
    made.down()


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_component_is_replaced(impatient: Rig, name: str) -> None:
    load = Bystander(impatient.world)
    pid, epoch, _ = parts(impatient)[name]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: parts(impatient)[name][1:] == (epoch + 1, "ready"), "it was replaced")
    load.lively()
    load.close()
    assert load.broken == []


def queue_pairs(rig: Rig) -> list[Path]:
    """Memory of the queues between components, as the keeper holds it."""
    keeper = Path(f"/proc/{rig.pids()['keeper']}/fd")
    found = {}
    for fd in keeper.iterdir():
        if os.readlink(fd).startswith("/memfd:neat-queue_pair"):
            found[fd.stat().st_ino] = fd
    return list(found.values())


def test_garbage_in_the_queues(multi: Rig) -> None:
    """What another component wrote is checked: none dies of it, and TCP repairs what it costs."""
    rng = random.Random(5)
    load = Bystander(multi.world)
    pairs = queue_pairs(multi)
    # Four of each replica that there is room for; those that do not run are nobody's yet.
    assert len(pairs) == 4 * multi.status()["placement"]["replicas_max"]
    before = parts(multi)
    pair, ring = "struct neat_queue_pair", "struct neat_frame_ring"
    for path in pairs:
        with path.open("r+b", buffering=0) as memory:
            for direction, epoch_of in (("rx", "announced_lower"), ("tx", "announced")):
                memory.seek(ffi.offsetof(pair, epoch_of))
                epoch = memory.read(4)
                memory.seek(ffi.offsetof(pair, direction) + ffi.offsetof(ring, "desc"))
                memory.write(b"".join(rng.randbytes(12) + epoch for _ in range(512)))
    load.lively()
    load.close()
    assert load.broken == []
    assert parts(multi) == before


def test_all_die_at_once(multi: Rig) -> None:
    load = Bystander(multi.world)
    before = parts(multi)
    for pid, _, _ in before.values():
        os.kill(pid, signal.SIGKILL)
    load.lively()
    load.close()
    assert load.broken == []
    wait_until(
        lambda: all(state == "ready" for _, _, state in parts(multi).values()), "all are back"
    )


def test_neatd_takes_over_running_components(multi: Rig) -> None:
    load = Bystander(multi.world)
    before = parts(multi)
    neatd = multi.pids()["neatd"]
    os.kill(neatd, signal.SIGKILL)
    wait_until(lambda: multi.status() and multi.pids()["neatd"] != neatd, "neatd is back")
    assert parts(multi) == before
    load.lively()
    load.close()
    assert load.broken == []
    kill(multi, "ip")


def test_another_layout_is_refused(multi: Rig) -> None:
    done = multi.cli("up", "--components", "single")
    assert done.returncode == 1
    assert "already up with --components multi" in done.stderr


DATAGRAMS = """
import errno, socket
a, b = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
a.bind(("127.0.0.1", 0)); a.settimeout(20); b.settimeout(20)
for size in (0, 1, 1472, 9000, 65507):
    for n in range(20):
        data = bytes([n]) * size
        b.sendto(data, a.getsockname())
        got, where = a.recvfrom(70000)
        assert got == data
        a.sendto(data[::-1], where)
        assert b.recv(70000) == data[::-1]
gone = a.getsockname(); a.close()
b.connect(gone); b.send(b"x")
try:
    b.recv(1)
except OSError as err:
    print(errno.errorcode[err.errno])
"""


def test_datagrams(multi: Rig) -> None:
    """tcp -> udp -> filter -> ip and back; port unreachable comes as an error of the socket."""
    before = {c["name"]: c["packets"] for c in multi.status()["replicas"][0]["components"]}
    out = multi.world.run(sys.executable, "-c", DATAGRAMS).stdout
    assert out == "ECONNREFUSED\n"
    after = {c["name"]: c["packets"] for c in multi.status()["replicas"][0]["components"]}
    assert all(after[name] >= before[name] + 200 for name in NAMES)


BURST = """
import socket
socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(8)]
for s in socks: s.bind(("127.0.0.1", 0)); s.settimeout(10)
sender = socket.socket(type=socket.SOCK_DGRAM)
for round in range(20):
    for i in range(100):
        for s in socks: sender.sendto(b"%d" % i, s.getsockname())
    for s in socks:
        assert [int(s.recv(100)) for _ in range(100)] == list(range(100))
print("all")
"""


def test_a_burst_of_datagrams_arrives(multi: Rig) -> None:
    """More than the queues between components hold, less than the receivers' buffers."""
    assert multi.world.run(sys.executable, "-c", BURST).stdout == "all\n"
