"""make demo: an unchanged web server and an unchanged client, on the kernel and on neatsock.

Everything is temporary: a private instance, a site in a temporary folder, ports that are free.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 3
FETCH = (
    "import sys,time,urllib.request as u\n"
    "end=time.monotonic()+10\n"
    "while True:\n"
    "    try: sys.stdout.write(u.urlopen(sys.argv[1]).read().decode()); break\n"
    "    except OSError:\n"
    "        if time.monotonic()>end: raise\n"
    "        time.sleep(0.05)\n"
)


def server(site: Path, port: int) -> list[str]:
    """lighttpd where it is installed, else Python's own web server."""
    found = shutil.which("lighttpd") or shutil.which("lighttpd", path="/usr/sbin")
    if not found:
        return [sys.executable, "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", str(site)]
    conf = site.parent / f"lighttpd-{port}.conf"
    conf.write_text(
        f'server.document-root = "{site}"\nserver.bind = "127.0.0.1"\nserver.port = {port}\n'
        "server.max-keep-alive-requests = 1000000000\n"
        'mimetype.assign = (".txt" => "text/plain")\n'
    )
    return [found, "-D", "-f", str(conf)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def show(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def measure(name: str, prefix: list[str], env: dict[str, str], work: Path) -> float:
    """Serve, fetch one page, then load for some seconds. Requests per second, 0 without wrk."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/index.txt"
    command = server(work / "www", port)
    # As a person types it: the demo runs the command of this source tree.
    typed = ["neatsock", "run", "--"] if prefix else []
    show(f"\n{name}: $ {' '.join([*typed, *command])}")
    with running([*prefix, *command], env, work / f"{name}.log"):
        get = [*prefix, sys.executable, "-c", FETCH, url]
        page = subprocess.run(get, env=env, check=True, capture_output=True, text=True).stdout
        show(f"  the client reads: {page.strip()!r}")
        wrk = shutil.which("wrk")
        if not wrk:
            show("  wrk is not installed: no load (see .ci/programs)")
            return 0.0
        load = [*prefix, wrk, "-t1", "-c64", f"-d{SECONDS}", url]
        out = subprocess.run(load, env=env, check=True, capture_output=True, text=True).stdout
        if prefix:
            status = [sys.executable, "-m", "neatsock", "status"]
            show(subprocess.run(status, env=env, capture_output=True, text=True).stdout.rstrip())
    rate = next(float(line.split()[1]) for line in out.splitlines() if "Requests/sec" in line)
    show(f"  wrk, 64 keep-alive connections: {rate:,.0f} requests/s")
    return rate


def main() -> int:
    work = Path(tempfile.mkdtemp(prefix="neat-demo-"))
    env = {**os.environ, "NEATSOCK_DIR": str(work / "run"), "PYTHONPATH": str(ROOT)}
    env.pop("NEATSOCK_SOCKET", None)
    neatsock = [sys.executable, "-m", "neatsock"]
    (work / "www").mkdir()
    (work / "www" / "index.txt").write_text("hello from a file\n")
    for path in (work, work / "www"):
        path.chmod(0o755)
    try:
        kernel = measure("kernel", [], env, work)
        subprocess.run([*neatsock, "up"], env=env, check=True)
        neat = measure("neatsock", [*neatsock, "run", "--"], env, work)
        status = subprocess.run(
            [*neatsock, "status", "--json"], env=env, check=True, capture_output=True
        )
        replicas = json.loads(status.stdout)["replicas"]
        accepted = sum(r["accepted"] for r in replicas)
        show(f"\n{accepted} connections went through {len(replicas)} replica(s).")
        if kernel and neat:
            show(f"neatsock / kernel: {neat / kernel:.1f} times the requests per second")
        return 0
    finally:
        subprocess.run([*neatsock, "down"], env=env, check=False, capture_output=True)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
