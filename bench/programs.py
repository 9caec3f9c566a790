"""Cases with real, unchanged programs: lighttpd, nginx, redis, memcached."""

from __future__ import annotations

import csv
import getpass
import math
import re
from collections.abc import Callable
from pathlib import Path

from bench.build import load_program
from bench.cases import Case, Load, Timing, program, read_rate
from bench.errors import CaseFailed
from bench.model import Reading
from bench.worlds import HOST

PAGE = b"twenty bytes of text"  # 20 bytes
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def _us(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if not match:
        raise CaseFailed(f"wrk printed a time that is not one: {text!r}")
    return float(match[1]) * UNITS[match[2]]


def read_wrk(text: str) -> Reading:
    """Reading of ``wrk --latency``; errors of any kind fail the case."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if not rate:
        raise CaseFailed(f"wrk printed no rate: {text[-200:]!r}")
    if wrong := re.search(r"(Socket errors:.*|Non-2xx.*)", text):
        raise CaseFailed(f"wrk saw errors: {wrong[1]}")
    percent = dict(re.findall(r"^\s+(50|99)%\s+(\S+)", text, re.MULTILINE))
    ops = float(rate[1])
    return Reading(
        ops,
        ops,
        _us(percent["50"]) if "50" in percent else None,
        _us(percent["99"]) if "99" in percent else None,
    )


def wrk_load(conns: int) -> Callable[[list[int], Timing, float], Load]:
    """wrk with keep-alive connections. It takes whole seconds only."""

    def load(ports: list[int], timing: Timing, _: float) -> Load:
        seconds = math.ceil(timing.warm + timing.run)
        return Load(
            (
                program("wrk"),
                "-t1",
                f"-c{conns}",
                f"-d{seconds}s",
                "--latency",
                f"http://{HOST}:{ports[0]}/page.txt",
            ),
            read_wrk,
        )

    return load


def _site(where: Path) -> Path:
    root = where / "site"
    root.mkdir(exist_ok=True)
    (root / "page.txt").write_bytes(PAGE)
    for path in (where, root):
        path.chmod(0o755)  # workers may run as another user
    return root


def lighttpd_server(where: Path, ports: list[int]) -> list[str]:
    config = where / "lighttpd.conf"
    config.write_text(f"""
server.document-root = "{_site(where)}"
server.bind = "{HOST}"
server.port = {ports[0]}
server.max-keep-alive-requests = 100000000
server.max-fds = 4096
mimetype.assign = ( ".txt" => "text/plain" )
""")
    return [program("lighttpd"), "-D", "-f", str(config)]


def nginx_server(workers: int) -> Callable[[Path, list[int]], list[str]]:
    def serve(where: Path, ports: list[int]) -> list[str]:
        temp = "\n".join(
            f"{kind}_temp_path {where}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = where / "nginx.conf"
        config.write_text(f"""
worker_processes {workers};
daemon off;
pid {where}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 100000000;
    default_type text/plain;
    {temp}
    server {{ listen {HOST}:{ports[0]}; root {_site(where)}; }}
}}
""")
        return [program("nginx"), "-p", str(where), "-e", "stderr", "-c", str(config)]

    return serve


def redis_server(where: Path, ports: list[int]) -> list[str]:
    return [
        program("redis-server"),
        "--port",
        str(ports[0]),
        "--bind",
        HOST,
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(where),
        "--daemonize",
        "no",
    ]


def read_redis(text: str) -> Reading:
    """Reading of ``redis-benchmark --csv``; latencies are in ms there."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if not rows:
        raise CaseFailed(f"redis-benchmark printed no result: {text[-200:]!r}")
    ops = float(rows[0]["rps"])
    return Reading(
        ops, ops, float(rows[0]["p50_latency_ms"]) * 1e3, float(rows[0]["p99_latency_ms"]) * 1e3
    )


def _redis(command: str) -> Case:
    def load(ports: list[int], timing: Timing, ops: float) -> Load:
        requests = max(1000, int(ops * (timing.warm + timing.run)))
        return Load(
            (
                program("redis-benchmark", "it comes with redis-tools"),
                "-h",
                HOST,
                "-p",
                str(ports[0]),
                "-c",
                "50",
                "-P",
                "1",
                "-n",
                str(requests),
                "-t",
                command,
                "--csv",
            ),
            read_redis,
        )

    return Case(
        f"redis-{command}",
        "redis",
        f"redis {command.upper()}, 50 connections, -P 1",
        "req/s",
        redis_server,
        load,
        by_count=True,
    )


def memcached_server(_: Path, ports: list[int]) -> list[str]:
    # Not "-u nobody": another user cannot reach the instance, and the kernel would serve it.
    return [
        program("memcached"),
        "-u",
        getpass.getuser(),
        "-l",
        HOST,
        "-p",
        str(ports[0]),
        "-U",
        "0",
        "-t",
        "1",
    ]


def _memget(ports: list[int], timing: Timing, _: float) -> Load:
    return Load(
        (load_program("memget"), HOST, str(ports[0]), "50", str(timing.warm), str(timing.run)),
        read_rate,
    )


CASES = (
    Case(
        "lighttpd",
        "lighttpd",
        "lighttpd, 20 B file, 64 keep-alive connections",
        "req/s",
        lighttpd_server,
        wrk_load(64),
    ),
    Case(
        "nginx-1",
        "nginx",
        "nginx, 1 worker, 20 B file, 64 connections",
        "req/s",
        nginx_server(1),
        wrk_load(64),
    ),
    Case(
        "nginx-2",
        "nginx",
        "nginx, 2 workers, 20 B file, 64 connections",
        "req/s",
        nginx_server(2),
        wrk_load(64),
    ),
    _redis("get"),
    _redis("set"),
    Case(
        "memcached",
        "memcached",
        "memcached get 64 B, 50 connections",
        "req/s",
        memcached_server,
        _memget,
    ),
)
