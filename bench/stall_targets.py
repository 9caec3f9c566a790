"""What ``python -m bench stalls`` asks: pairs of loads/pairs.py, and servers by loads/asks.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import programs
from bench.errors import SkipCase
from bench.worlds import ROOT

LOADS = Path(__file__).parent / "loads"
KEEP = ("keep", "keep-large", "fresh", "fresh-large", "crowd")
SEND = ("post", "post-large", "expect")
HTTP = (*KEEP, "polled", "storm")
APP = (*HTTP, *SEND)
LARGE = 100_000

ASK = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bench.loads.asks import main; main()"

WSGI = """
def app(environ, start_response):
    size = {"/small": 20, "/large": LARGE}.get(environ["PATH_INFO"])
    if size is None:
        body = str(len(environ["wsgi.input"].read())).encode()
    else:
        body = b"x" * size
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body[:1000], body[1000:]]
""".replace("LARGE", str(LARGE))

ASGI = """
async def app(scope, receive, send):
    size = {"/small": 20, "/large": LARGE}.get(scope["path"])
    body = b"x" * (size or 0)
    if size is None:
        got, more = 0, True
        while more:
            message = await receive()
            got += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = str(got).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body[:1000], "more_body": True})
    await send({"type": "http.response.body", "body": body[1000:]})
""".replace("LARGE", str(LARGE))

Serve = Callable[[Path, list[int]], list[str]]


@dataclass(frozen=True)
class Probe:
    """A client: argv for (host, port, seconds)."""

    name: str
    argv: Callable[[str, int, float], list[str]]


@dataclass(frozen=True)
class Target:
    """A server, and what it is asked."""

    name: str
    serve: Serve
    probes: tuple[Probe, ...]
    ports: int = 1


def pair_target(name: str) -> Target:
    """A pair of loads/pairs.py."""
    pairs = str(LOADS / "pairs.py")

    def serve(_: Path, ports: list[int]) -> list[str]:
        return [sys.executable, pairs, "serve", name, str(ports[0])]

    def argv(host: str, port: int, seconds: float) -> list[str]:
        return [sys.executable, pairs, "ask", name, host, str(port), str(seconds)]

    return Target(name, serve, (Probe("", argv),))


def ask_probe(name: str) -> Probe:
    """A closed loop of loads/asks.py."""

    def argv(host: str, port: int, seconds: float) -> list[str]:
        return [sys.executable, "-c", ASK, name, host, str(port), str(seconds)]

    return Probe(name, argv)


def need_modules(*names: str) -> None:
    """SkipCase unless Python has them."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise SkipCase(f"Python has no module {name}")


def site(serve: Serve) -> Serve:
    """With the two files that are asked for."""

    def with_files(where: Path, ports: list[int]) -> list[str]:
        argv = serve(where, ports)
        for name, size in (("small", 20), ("large", LARGE)):
            (where / "site" / name).write_bytes(b"x" * size)
        return argv

    return with_files


def gunicorn(*options: str) -> Serve:
    """Two workers of gunicorn."""

    def serve(where: Path, ports: list[int]) -> list[str]:
        need_modules("gunicorn")
        (where / "wsgi.py").write_text(WSGI)
        bind = ["--chdir", str(where), "--bind", f"127.0.0.1:{ports[0]}", "--workers", "2"]
        return [sys.executable, "-m", "gunicorn", *bind, *options, "wsgi:app"]

    return serve


def uvicorn(loop: str) -> Serve:
    """One process of uvicorn."""

    def serve(where: Path, ports: list[int]) -> list[str]:
        need_modules("uvicorn", loop)
        (where / "asgi.py").write_text(ASGI)
        bind = ["--app-dir", str(where), "--port", str(ports[0]), "--loop", loop]
        quiet = ["--lifespan", "off", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", *bind, *quiet, "asgi:app"]

    return serve


def memcached(where: Path, ports: list[int]) -> list[str]:
    """With UDP on the same port, and two threads."""
    argv = programs.memcached_server(where, ports)
    argv[argv.index("-U") + 1] = str(ports[0])
    argv[argv.index("-t") + 1] = "2"
    return argv


def all_targets() -> list[Target]:
    """Pairs first."""
    pairs = subprocess.run(
        [sys.executable, str(LOADS / "pairs.py"), "names"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    def probes(names: Iterable[str]) -> tuple[Probe, ...]:
        return tuple(ask_probe(name) for name in names)

    redis = ("redis-get", "redis-pipeline", "redis-publish", "redis-blpop")
    return [
        *map(pair_target, pairs),
        Target("lighttpd", site(programs.lighttpd_server), probes(HTTP)),
        Target("nginx", site(programs.nginx_server(2)), probes(HTTP)),
        Target("gunicorn-sync", gunicorn(), probes(("fresh", "fresh-large"))),  # no keep-alive
        Target("gunicorn-gthread", gunicorn("--threads", "4"), probes((*KEEP, *SEND))),
        Target("uvicorn-asyncio", uvicorn("asyncio"), probes(APP)),
        Target("uvicorn-uvloop", uvicorn("uvloop"), probes(APP)),
        Target("redis", programs.redis_server, probes(redis)),
        Target("memcached", memcached, probes(("memcached-get", "memcached-udp"))),
    ]
