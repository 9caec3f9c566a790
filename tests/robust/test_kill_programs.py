"""Real programs while replicas, NIC, neatd and standby are killed at random: not one error."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.errors import SkipCase
from bench.killer import VICTIMS, Killer
from bench.peers import OURS, Namespace, namespace, on_instance
from bench.worlds import Neat, neat_up

from ..long import TIMES
from ..system.programs import Site, free_port, lighttpd, need, nginx, redis, serving
from ..worlds import World
from .killing import killing

SECONDS = 3 * TIMES
RATE = 20.0


@dataclass(frozen=True)
class Stage:
    """An instance with a kernel peer behind a TAP device."""

    neat: Neat
    net: Namespace

    @property
    def ours(self) -> World:
        return World("neatsock", (), on_instance(self.neat).env)

    @property
    def peer(self) -> World:
        return World("peer", tuple(self.net.prefix))

    @contextmanager
    def killing(self) -> Iterator[Killer]:
        """Everybody is killed at random as long as this lasts; at least once in all."""
        with killing(self.neat.control, VICTIMS, RATE) as killer:
            yield killer
        assert len(killer.done) > 1, killer.done


@pytest.fixture(scope="module", params=[1, 2], ids=["1-replica", "2-replicas"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    try:
        with namespace() as net:
            neat = neat_up(request.param, "--tap", net.name, "--address", f"{OURS}/24")
            try:
                net.plug()
                yield Stage(neat, net)
            finally:
                neat.down()
    except SkipCase as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    scratch = tmp_path_factory.mktemp("site")
    root = scratch / "www"
    root.mkdir()
    made = Site(root, b"twenty bytes of text", os.urandom(1 << 28))
    (root / "small.txt").write_bytes(made.small)
    (root / "large.bin").write_bytes(made.large)
    for path in (scratch, root):
        path.chmod(0o755)
    return made


@pytest.mark.parametrize("server", ["lighttpd", "nginx-2-workers"])
def test_wrk_sees_no_error(stage: Stage, site: Site, scratch: Path, server: str) -> None:
    port = free_port()
    command = lighttpd(site, port) if server == "lighttpd" else nginx(2)(site, port)
    load = ("-t", "1", "-c", "32", "-d", f"{SECONDS}s", f"http://127.0.0.1:{port}/small.txt")
    with serving(stage.ours, command, port, scratch / "log"), stage.killing() as killer:
        out = stage.ours.run(need("wrk"), *load, timeout=60 + 2 * SECONDS).stdout
    assert "Socket errors" not in out and "Non-2xx" not in out, f"{out}{killer.done}"
    assert int(out.split(" requests in")[0].split()[-1]) > 100, out


def test_redis_benchmark_sees_no_error(stage: Stage, site: Site, scratch: Path) -> None:
    port = free_port()
    load = ("-p", str(port), "-c", "50", "-n", str(60000 * TIMES), "-t", "set,get", "-q")
    with serving(stage.ours, redis(site, port), port, scratch / "log"), stage.killing() as killer:
        done = stage.ours.run(need("redis-benchmark"), *load, timeout=120 * TIMES)
    assert "rror" not in done.stdout + done.stderr, f"{done.stdout}{done.stderr}{killer.done}"


def test_a_download_by_the_kernels_curl_is_whole(stage: Stage, site: Site, scratch: Path) -> None:
    port, out = free_port(), scratch / "out"
    command = lighttpd(site, port)
    conf = Path(command[-1])
    conf.write_text(conf.read_text().replace('bind = "127.0.0.1"', 'bind = "0.0.0.0"'))
    rate = f"{len(site.large) // SECONDS}"
    fetch = ("-sS", "--max-time", str(60 + 4 * SECONDS), "--limit-rate", rate, "-o", str(out))
    with serving(stage.ours, command, port, scratch / "log"), stage.killing():
        url = f"http://{OURS}:{port}/large.bin"
        stage.peer.run(need("curl"), *fetch, url, timeout=120 + 4 * SECONDS)
    assert hashlib.sha256(out.read_bytes()).digest() == hashlib.sha256(site.large).digest()


# One wrong, lost or doubled byte ends a TLS connection with an alert.
TLS = """
import os, socket, ssl, sys, threading, time
until = time.monotonic() + float(sys.argv[3])
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); server.load_cert_chain(sys.argv[1], sys.argv[2])
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); client.load_verify_locations(sys.argv[1])
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(64)
def serve(raw):
    with server.wrap_socket(raw, server_side=True) as s:
        while data := s.recv(1 << 16):
            s.sendall(data)
def accept():
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
done = 0
def ask():
    global done
    while time.monotonic() < until:
        raw = socket.create_connection(listener.getsockname(), 20)
        with client.wrap_socket(raw, server_hostname="localhost") as s:
            for size in (1, 100, 20000, 300000):
                sent = os.urandom(size); got = b""
                for at in range(0, size, 16384):
                    s.sendall(sent[at:at + 16384])
                    while len(got) < min(size, at + 16384):
                        more = s.recv(1 << 16)
                        assert more, "end of file"
                        got += more
                assert got == sent
                done += 1
threads = [threading.Thread(target=ask) for _ in range(4)]
failed = []
threading.excepthook = lambda args: failed.append(repr(args.exc_value))
for t in threads: t.start()
for t in threads: t.join()
print(done, failed)
"""


def test_tls_sees_no_error(stage: Stage, scratch: Path) -> None:
    cert, key = scratch / "cert.pem", scratch / "key.pem"
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    make = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name)
    files = ("-keyout", str(key), "-out", str(cert))
    subprocess.run([need("openssl"), *make, *files], check=True, capture_output=True)
    with stage.killing() as killer:
        command = (sys.executable, "-c", TLS, str(cert), str(key), str(SECONDS))
        out = stage.ours.run(*command, timeout=120 + 2 * SECONDS).stdout
    done, failed = out.split(" ", 1)
    assert failed == "[]\n" and int(done) > 10, f"{out}{killer.done}"
