"""The unchanged programs: how each server is configured, started and found ready."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..worlds import World


def free_port() -> int:
    """A port that was free a moment ago, in both worlds: neatd reserves ours in the kernel too."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def need(program: str) -> str:
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"{program} is not installed and could not be (see .ci/programs)")
    return found


def need_module(name: str) -> None:
    if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
        pytest.skip(f"the Python module {name} is not installed")


@dataclass(frozen=True)
class Site:
    """What the servers serve: a small file and a large one."""

    root: Path
    small: bytes
    large: bytes

    @classmethod
    def made(cls, root: Path, size: int, seed: int) -> Site:
        """Both files in a new folder that the servers' users may read; the large one's size."""
        root.mkdir()
        for path in (root, root.parent):
            path.chmod(0o755)
        site = cls(root, b"twenty bytes of text", random.Random(seed).randbytes(size))
        (root / "small.txt").write_bytes(site.small)
        (root / "large.bin").write_bytes(site.large)
        return site


ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = b"from asgi\\n"
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""
WSGI = """
def app(environ, start_response):
    body = b"from wsgi\\n"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
ECHO = """
import asyncio, sys
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.install()
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


def lighttpd(site: Site, port: int) -> list[str]:
    conf = site.root.parent / f"lighttpd-{port}.conf"
    conf.write_text(
        f'server.document-root = "{site.root}"\nserver.bind = "127.0.0.1"\n'
        f"server.port = {port}\nserver.max-keep-alive-requests = 1000000000\n"
        'mimetype.assign = ("" => "application/octet-stream")\n'
    )
    return [need("lighttpd"), "-D", "-f", str(conf)]


def nginx(workers: int) -> Callable[[Site, int], list[str]]:
    def command(site: Site, port: int) -> list[str]:
        work = Path(tempfile.mkdtemp(prefix="neat-nginx-", dir="/tmp"))
        work.chmod(0o755)
        paths = "".join(
            f"{kind}_temp_path {work}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = work / "nginx.conf"
        conf.write_text(
            f"user root; worker_processes {workers}; daemon off; pid {work}/pid;\n"
            f"error_log {work}/error.log;\nevents {{ worker_connections 1000; }}\n"
            f"http {{ access_log off; sendfile on; tcp_nopush on; {paths}\n"
            f"server {{ listen 127.0.0.1:{port}; root {site.root}; }} }}\n"
        )
        return [need("nginx"), "-e", f"{work}/error.log", "-c", str(conf)]

    return command


def http_server(site: Site, port: int) -> list[str]:
    return [sys.executable, "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", str(site.root)]


def gunicorn(site: Site, port: int) -> list[str]:
    need_module("gunicorn")
    (site.root / "wsgi.py").write_text(WSGI)
    where = ["--chdir", str(site.root), "--no-control-socket"]
    options = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-h"], capture_output=True, text=True
    )
    if "--no-control-socket" not in options.stdout:
        where.pop()
    return [
        sys.executable,
        "-m",
        "gunicorn",
        *where,
        "-w",
        "2",
        "-b",
        f"127.0.0.1:{port}",
        "wsgi:app",
    ]


def uvicorn(loop: str) -> Callable[[Site, int], list[str]]:
    def command(site: Site, port: int) -> list[str]:
        need_module("uvicorn")
        need_module(loop)
        (site.root / "asgi.py").write_text(ASGI)
        where = ["--app-dir", str(site.root), "--host", "127.0.0.1", "--port", str(port)]
        quiet = ["--lifespan", "off", "--log-level", "warning", "--loop", loop]
        return [sys.executable, "-m", "uvicorn", *where, *quiet, "asgi:app"]

    return command


def redis(site: Site, port: int) -> list[str]:
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(site.root.parent)]
    return [
        need("redis-server"),
        *where,
        "--save",
        "",
        "--daemonize",
        "no",
        "--loglevel",
        "warning",
    ]


def memcached(site: Site, port: int) -> list[str]:
    return [
        need("memcached"),
        "-u",
        "root",
        "-t",
        "4",
        "-U",
        "0",
        "-l",
        "127.0.0.1",
        "-p",
        str(port),
    ]


def echo(loop: str) -> Callable[[Site, int], list[str]]:
    def command(site: Site, port: int) -> list[str]:
        need_module(loop)
        return [sys.executable, "-c", ECHO, str(port), loop]

    return command


FILE_SERVERS: dict[str, Callable[[Site, int], list[str]]] = {
    "lighttpd": lighttpd,
    "nginx": nginx(1),
    "nginx-2-workers": nginx(2),
    "http.server": http_server,
}
APP_SERVERS: dict[str, tuple[Callable[[Site, int], list[str]], bytes]] = {
    "gunicorn": (gunicorn, b"from wsgi\n"),
    "uvicorn-uvloop": (uvicorn("uvloop"), b"from asgi\n"),
    "uvicorn-asyncio": (uvicorn("asyncio"), b"from asgi\n"),
}

PROBE = (
    "import socket,sys,time\n"
    "end = time.monotonic() + 20\n"
    "while True:\n"
    "    try:\n"
    "        socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close(); break\n"
    "    except OSError as err:\n"
    "        if time.monotonic() > end: raise\n"
    "        time.sleep(0.02)\n"
)


@contextmanager
def serving(
    world: World, command: list[str], port: int, log: Path
) -> Iterator[subprocess.Popen[str]]:
    """The server runs, and a client of the same world can connect to it."""
    with log.open("w") as out:
        process = world.start(*command, stdout=out, stderr=out)
        try:
            world.run(sys.executable, "-c", PROBE, str(port))
            yield process
            assert process.poll() is None, f"the server ended: {log.read_text()}"
        except AssertionError as err:
            raise AssertionError(f"{err}\nserver log: {log.read_text()[-2000:]}") from err
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
