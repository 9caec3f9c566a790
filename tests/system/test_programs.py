"""Unchanged servers and clients on 127.0.0.1, with no configuration.

On neatsock they run in a network namespace of their own whose loopback is down: there, no byte can
travel through the kernel's TCP, so whatever works, works on the replicas.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from ..worlds import KERNEL, Instance, World
from . import programs
from .programs import Site, free_port, need, serving


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("site") / "www", 1 << 26, seed=1)


def can_unshare() -> bool:
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


def cut_off(world: World) -> World:
    """The same world where the kernel's loopback is down."""
    if not can_unshare():
        return world
    return World(world.name, ("unshare", "-n", *world.prefix), world.env)


@pytest.fixture(scope="session", params=[1, 2, 4], ids=lambda n: f"{n}-replicas")
def replicas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    made = Instance(tmp_path_factory.mktemp("neat"), request.param)
    yield cut_off(made.world())
    made.down()


@pytest.fixture(params=["kernel", "neatsock"])
def world(request: pytest.FixtureRequest, neat: World) -> World:
    return KERNEL if request.param == "kernel" else cut_off(neat)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(world: World, url: str, out: Path) -> bytes:
    world.run(need("curl"), "-sS", "--max-time", "60", "-o", str(out), url)
    return out.read_bytes()


@pytest.mark.parametrize("server", list(programs.FILE_SERVERS))
def test_files_are_served_whole(server: str, replicas: World, site: Site, scratch: Path) -> None:
    port = free_port()
    command = programs.FILE_SERVERS[server](site, port)
    with serving(replicas, command, port, scratch / "log"):
        url = f"http://127.0.0.1:{port}"
        assert fetch(replicas, f"{url}/small.txt", scratch / "small") == site.small
        assert digest(fetch(replicas, f"{url}/large.bin", scratch / "large")) == digest(site.large)
        code = (
            "import sys,urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode(), end='')"
        )
        assert (
            replicas.run(sys.executable, "-c", code, f"{url}/small.txt").stdout
            == site.small.decode()
        )


@pytest.mark.parametrize("server", list(programs.APP_SERVERS))
def test_python_applications(server: str, replicas: World, site: Site, scratch: Path) -> None:
    port = free_port()
    make, body = programs.APP_SERVERS[server]
    with serving(replicas, make(site, port), port, scratch / "log"):
        for _ in range(5):
            assert fetch(replicas, f"http://127.0.0.1:{port}/", scratch / "out") == body


@pytest.mark.parametrize("server", ["lighttpd", "nginx-2-workers"])
def test_wrk(server: str, world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    wrk = need("wrk")
    with serving(world, programs.FILE_SERVERS[server](site, port), port, scratch / "log"):
        out = world.run(wrk, "-t2", "-c32", "-d1", f"http://127.0.0.1:{port}/small.txt").stdout
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    assert int(re.search(r"(\d+) requests in", out)[1]) > 100  # type: ignore[index]


def test_ab(world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    ab = need("ab")
    with serving(world, programs.lighttpd(site, port), port, scratch / "log"):
        for mode in ([], ["-k"]):
            url = f"http://127.0.0.1:{port}/small.txt"
            out = world.run(ab, "-q", *mode, "-n", "2000", "-c", "10", url).stdout
            assert re.search(r"Complete requests: +2000", out) and re.search(
                r"Failed requests: +0\n", out
            )


def test_httperf(world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    httperf = need("httperf")
    options = (
        f"--hog --server 127.0.0.1 --port {port} --uri /small.txt --num-conns 100 --num-calls 5"
    )
    with serving(world, programs.lighttpd(site, port), port, scratch / "log"):
        out = world.run(httperf, *options.split()).stdout
    assert "Total: connections 100 requests 500 replies 500" in out, out
    assert "Errors: total 0" in out, out


def test_redis(world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    command = programs.redis(site, port)
    with serving(world, command, port, scratch / "log"):
        ask = (need("redis-cli"), "-p", str(port))
        assert world.run(*ask, "set", "key", "value").stdout == "OK\n"
        assert world.run(*ask, "get", "key").stdout == "value\n"
        bench = (need("redis-benchmark"), "-p", str(port), "-c", "50", "-n", "5000", "--csv")
        out = world.run(*bench, "-t", "set,get,lpush,mset").stdout
        assert out.count("\n") >= 5, out


MEMCACHED = """
import socket, sys, threading
def client(n):
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
    f = s.makefile("rwb")
    for i in range(200):
        value = b"v" * (i * 13 + n)
        f.write(b"set k%d-%d 0 0 %d\\r\\n%s\\r\\n" % (n, i, len(value), value)); f.flush()
        assert f.readline() == b"STORED\\r\\n"
        f.write(b"get k%d-%d\\r\\n" % (n, i)); f.flush()
        assert f.readline().split()[3] == b"%d" % len(value)
        assert f.read(len(value) + 2) == value + b"\\r\\n" and f.readline() == b"END\\r\\n"
    done.append(n)
done = []
jobs = [threading.Thread(target=client, args=[n]) for n in range(8)]
[j.start() for j in jobs]; [j.join() for j in jobs]
print(len(done))
"""


def test_memcached(world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    with serving(world, programs.memcached(site, port), port, scratch / "log"):
        assert world.run(sys.executable, "-c", MEMCACHED, str(port)).stdout == "8\n"


def test_iperf3(world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    iperf3 = need("iperf3")
    server = [iperf3, "-s", "-B", "127.0.0.1", "-p", str(port)]
    log = (scratch / "log").open("w")
    process = world.start(*server, stdout=log, stderr=log)
    try:
        client = (iperf3, "-c", "127.0.0.1", "-p", str(port), "-n", "50M")
        wait_until(lambda: world.run(*client, check=False).returncode == 0, "a run of iperf3", 30)
        assert "iperf Done" in world.run(*client, "-R", "-P", "3").stdout
    finally:
        process.terminate()
        process.wait()


MEMCACHED_UDP = """
import os, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
s.connect(("127.0.0.1", int(sys.argv[1])))
number = 0
def ask(command):
    global number
    number += 1
    s.send(struct.pack("!HHHH", number, 0, 1, 0) + command)
    answer, count = {}, 1
    while len(answer) < count:
        part = s.recv(65536)
        who, index, count, _ = struct.unpack("!HHHH", part[:8])
        assert who == number
        answer[index] = part[8:]
    return b"".join(answer[i] for i in range(count))
value = os.urandom(1000)
assert ask(b"set key 0 0 1000\\r\\n" + value + b"\\r\\n") == b"STORED\\r\\n"
want = b"VALUE key 0 1000\\r\\n" + value + b"\\r\\nEND\\r\\n"
print(sum(ask(b"get key\\r\\n") == want for _ in range(500)))
"""


def test_memcached_over_udp(replicas: World, site: Site, scratch: Path) -> None:
    port = free_port()
    command = [*programs.memcached(site, port), "-U", str(port)]
    with serving(replicas, command, port, scratch / "log"):
        assert replicas.run(sys.executable, "-c", MEMCACHED_UDP, str(port)).stdout == "500\n"


def test_iperf3_over_udp(replicas: World, scratch: Path) -> None:
    port = free_port()
    iperf3 = need("iperf3")
    log = (scratch / "log").open("w")
    server = replicas.start(
        iperf3, "-s", "-B", "127.0.0.1", "-p", str(port), stdout=log, stderr=log
    )
    try:
        client = (iperf3, "-u", "-c", "127.0.0.1", "-p", str(port), "-b", "20M", "-n", "2M")
        wait_until(
            lambda: replicas.run(*client, check=False).returncode == 0, "a run of iperf3", 30
        )
        for way in ((), ("-R",)):
            out = replicas.run(*client, "-l", "1000", "-J", *way).stdout
            total = json.loads(out)["end"]["sum"]
            assert total["packets"] > 1000 and total["lost_percent"] < 50, total
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_echo(loop: str, world: World, site: Site, scratch: Path) -> None:
    port = free_port()
    code = (
        "import socket,sys,os\n"
        "ss=[socket.create_connection(('127.0.0.1',int(sys.argv[1])),10) for _ in range(20)]\n"
        "for s in ss: s.settimeout(None)\n"
        "for r in range(20):\n"
        "    for s in ss: s.sendall(b'%d' % r * (r * 40 + 1))\n"
        "    for s in ss: assert s.recv(len(b'%d' % r) * (r * 40 + 1), socket.MSG_WAITALL)\n"
        "big=os.urandom(3000000)\n"
        "import threading\n"
        "t=threading.Thread(target=ss[0].sendall,args=[big]); t.start()\n"
        "got=ss[0].recv(len(big), socket.MSG_WAITALL); t.join(); print(got==big)\n"
    )
    with serving(world, programs.echo(loop)(site, port), port, scratch / "log"):
        assert world.run(sys.executable, "-c", code, str(port)).stdout == "True\n"


def test_kernel_is_not_used(neat: World, site: Site, scratch: Path) -> None:
    """The kernel's own counters of the namespace: not one TCP segment, not one connection."""
    if not can_unshare():
        pytest.skip("network namespaces need root")
    port = free_port()
    script = scratch / "both.sh"
    command = " ".join(programs.lighttpd(site, port))
    run = " ".join(neat.prefix)
    probe = f'{run} {sys.executable} -c "$PROBE" {port}\n'
    # While the server is not listening yet, a connect() is the kernel's to refuse, and counted
    # unless its loopback is down (docs/decisions.md 14).
    script.write_text(
        f"{run} {command} >/dev/null 2>&1 &\nserver=$!\n{probe}ip link set lo up\n{probe}"
        f"{run} {need('curl')} -sS http://127.0.0.1:{port}/small.txt >&2\n"
        "kill $server; wait $server\ngrep ^Tcp: /proc/net/snmp\n"
    )
    env = {**os.environ, **neat.env, "PROBE": programs.PROBE}
    result = subprocess.run(
        ["unshare", "-n", "sh", str(script)], env=env, capture_output=True, text=True, timeout=60
    )
    assert site.small.decode() in result.stderr, result.stderr
    names, values = (line.split() for line in result.stdout.strip().splitlines())
    counters = dict(zip(names, values, strict=True))
    for name in ("ActiveOpens", "PassiveOpens", "InSegs", "OutSegs"):
        assert counters[name] == "0", result.stdout
