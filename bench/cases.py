"""What a case is, and the ones made of our own C programs and of Python servers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.build import LOADS, load_program
from bench.errors import CaseFailed, SkipCase
from bench.model import Reading
from bench.worlds import HOST


@dataclass(frozen=True)
class Timing:
    """How long one run of a load warms up and measures, in seconds."""

    warm: float
    run: float


@dataclass(frozen=True)
class Load:
    """A client command, the program that it becomes, and how to read what it prints."""

    argv: tuple[str, ...]
    read: Callable[[str], Reading]


@dataclass(frozen=True)
class Case:
    """One comparison. The callables get directory, ports, and (load) timing and expected ops/s."""

    name: str
    group: str
    title: str
    unit: str
    serve: Callable[[Path, list[int]], list[str]]
    load: Callable[[list[int], Timing, float], Load]
    op: str = "request"
    higher_is_better: bool = True
    ports: int = 1
    by_count: bool = False  # the client takes a number of operations, not a duration


def program(name: str, hint: str = "") -> str:
    """Path of an installed program; SkipCase if there is none."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if not found:
        raise SkipCase(f"{name} is not installed; {hint or f'try: apt-get install {name}'}")
    return found


def last_json(text: str) -> dict[str, float]:
    """The last line of a load program's output; CaseFailed if it is not JSON."""
    lines = text.strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        raise CaseFailed(f"the load printed no result: {text[-200:]!r}") from None


def read_rate(text: str) -> Reading:
    """Reading of a closed loop by its rate."""
    out = last_json(text)
    return Reading(out["rate"], out["rate"], out["p50_us"], out["p99_us"], out["p999_us"])


def read_p50(text: str) -> Reading:
    """Reading of a closed loop by its median latency."""
    out = last_json(text)
    return Reading(out["p50_us"], out["rate"], out["p50_us"], out["p99_us"], out["p999_us"])


def read_bulk(text: str) -> Reading:
    """Reading of a bulk transfer: value in GB/s, operations are MB."""
    rate = last_json(text)["rate"]
    return Reading(rate / 1e9, rate / 1e6)


def echo_server(_: Path, ports: list[int]) -> list[str]:
    """Our C echo server."""
    return [load_program("echo_server"), *map(str, ports)]


def echo_load(
    conns: int, read: Callable[[str], Reading] = read_rate, interval_us: int = 0
) -> Callable[[list[int], Timing, float], Load]:
    """Our C echo client."""

    def load(ports: list[int], timing: Timing, _: float) -> Load:
        return Load(
            (
                load_program("echo_client"),
                HOST,
                str(ports[0]),
                str(conns),
                str(timing.warm),
                str(timing.run),
                str(interval_us),
            ),
            read,
        )

    return load


def _echo(conns: int) -> Case:
    return Case(
        f"echo-{conns}",
        "echo",
        f"echo 64 B, {conns} connections",
        "req/s",
        echo_server,
        echo_load(conns),
    )


def _latency(name: str, title: str, interval_us: int) -> Case:
    return Case(
        f"latency-{name}",
        "latency",
        title,
        "us (p50)",
        echo_server,
        echo_load(1, read_p50, interval_us),
        higher_is_better=False,
    )


def _bulk(piece: int) -> Case:
    def serve(_: Path, ports: list[int]) -> list[str]:
        return [load_program("bulk"), "recv", str(ports[0]), str(piece)]

    def load(ports: list[int], timing: Timing, _: float) -> Load:
        return Load(
            (
                load_program("bulk"),
                "send",
                HOST,
                str(ports[0]),
                str(timing.warm),
                str(timing.run),
                str(piece),
            ),
            read_bulk,
        )

    return Case(
        f"bulk-{piece >> 10}k",
        "bulk",
        f"bulk, 1 connection, {piece >> 10} KiB writes",
        "GB/s",
        serve,
        load,
        op="MB",
    )


def _connect(conns: int) -> Case:
    # Eight ports: with one, the kernel's client runs out of local ports in TIME_WAIT and
    # reaches only half of its rate (measured: 13.8 k against 27.2 k connections/s).
    def load(ports: list[int], timing: Timing, _: float) -> Load:
        return Load(
            (
                load_program("connect"),
                HOST,
                str(conns),
                str(timing.warm),
                str(timing.run),
                *map(str, ports),
            ),
            read_rate,
        )

    return Case(
        f"connect-{conns}",
        "connect",
        f"connect, 64 B, close; {conns} at a time",
        "conn/s",
        echo_server,
        load,
        op="connection",
        ports=8,
    )


def _python(loop: str) -> Case:
    def serve(_: Path, ports: list[int]) -> list[str]:
        if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
            raise SkipCase(f"uvloop is missing: {sys.executable} -m pip install uvloop")
        return [sys.executable, str(LOADS / "py_echo.py"), loop, str(ports[0])]

    return Case(
        f"python-{loop}",
        "python",
        f"{loop} echo server, 50 connections",
        "req/s",
        serve,
        echo_load(50),
    )


CASES = (
    _echo(8),
    _echo(50),
    _echo(200),
    _latency("closed", "latency, 1 connection, closed loop", 0),
    _latency("1ms", "latency, 1 connection, a request every 1 ms", 1000),
    _bulk(65536),
    _bulk(4096),
    _connect(1),
    _connect(16),
    _python("uvloop"),
    _python("asyncio"),
)
