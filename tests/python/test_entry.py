"""The ways into a Python process: python -m neatsock, neatsock.patch(), neatsock.socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..worlds import Instance

ECHO = """
import {module} as socket, threading
a = socket.create_server(("127.0.0.1", 0))
def serve():
    s, _ = a.accept()
    while data := s.recv(100):
        s.sendall(data.upper())
    s.close()
job = threading.Thread(target=serve); job.start()
c = socket.create_connection(a.getsockname())
c.sendall(b"hello"); print(c.recv(5, socket.MSG_WAITALL)); c.close(); job.join()
"""
# Written without neatsock's help: the kernel's view of who connected.
KERNEL_COUNT = """
def kernel_opens():
    names, values = (l.split() for l in open("/proc/net/snmp") if l.startswith("Tcp:"))
    return int(dict(zip(names, values))["ActiveOpens"])
"""


def python(instance: Instance, code: str, *args: str) -> str:
    """Run code in a namespace of its own, where nobody else opens connections."""
    script = 'ip link set lo up; exec "$@"'
    result = subprocess.run(
        ["unshare", "-n", "sh", "-c", script, "sh", sys.executable, *args, "-c", code],
        env={**os.environ, **instance.env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def namespaces() -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("network namespaces need root")


def test_patch_covers_what_was_imported_before(instance: Instance) -> None:
    code = (
        f"{KERNEL_COUNT}\nimport socket, ssl, select, asyncio\nimport neatsock\n"
        "print(neatsock.patch() > 10)\n"
        f"{ECHO.format(module='socket')}\nprint(kernel_opens(), neatsock.patch())"
    )
    assert python(instance, code) == "True\nb'HELLO'\n0 0\n"


def test_patch_covers_what_is_imported_later(instance: Instance) -> None:
    pytest.importorskip("uvloop")
    code = (
        f"{KERNEL_COUNT}\nimport neatsock\nneatsock.patch()\n"
        "import asyncio, uvloop\n"
        "async def serve(r, w):\n    w.write((await r.read(100)).upper()); w.close()\n"
        "async def main():\n"
        "    server = await asyncio.start_server(serve, '127.0.0.1', 0)\n"
        "    r, w = await asyncio.open_connection(*server.sockets[0].getsockname())\n"
        "    w.write(b'late'); print(await r.read(100))\n"
        "uvloop.install(); asyncio.run(main())\n"
        "print(kernel_opens())"
    )
    assert python(instance, code) == "b'LATE'\n0\n"


def test_explicit_module_leaves_the_default_alone(instance: Instance) -> None:
    code = (
        f"{KERNEL_COUNT}\n{ECHO.format(module='neatsock.socket')}\nprint(kernel_opens())\n"
        f"{ECHO.format(module='socket')}\nprint(kernel_opens())"
    )
    assert python(instance, code) == "b'HELLO'\n0\nb'HELLO'\n1\n"


def test_module_and_script(instance: Instance, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(f"import sys; print(sys.argv[1:])\n{ECHO.format(module='socket')}")
    for how in ([str(script)], ["-m", "app"]):
        result = subprocess.run(
            [sys.executable, "-m", "neatsock", *how, "one", "--two"],
            env={**os.environ, **instance.env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.stdout == "['one', '--two']\nb'HELLO'\n", result.stderr
        assert result.stderr == ""


def test_patch_leaves_protections_as_they_were(instance: Instance) -> None:
    """What the dynamic linker made read-only after relocation (RELRO) is read-only again."""
    code = (
        "import cffi, socket, ssl, neatsock\nfrom neatsock import _core\n"
        "def writable():\n"
        "    lines = [line.split() for line in open('/proc/self/maps')]\n"
        "    pages = set()\n"
        "    for span, mode, _, _, _, *name in lines:\n"
        "        if 'w' in mode and name and '.so' in name[0]:\n"
        "            first, last = (int(end, 16) for end in span.split('-'))\n"
        "            pages.update(range(first, last, 4096))\n"
        "    return pages\n"
        "_core.library()\nbefore = writable()\nprint(neatsock.patch() > 10)\n"
        "print(writable() == before, len(before) > 10)"
    )
    assert python(instance, code) == "True\nTrue True\n"
