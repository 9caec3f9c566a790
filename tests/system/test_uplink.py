"""An instance on a TAP device: plain kernel programs in another network namespace are its peers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..worlds import Instance, World
from . import programs
from .programs import Site, free_port, need, wait_until

OURS, PEER = "10.99.7.2", "10.99.7.1"


@dataclass(frozen=True)
class Net:
    """An instance with an uplink, and the namespace at the other end of it."""

    instance: Instance
    namespace: str

    @property
    def neat(self) -> World:
        return self.instance.world()

    @property
    def peer(self) -> World:
        return World("peer", ("ip", "netns", "exec", self.namespace))


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module", params=[1, 2], ids=lambda n: f"{n}-replicas")
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("a TAP device needs root and /dev/net/tun")
    need("ip")
    name = f"nt{secrets.token_hex(4)}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as err:
        pytest.skip(f"no network namespaces here: {err.stderr}")
    made = None
    try:
        directory = tmp_path_factory.mktemp("uplink")
        made = Instance(directory, request.param, "--tap", name, "--address", f"{OURS}/24")
        ip("link", "set", name, "netns", name)
        ip("-n", name, "addr", "add", f"{PEER}/24", "dev", name)
        ip("-n", name, "link", "set", name, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield Net(made, name)
    finally:
        if made:
            made.down()
        ip("netns", "del", name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("site") / "www"
    root.mkdir()
    made = Site(root, b"over the wire", random.Random(2).randbytes(1 << 25))
    (root / "small.txt").write_bytes(made.small)
    (root / "large.bin").write_bytes(made.large)
    return made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def status(net: Net) -> dict[str, object]:
    found: dict[str, object] = json.loads(net.instance.cli("status", "--json").stdout)
    return found


@pytest.fixture
def url(net: Net, site: Site, scratch: Path) -> Iterator[str]:
    """lighttpd on neatsock, bound to every address."""
    port = free_port()
    command = programs.lighttpd(site, port)
    conf = Path(command[-1])
    conf.write_text(conf.read_text().replace('bind = "127.0.0.1"', 'bind = "0.0.0.0"'))
    with programs.serving(net.neat, command, port, scratch / "log"):
        yield f"http://{OURS}:{port}"


def test_kernel_curl_reaches_an_unchanged_server(net: Net, url: str, site: Site, scratch: Path) -> None:
    out = scratch / "out"
    for _ in range(8):  # over several source ports: both replicas
        net.peer.run(need("curl"), "-sS", "--max-time", "20", "-o", str(out), f"{url}/small.txt")
        assert out.read_bytes() == site.small
    net.peer.run(need("curl"), "-sS", "--max-time", "60", "-o", str(out), f"{url}/large.bin")
    assert digest(out) == hashlib.sha256(site.large).hexdigest()


def test_unchanged_curl_reaches_a_kernel_server(net: Net, site: Site, scratch: Path) -> None:
    port = free_port()
    server = net.peer.start(
        sys.executable, "-m", "http.server", str(port), "-b", PEER, "-d", str(site.root),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out = scratch / "out"
        fetch = (need("curl"), "-sS", "--max-time", "60", "-o", str(out), f"http://{PEER}:{port}/large.bin")
        wait_until(lambda: net.neat.run(*fetch, check=False).returncode == 0, "a fetch", 40)
        assert digest(out) == hashlib.sha256(site.large).hexdigest()
    finally:
        server.terminate()
        server.wait()


def test_many_connections_reach_every_replica(net: Net, url: str, site: Site, scratch: Path) -> None:
    ab = need("ab")
    before = [r["accepted"] for r in status(net)["replicas"]]  # type: ignore[attr-defined]
    out = net.peer.run(ab, "-q", "-n", "500", "-c", "10", f"{url}/small.txt").stdout
    assert "Complete requests:      500" in out and "Failed requests:        0" in out, out
    after = [r["accepted"] for r in status(net)["replicas"]]  # type: ignore[attr-defined]
    assert all(b > a for a, b in zip(before, after, strict=True)), (before, after)


def test_the_nic_dies_and_the_transfer_goes_on(net: Net, url: str, site: Site, scratch: Path) -> None:
    out = scratch / "out"
    fetch = net.peer.start(
        need("curl"), "-sS", "--max-time", "60", "--limit-rate", "16M", "-o", str(out), f"{url}/large.bin"
    )
    for _ in range(3):
        nic = int(status(net)["nic"]["pid"])  # type: ignore[index]
        wait_until(lambda: out.exists() and out.stat().st_size > 0, "the first bytes")
        os.kill(nic, signal.SIGKILL)
        wait_until(lambda: status(net)["nic"]["pid"] not in (nic, None), "a new nic")  # type: ignore[index] # noqa: B023
    assert fetch.wait(60) == 0
    assert digest(out) == hashlib.sha256(site.large).hexdigest()


def test_a_replica_dies_and_the_server_is_reached_again(net: Net, url: str, site: Site, scratch: Path) -> None:
    victim = status(net)["replicas"][0]["pid"]  # type: ignore[index]
    os.kill(victim, signal.SIGKILL)
    end = time.monotonic() + 20
    good = 0
    while good < 6:
        assert time.monotonic() < end, net.instance.log()
        fetch = (need("curl"), "-sS", "--max-time", "5", f"{url}/small.txt")
        good += net.peer.run(*fetch, check=False).stdout == site.small.decode()
