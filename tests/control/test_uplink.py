"""The NIC as part of an instance: who starts it, who holds what, who survives whom.

All on wires, which need no privilege; frames over a TAP device: tests/system/test_uplink.py.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..waiting import wait_until
from .client import LIB, Client, Instance
from .conftest import alive, open_files

OURS = 10 << 24 | 77 << 8 | 2


@pytest.fixture
def wire(tmp_path: Path) -> Path:
    return tmp_path / "wire"


@pytest.fixture
def pair(native: Path, tmp_path: Path) -> Iterator[list[Instance]]:
    """Three instances that are not up; enough for a wire and one too many."""
    made = [Instance(tmp_path / "run", n, NEATSOCK_NATIVE=str(native)) for n in "abc"]
    yield made
    for instance in made:
        instance.down()


def on_wire(wire: Path, host: int = 2) -> list[str]:
    return ["--wire", str(wire), "--address", f"10.0.77.{host}/24"]


def ready(instance: Instance, *other_than: int) -> dict[str, Any]:
    """Status when neatd, nic and all replicas run and none of them is `other_than`."""

    def found() -> dict[str, Any]:
        s = instance.quick_status()
        pids = [s[k]["pid"] for k in ("neatd", "nic")] if s else [None]
        pids += [r["pid"] for r in s["replicas"]] if s else []
        good = all(pids) and not set(pids) & set(other_than)
        return s if good and all(r["state"] == "ready" for r in s["replicas"]) else {}

    answer: dict[str, Any] = wait_until(found, f"all run again: {instance.log()}")
    return answer


def test_an_instance_on_a_wire(fresh: Instance, wire: Path) -> None:
    fresh.up("--replicas", "2", *on_wire(wire))
    status = ready(fresh)
    assert status["nic"]["address"] == "10.0.77.2/24"
    assert status["nic"]["uplink"] == f"wire {wire}"
    client = Client(fresh.path)
    assert client.registry.naddrs.v == 1
    assert (client.registry.addrs[0].addr, client.registry.addrs[0].prefix) == (OURS, 24)
    text = fresh.cli("status", "--name", "t").stdout
    assert f"10.0.77.2/24 on wire {wire}" in text
    fresh.down()
    assert not alive(status["nic"]["pid"])
    assert not wire.exists()


def test_bind_to_the_address_of_the_instance(fresh: Instance, wire: Path) -> None:
    """The kernel does not have the address; it is ours all the same (and no other is)."""
    fresh.up(*on_wire(wire))
    client = Client(fresh.path)
    port = client.bind(1, 0, OURS)
    assert port > 0
    assert client.bind(2, port, OURS) == -errno.EADDRINUSE
    assert client.bind(3, port, 127 << 24 | 1) == port
    assert client.bind(4, 0, OURS + 1) == -errno.EADDRNOTAVAIL


def test_a_killed_nic_is_started_again(fresh: Instance, wire: Path) -> None:
    fresh.up("--replicas", "2", *on_wire(wire))
    replicas = fresh.quick_status()["replicas"]
    for _ in range(3):
        nic = ready(fresh)["nic"]["pid"]
        os.kill(nic, signal.SIGKILL)
        ready(fresh, nic)
    assert [r["pid"] for r in ready(fresh)["replicas"]] == [r["pid"] for r in replicas]


def test_a_killed_neatd_keeps_the_nic_and_leaks_nothing(fresh: Instance, wire: Path) -> None:
    fresh.up("--replicas", "2", *on_wire(wire))
    first = ready(fresh)
    counts = []
    for _ in range(3):
        neatd = ready(fresh)["neatd"]["pid"]
        os.kill(neatd, signal.SIGKILL)
        status = ready(fresh, neatd)
        assert status["nic"] == first["nic"]
        assert [r["pid"] for r in status["replicas"]] == [r["pid"] for r in first["replicas"]]
        counts.append(open_files(status["neatd"]["pid"]))
    # The connection that asked for the status may be counted for a moment.
    last = status["neatd"]["pid"]
    wait_until(lambda: open_files(last) <= counts[0], f"no more descriptors than {counts[0]}", 10)
    memory = Path(f"/proc/{last}/maps").read_text()
    assert "memfd:neat-queue_pair" not in memory
    client = Client(fresh.path)
    assert client.registry.naddrs.v == 1 and client.bind(1, 0, OURS) > 0


def test_everybody_killed_at_once(fresh: Instance, wire: Path) -> None:
    fresh.up("--replicas", "2", *on_wire(wire))
    client = Client(fresh.path)
    port = client.listen(1).port
    status = ready(fresh)
    pids = [status[k]["pid"] for k in ("neatd", "nic")] + [r["pid"] for r in status["replicas"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    ready(fresh, *pids)
    assert client.port_entry(port) == (LIB.NEAT_PORT_LISTENING, 3)


def started_neatd(keeper: int) -> int:
    """Pid of the newest child of the keeper that runs Python; 0 when there is none."""
    try:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        names = [(int(pid), Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in children]
    except OSError:
        return 0
    return max((pid for pid, name in names if b"replicas.neatd" in name), default=0)


@pytest.mark.parametrize("step", range(12))
def test_neatd_killed_while_it_starts(fresh: Instance, native: Path, wire: Path, step: int) -> None:
    """Whatever the dead one got done, the next one finishes: at 12 points of its start."""
    fresh.directory.mkdir(exist_ok=True)
    files = {f"--{n}-bin": str(native / f"neat-{n}") for n in ("replica", "nic")}
    command = [str(native / "neat-keeper"), "--dir", str(fresh.directory), "--name", "t"]
    command += [part for item in files.items() for part in item]
    command += ["--python", sys.executable, "--replicas", "2", *on_wire(wire)]
    with fresh.path.with_suffix(".log").open("w") as log:
        keeper = subprocess.Popen(command, env=fresh.env, stdout=log, stderr=log)
    try:
        neatd = wait_until(lambda: started_neatd(keeper.pid), "neatd runs")
        # By what it has open: the registry, the wire, queue pairs, ... come one by one.
        fds = Path(f"/proc/{neatd}/fd")

        def far_enough() -> bool:
            return len(os.listdir(fds)) >= 6 + step or bool(fresh.quick_status())

        wait_until(far_enough, "neatd got that far")
        os.kill(neatd, signal.SIGKILL)
        status = ready(fresh, neatd)
        assert len(status["replicas"]) == 2
        client = Client(fresh.path)
        assert client.registry.naddrs.v == 1 and client.listen(1).status == 0
    finally:
        fresh.down()
        keeper.terminate()
        keeper.wait()


# ---- who has the wire ----


def test_a_wire_joins_two_instances_only(pair: list[Instance], wire: Path) -> None:
    a, b, c = pair
    a.up(*on_wire(wire, 1))
    b.up(*on_wire(wire, 2))

    def refused() -> str:
        done = c.cli("up", "--name", "c", *on_wire(wire, 3))
        return done.stderr if done.returncode == 1 else ""

    assert "joins two instances already" in refused()
    # Still so when neatd of either of them was replaced.
    for instance in (a, b):
        neatd = ready(instance)["neatd"]["pid"]
        os.kill(neatd, signal.SIGKILL)
        ready(instance, neatd)
        assert "joins two instances already" in refused()
    b.down()
    c.up(*on_wire(wire, 3))


def test_two_that_come_at_once(pair: list[Instance], wire: Path) -> None:
    starters = [
        subprocess.Popen(
            [sys.executable, "-m", "neatsock", "up", "--name", i.name, *on_wire(wire, n + 1)],
            env=i.env,
        )
        for n, i in enumerate(pair[:2])
    ]
    assert [s.wait(60) for s in starters] == [0, 0]
    done = pair[2].cli("up", "--name", "c", *on_wire(wire, 3))
    assert done.returncode == 1 and "joins two" in done.stderr


def test_a_wire_left_behind_is_no_obstacle(pair: list[Instance], wire: Path) -> None:
    a, b, _ = pair
    a.up(*on_wire(wire, 1))
    os.kill(ready(a)["keeper"]["pid"], signal.SIGKILL)
    wait_until(lambda: not a.quick_status(), "the instance is gone")
    assert wire.exists()
    b.up(*on_wire(wire, 2))
    a.up(*on_wire(wire, 1))


# ---- complaints ----


def test_up_again_with_another_network(fresh: Instance, wire: Path) -> None:
    fresh.up(*on_wire(wire))
    fresh.up(*on_wire(wire))
    fresh.up()
    done = fresh.cli("up", "--name", "t", *on_wire(wire, 3))
    assert done.returncode == 1 and "already up with --address 10.0.77.2/24" in done.stderr


@pytest.mark.parametrize(
    "args, code, complaint",
    [
        (["--tap", "x"], 2, "needs an address"),
        (["--address", "10.1.1.2/24"], 2, "need --tap IFNAME or --wire PATH"),
        (["--tap", "x", "--wire", "y", "--address", "10.1.1.2/24"], 2, "not allowed with"),
        (["--tap", "a-name-that-is-too-long", "--address", "10.1.1.2/24"], 2, "cannot be the name"),
        (["--tap", "x", "--address", "10.1.1.2"], 2, "names no network"),
        (["--tap", "x", "--address", "here"], 2, "'here' is no address of IPv4; write e.g. 10."),
        (["--gateway", "here"], 2, "'here' is no address of IPv4"),
        (["--tap", "x", "--address", "127.0.0.2/8"], 2, "no address of a host"),
        (["--tap", "x", "--address", "10.1.1.2/24", "--gateway", "10.2.2.2"], 2, "not in 10.1.1"),
        (["--tap", "x", "--address", "10.1.1.2/24", "--impair", "loss=1%"], 2, "tc-netem"),
        (["--wire", "/nowhere/w", "--address", "10.1.1.2/24"], 1, "cannot use the wire"),
        (["--wire", "w", "--address", "10.1.1.2/24", "--impair", "loss=1"], 2, "ends with none of"),
        (["--wire", "w", "--impair", "loss"], 2, "loss: '' ends with none of %"),
        (["--wire", "w", "--impair", "loss=much%"], 2, "loss=much%: 'much' is no number"),
        (["--wire", "w", "--impair", "loss=nan%"], 2, "loss=nan%: nan% is out of range"),
        (["--wire", "w", "--address", "10.1.1.2/24", "--impair", "loss=101%"], 2, "more than 100%"),
        (["--wire", "w", "--address", "10.1.1.2/24", "--impair", "colour=1"], 2, "is none of loss"),
    ],
)
def test_up_refuses_clearly(fresh: Instance, args: list[str], code: int, complaint: str) -> None:
    done = fresh.cli("up", "--name", "t", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr, done.stderr
    assert not list(fresh.directory.glob("*.sock"))
