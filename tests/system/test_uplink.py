"""An instance on a TAP device: plain kernel programs in another network namespace are its peers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from ..waiting import wait_until
from ..worlds import Instance, World, neatsock_env
from . import programs
from .programs import Site, free_port, need

OURS, PEER, FAR = "10.99.7.2", "10.99.7.1", "198.51.100.1"


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


@contextmanager
def uplinked(directory: Path, replicas: int, *more: str) -> Iterator[Net]:
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
        options = ("--tap", name, "--address", f"{OURS}/24", "--gateway", PEER, *more)
        made = Instance(directory, replicas, *options)
        ip("link", "set", name, "netns", name)
        ip("-n", name, "addr", "add", f"{PEER}/24", "dev", name)
        ip("-n", name, "link", "set", name, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{FAR}/32", "dev", "lo")
        yield Net(made, name)
    finally:
        if made:
            made.down()
        ip("netns", "del", name)


@pytest.fixture(
    scope="module",
    params=[(1, "single"), (2, "single"), (1, "multi")],
    ids=["1-replicas", "2-replicas", "components"],
)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    replicas, layout = request.param
    directory = tmp_path_factory.mktemp("uplink")
    with uplinked(directory, replicas, "--components", layout) as made:
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("site") / "www"
    root.mkdir()
    made = Site(root, b"over the wire", random.Random(2).randbytes(1 << 26))
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


@contextmanager
def lighttpd_at(net: Net, site: Site, scratch: Path, address: str) -> Iterator[int]:
    """Its port. Found ready by a client of the same world, at 127.0.0.1 or our address."""
    port = free_port()
    command = programs.lighttpd(site, port)
    conf = Path(command[-1])
    conf.write_text(conf.read_text().replace('bind = "127.0.0.1"', f'bind = "{address}"'))
    with (scratch / "log").open("w") as log:
        server = net.neat.start(*command, stdout=log, stderr=log)
    try:
        local = address if address != "0.0.0.0" else "127.0.0.1"
        fetch = (need("curl"), "-sS", "--max-time", "5", f"http://{local}:{port}/small.txt")
        wait_until(
            lambda: net.neat.run(*fetch, check=False).stdout == site.small.decode(), "a reply", 30
        )
        yield port
    finally:
        server.terminate()
        server.wait(20)


def peer_fetch(net: Net, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return net.peer.run(need("curl"), "-sS", "--max-time", "10", *options, url, check=False)


def test_a_server_bound_to_our_address(net: Net, site: Site, scratch: Path) -> None:
    """The kernel does not have that address, yet bind(), local and remote clients all work."""
    with lighttpd_at(net, site, scratch, OURS) as port:
        assert peer_fetch(net, f"http://{OURS}:{port}/small.txt").stdout == site.small.decode()


def test_a_server_bound_to_loopback_is_not_exposed(net: Net, site: Site, scratch: Path) -> None:
    with lighttpd_at(net, site, scratch, "127.0.0.1") as port:
        assert peer_fetch(net, f"http://{OURS}:{port}/small.txt").returncode == 7  # refused


def test_a_client_of_another_network_is_answered_by_the_gateway(
    net: Net, url: str, site: Site
) -> None:
    assert peer_fetch(net, f"{url}/small.txt", "--interface", FAR).stdout == site.small.decode()


PING = """
import os, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(10)
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
for size in (56, 1400):
    rest = struct.pack("!HH", os.getpid() & 0xffff, size) + os.urandom(size)
    s.sendto(struct.pack("!BBH", 8, 0, checksum(b"\\x08\\0\\0\\0" + rest)) + rest, (sys.argv[1], 0))
    while True:
        packet, who = s.recvfrom(2000)
        if who[0] == sys.argv[1] and packet[20:22] == b"\\0\\0" and packet[24:] == rest:
            break
"""


def test_ping(net: Net) -> None:
    net.peer.run(sys.executable, "-c", PING, OURS)


def test_nobody_there(net: Net) -> None:
    """A neighbour that does not answer ARP: an error at last, not a hang, and not the kernel."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(); s.settimeout(3)\n"
        "try: s.connect((sys.argv[1], 9))\n"
        "except OSError as err: print(type(err).__name__)\n"
    )
    out = net.neat.run(sys.executable, "-c", code, "10.99.7.77").stdout.strip()
    assert out in ("TimeoutError", "OSError"), out  # the kernel: EHOSTUNREACH after 3 s


def test_kernel_curl_reaches_an_unchanged_server(
    net: Net, url: str, site: Site, scratch: Path
) -> None:
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
        fetch = (
            need("curl"),
            "-sS",
            "--max-time",
            "60",
            "-o",
            str(out),
            f"http://{PEER}:{port}/large.bin",
        )
        wait_until(lambda: net.neat.run(*fetch, check=False).returncode == 0, "a fetch", 40)
        assert digest(out) == hashlib.sha256(site.large).hexdigest()
    finally:
        server.terminate()
        server.wait()


def test_many_connections_reach_every_replica(
    net: Net, url: str, site: Site, scratch: Path
) -> None:
    ab = need("ab")
    before = [r["accepted"] for r in status(net)["replicas"]]  # type: ignore[attr-defined]
    out = net.peer.run(ab, "-q", "-n", "500", "-c", "10", f"{url}/small.txt").stdout
    assert "Complete requests:      500" in out and "Failed requests:        0" in out, out
    after = [r["accepted"] for r in status(net)["replicas"]]  # type: ignore[attr-defined]
    assert all(b > a for a, b in zip(before, after, strict=True)), (before, after)


def goes_on_without(
    net: Net, url: str, site: Site, out: Path, victim: Callable[[], int | None]
) -> None:
    """A download by a kernel peer during which `victim`'s process is killed three times."""
    options = ("--max-time", "60", "--limit-rate", "4M", "-o", str(out))
    fetch = net.peer.start(need("curl"), "-sS", *options, f"{url}/large.bin")
    for _ in range(3):
        pid = victim()
        assert pid
        before = out.stat().st_size if out.exists() else 0

        def more(since: int = before) -> bool:
            assert fetch.poll() is None, "the transfer ended before the kill"
            return out.exists() and out.stat().st_size > since

        wait_until(more, "more bytes", 30)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda old=pid: victim() not in (old, None), "a successor")  # type: ignore[misc]
    assert fetch.wait(60) == 0
    assert digest(out) == hashlib.sha256(site.large).hexdigest()


def test_the_nic_dies_and_the_transfer_goes_on(
    net: Net, url: str, site: Site, scratch: Path
) -> None:
    goes_on_without(net, url, site, scratch / "out", lambda: status(net)["nic"]["pid"])  # type: ignore[index]


@pytest.mark.parametrize("name", ["ip", "filter"])
def test_a_component_dies_and_the_transfer_goes_on(
    net: Net, url: str, site: Site, scratch: Path, name: str
) -> None:
    def victim() -> int | None:
        (replica,) = status(net)["replicas"]  # type: ignore[misc,attr-defined]
        (part,) = [c for c in replica["components"] if c["name"] == name]
        return part["pid"] if part["state"] == "ready" else None

    if status(net)["components"] != "multi":
        pytest.skip("a replica that is one process has no components")
    goes_on_without(net, url, site, scratch / "out", victim)


def test_a_replica_dies_and_no_new_client_is_refused(net: Net, url: str, site: Site) -> None:
    """Frames wait until the successor has its listeners: whoever connects now is served."""
    for round_ in range(10):
        replicas = status(net)["replicas"]
        victim = replicas[round_ % len(replicas)]  # type: ignore[arg-type,index]
        os.kill(victim["pid"], signal.SIGKILL)
        for _ in range(3):
            done = peer_fetch(net, f"{url}/small.txt")
            assert done.stdout == site.small.decode(), (round_, done, net.instance.log())
        wait_until(lambda: all(r["pid"] for r in status(net)["replicas"]), "a successor")  # type: ignore[attr-defined]


def test_neatd_dies_and_nobody_notices(net: Net, url: str, site: Site, scratch: Path) -> None:
    out = scratch / "out"
    options = ("-sS", "--max-time", "60", "--limit-rate", "32M", "-o", str(out))
    fetch = net.peer.start(need("curl"), *options, f"{url}/large.bin")
    wait_until(lambda: out.exists() and out.stat().st_size > 0, "the first bytes")
    old = status(net)["neatd"]["pid"]  # type: ignore[index]
    os.kill(old, signal.SIGKILL)
    assert fetch.wait(60) == 0
    assert digest(out) == hashlib.sha256(site.large).hexdigest()
    # The next one knows our address: a new server can be bound to it.
    with lighttpd_at(net, site, scratch, OURS) as port:
        assert peer_fetch(net, f"http://{OURS}:{port}/small.txt").stdout == site.small.decode()


# ---- a TAP device without privilege ----


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """neatsock up without CAP_NET_ADMIN."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("dropping CAP_NET_ADMIN needs root and /dev/net/tun")
    drop = [need("setpriv"), "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    env = {**os.environ, **neatsock_env(tmp_path / "run")}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [*drop, sys.executable, "-m", "neatsock", *args]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    yield run
    run("down")


@pytest.mark.parametrize("flags", [(), ("multi_queue",), ("vnet_hdr",)])
def test_a_persistent_tap_of_ours(
    unprivileged: Callable[..., subprocess.CompletedProcess[str]], flags: tuple[str, ...]
) -> None:
    name = f"nt{secrets.token_hex(4)}"
    options = ("--tap", name, "--address", f"{OURS}/24")
    done = unprivileged("up", *options)
    assert done.returncode == 1
    assert f"ip tuntap add {name} mode tap" in done.stderr, done.stderr
    ip("tuntap", "add", name, "mode", "tap", "user", str(os.geteuid()), *flags)
    try:
        done = unprivileged("up", *options)
        assert done.returncode == 0, done.stderr
    finally:
        unprivileged("down")
        ip("link", "del", name)


def test_the_status_says_that_the_device_is_gone(tmp_path: Path) -> None:
    """To people and programs, and also when neatd was started again since."""
    with uplinked(tmp_path / "run", 1) as net:
        assert "error" not in status(net)["nic"]  # type: ignore[operator]
        ip("-n", net.namespace, "link", "del", net.namespace)
        wait_until(lambda: "error" in status(net)["nic"], "an error in the status")  # type: ignore[operator]
        first = status(net)
        assert "TAP device is gone" in first["nic"]["error"]  # type: ignore[index]
        os.kill(first["neatd"]["pid"], signal.SIGKILL)  # type: ignore[index]
        wait_until(lambda: status(net)["neatd"] != first["neatd"], "a new neatd")
        assert status(net)["nic"] == first["nic"]
        assert "nic: the TAP device is gone" in net.instance.cli("status").stdout


LOCAL = """
import socket
with socket.create_server(("127.0.0.1", 0)) as a, socket.create_connection(a.getsockname()) as c:
    s, _ = a.accept()
    c.sendall(b"local"); print(s.recv(9).decode())
"""


def test_a_nic_whose_device_is_gone_is_not_started_again_and_again(tmp_path: Path) -> None:
    with uplinked(tmp_path / "run", 1) as net:
        first: Any = status(net)
        ip("-n", net.namespace, "link", "del", net.namespace)
        os.kill(first["nic"]["pid"], signal.SIGKILL)

        def says() -> Any:
            nic: Any = status(net)["nic"]
            return nic if nic["pid"] not in (None, first["nic"]["pid"]) and "error" in nic else None

        nic = wait_until(says, "an error in the status, of the new one")
        for _ in range(3):
            assert net.neat.run(sys.executable, "-c", LOCAL).stdout == "local\n"
        assert status(net)["nic"] == nic
        assert net.instance.log().count("nic started") == 2


def test_a_tap_serves_one_instance(net: Net, tmp_path: Path) -> None:
    name = f"nt{secrets.token_hex(4)}"
    first = Instance(tmp_path / "1", 1, "--tap", name, "--address", "10.99.8.2/24")
    try:
        with pytest.raises(AssertionError, match="another program has it"):
            Instance(tmp_path / "2", 1, "--tap", name, "--address", "10.99.8.3/24")
    finally:
        first.down()


# ---- two instances on a wire ----


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "impair",
    [
        (),
        ("--impair", "seed=7,loss=1%,reorder=1%,duplicate=1%,delay=200us"),
        ("--impair", "seed=8,corrupt=0.5%,jitter=300us,rate=400mbit"),
    ],
    ids=["perfect", "loss and reordering", "corruption"],
)
def test_two_instances_on_a_wire(
    impair: tuple[str, ...], replicas: int, site: Site, tmp_path: Path
) -> None:
    wire = ("--wire", str(tmp_path / "wire"))
    made: list[Instance] = []
    try:
        for host in (1, 2):
            at = ("--address", f"10.88.0.{host}/24")
            made.append(Instance(tmp_path / f"{host}", replicas, *wire, *at, *impair))
        near, far = made
        port = free_port()
        command = [sys.executable, "-m", "http.server", str(port), "-d", str(site.root)]
        log = (tmp_path / "log").open("w")
        server = far.world().start(*command, stdout=log, stderr=log)
        try:
            url, out = f"http://10.88.0.2:{port}", tmp_path / "out"
            curl = (need("curl"), "-sS", "--max-time", "90", "-o", str(out))
            near_fetch = near.world().run
            wait_until(
                lambda: near_fetch(*curl, f"{url}/small.txt", check=False).returncode == 0,
                "a fetch",
                40,
            )
            near_fetch(*curl, f"{url}/large.bin", timeout=100)
            assert digest(out) == hashlib.sha256(site.large).hexdigest()
        finally:
            server.terminate()
            server.wait()
            log.close()
    finally:
        for instance in made:
            instance.down()


# ---- UDP ----

UDP_SERVER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
s.settimeout(60)
print(s.getsockname()[1], flush=True)
while True:
    data, peer = s.recvfrom(65536)
    if data == b"end": break
    s.sendto(data[::-1], peer)
"""

UDP_CLIENT = """
import os, socket, sys
server = (sys.argv[1], int(sys.argv[2]))
def asks(s, send, data):
    for _ in range(3):  # a datagram may be lost
        send(data)
        try:
            answer, peer = s.recvfrom(65536)
        except TimeoutError:
            continue
        assert (answer, peer) == (data[::-1], server), (len(answer), peer)
        return
    raise SystemExit(f"no answer to {len(data)} bytes")
for i in range(12):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        if i % 2: s.connect(server)
        send = s.send if i % 2 else lambda data: s.sendto(data, server)
        for size in (0, 1, 100, 1472):
            asks(s, send, os.urandom(size))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.sendto(b"end", server)
    s.connect((sys.argv[1], 9))
    s.send(b"x")
    try: s.recv(1)
    except ConnectionRefusedError: print("refused")
"""


@pytest.mark.parametrize("ours", ["server", "server bound to our address", "client"])
def test_datagrams(net: Net, ours: str) -> None:
    """Every socket's home gets its answers, whatever the hash says of its port."""
    bind = {"server": "0.0.0.0", "client": PEER}.get(ours, OURS)
    here, there = (net.peer, net.neat) if ours == "client" else (net.neat, net.peer)
    server = here.start(sys.executable, "-c", UDP_SERVER, bind, stdout=subprocess.PIPE)
    assert server.stdout
    try:
        port = server.stdout.readline().strip()
        address = PEER if ours == "client" else OURS
        assert there.run(sys.executable, "-c", UDP_CLIENT, address, port).stdout == "refused\n"
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()


FRAGMENTS_SERVER = """
import hashlib, select, socket, sys
socks = []
for _ in range(6):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((sys.argv[1], 0))
    socks.append(s)
print(*(s.getsockname()[1] for s in socks), flush=True)
while True:
    for s in select.select(socks, [], [], 30)[0]:
        data, peer = s.recvfrom(65536)
        s.sendto(hashlib.sha256(data).hexdigest().encode(), peer)
"""
FRAGMENTS_CLIENT = """
import hashlib, os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
for port in sys.argv[2:]:
    for size in (1473, 9000, 65507):
        data = os.urandom(size)
        s.sendto(data, (sys.argv[1], int(port)))
        assert s.recv(100) == hashlib.sha256(data).hexdigest().encode(), (port, size)
print("whole")
"""


@contextmanager
def hashing(server: World, address: str) -> Iterator[list[str]]:
    """Ports at which it says what came."""
    serving = server.start(sys.executable, "-c", FRAGMENTS_SERVER, address, stdout=subprocess.PIPE)
    assert serving.stdout
    try:
        yield serving.stdout.readline().split()
    finally:
        serving.kill()
        serving.wait()


def send_fragments(server: World, address: str, client: World) -> None:
    with hashing(server, address) as ports:
        said = client.run(sys.executable, "-c", FRAGMENTS_CLIENT, address, *ports).stdout
        assert said == "whole\n"


def test_fragments_of_a_kernel_peer_reach_the_home_of_their_port(net: Net) -> None:
    """Only the first fragment has ports: the nic puts datagrams together before it steers."""
    send_fragments(net.neat, OURS, net.peer)


def test_fragments_of_ours_reach_a_kernel_peer(net: Net) -> None:
    """The first datagram to a neighbour that is not known yet, too; IP_MTU_DISCOVER as ip(7)."""
    send_fragments(net.peer, PEER, net.neat)


BURST = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20); s.sendto(b"x", (sys.argv[1], int(sys.argv[2]))); s.recv(100)  # neighbours now
s.settimeout(None); print("burst", flush=True)
for i in range(300):
    assert s.sendto(bytes(60000), (sys.argv[1], 9)) == 60000
"""


def reassembled(world: World) -> tuple[int, int]:
    """ipReasmReqds, ipReasmOKs (RFC 2011): fragments that came, packets that they became."""
    text = world.run("cat", "/proc/net/snmp").stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Ip:"))
    found = dict(zip(names, values, strict=True))
    return int(found["ReasmReqds"]), int(found["ReasmOKs"])


def test_no_fragment_of_a_burst_is_sent_twice(net: Net) -> None:
    """The nic's ring is full again and again: the others follow when there is room."""
    before = reassembled(net.peer)
    with hashing(net.peer, PEER) as ports:
        net.neat.run(sys.executable, "-c", BURST, PEER, ports[0])
    wait_until(lambda: reassembled(net.peer)[1] - before[1] == 300, "all are whole")
    assert reassembled(net.peer)[0] - before[0] == 300 * 41  # of 1480 bytes, RFC 791


def test_a_datagram_larger_than_the_wire(net: Net) -> None:
    """IP_PMTUDISC_DO (2), PROBE (3), INTERFACE (4): nothing is cut, EMSGSIZE."""
    code = (
        "import socket, sys\n"
        "for how in range(6):\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.setsockopt(socket.IPPROTO_IP, 10, how)\n"
        "    assert s.sendto(bytes(1472), (sys.argv[1], 9)) == 1472\n"
        "    try: print(s.sendto(bytes(1473), (sys.argv[1], 9)))\n"
        "    except OSError as err: print(-err.errno)\n"
    )
    ours = net.neat.run(sys.executable, "-c", code, PEER).stdout.split()
    assert ours == net.peer.run(sys.executable, "-c", code, OURS).stdout.split()
    assert ours == [str(n) for n in (1473, 1473, *[-errno.EMSGSIZE] * 3, 1473)]


# Connects from eight ports; again from the same ones once those connections were reset.
AGAIN = """
import socket, sys
def connections(ports):
    made = []
    for port in ports:
        s = socket.socket(); s.settimeout(20)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("0.0.0.0", port))
        s.connect((sys.argv[1], int(sys.argv[2])))
        made.append(s)
    return made
first = connections([0] * 8)
ports = [s.getsockname()[1] for s in first]
print("first", flush=True)
sys.stdin.readline()
for s in first:
    try: s.recv(1)
    except ConnectionResetError: s.close()
again = connections(ports)
print("again")
"""
ACCEPTS = """
import socket
listener, kept = socket.create_server(("0.0.0.0", 0)), []
print(listener.getsockname()[1], flush=True)
while True: kept.append(listener.accept())
"""


def test_bound_ports_are_free_after_a_stateless_start(tmp_path: Path) -> None:
    """Their replica has lost the connections, and half of the tuples are another one's by then."""
    options = ("--mode", "stateless", "--replicas-max", "2")
    with uplinked(tmp_path / "run", 1, *options) as net:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        server = net.peer.start(sys.executable, "-c", ACCEPTS, stdout=subprocess.PIPE)
        port = str(heard(server)[0])
        client = net.neat.start(sys.executable, "-c", AGAIN, PEER, port, **pipes)

        def replicas() -> list[Any]:
            return cast(list[Any], status(net)["replicas"])

        try:
            assert client.stdout and client.stdout.readline() == "first\n"
            os.kill(replicas()[0]["pid"], signal.SIGKILL)
            net.instance.cli("scale", "2")
            wait_until(lambda: [r["state"] for r in replicas()] == ["ready"] * 2, "two replicas")
            assert replicas()[0]["epoch"] == 2
            say(client)
            assert client.stdout.readline() == "again\n"
        finally:
            for program in (client, server):
                program.kill()
                program.wait()


# Echoes on six sockets of its own, and asks six of the other world with one datagram at a time;
# every answer is checked. Says how far each of its sockets is for each line on stdin.
UDP_BOTH = """
import os, select, socket, sys, threading
N = 6
def bound():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0)); return s
servers, counts = [bound() for _ in range(N)], [0] * N
def echo():
    while True:
        for s in select.select(servers, [], [])[0]:
            data, peer = s.recvfrom(2000)
            s.sendto(data, peer)
threading.Thread(target=echo, daemon=True).start()
print(*(s.getsockname()[1] for s in servers), flush=True)
def asks(me, address):
    s = bound(); s.settimeout(20)
    if me % 2: s.connect(address)
    try:
        while True:
            data = b"%d %d" % (me, counts[me])
            s.send(data) if me % 2 else s.sendto(data, address)
            got, peer = s.recvfrom(2000)
            if (got, peer) != (data, address): raise ValueError((data, got, peer))
            counts[me] += 1
    except Exception as err:
        os.write(1, b"FAILED %r\\n" % ((me, counts[me], err),)); os._exit(1)
for me, port in enumerate(map(int, sys.stdin.readline().split())):
    threading.Thread(target=asks, args=[me, (sys.argv[2], port)], daemon=True).start()
while sys.stdin.readline(): print(*counts, flush=True)
"""


def say(program: subprocess.Popen[str], line: str = "") -> None:
    assert program.stdin
    program.stdin.write(line + "\n")
    program.stdin.flush()


def heard(program: subprocess.Popen[str]) -> list[int]:
    assert program.stdout
    line = program.stdout.readline()
    assert line and not line.startswith("FAILED"), line
    return [int(word) for word in line.split()]


def test_datagrams_of_a_kernel_peer_while_homes_move(tmp_path: Path) -> None:
    """Before, while and after a replica drains, both ways: each arrives, and the replica ends."""
    with uplinked(tmp_path / "run", 2, "--replicas-max", "2") as net:
        options: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        both = [
            net.neat.start(sys.executable, "-c", UDP_BOTH, OURS, PEER, **options),
            net.peer.start(sys.executable, "-c", UDP_BOTH, PEER, OURS, **options),
        ]

        def counts() -> list[int]:
            for program in both:
                say(program)
            return [count for program in both for count in heard(program)]

        def replicas() -> int:
            return len(cast(list[Any], status(net)["replicas"]))

        def move_on() -> None:
            """Every socket of both."""
            before = counts()
            wait_until(
                lambda: all(n > b + 20 for n, b in zip(counts(), before, strict=True)), "answers"
            )

        try:
            ports = [" ".join(map(str, heard(program))) for program in both]
            say(both[0], ports[1])
            say(both[1], ports[0])
            move_on()
            for _ in range(3):
                net.instance.cli("scale", "1")
                while replicas() > 1:
                    move_on()
                move_on()
                net.instance.cli("scale", "2")
                move_on()
        finally:
            for program in both:
                program.kill()
                program.wait()
