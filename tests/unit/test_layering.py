"""The architecture as rules over #include lines, system calls, sizes and the table of calls."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
SYSTEM = re.compile(r"^#include <([^>]+)>", re.MULTILINE)

# Which rooms the files of a room may include from.
MAY_INCLUDE = {
    "replicas/abi": ["replicas/abi"],
    "replicas/stack": ["replicas/stack", "replicas/abi"],
    "replicas/components": ["replicas/components", "replicas/stack", "replicas/abi"],
    "replicas/nic": ["replicas/nic", "replicas/abi"],
    "replicas/keeper": ["replicas/keeper", "replicas/abi"],
    "shim/client": ["shim/client", "replicas/abi"],
    "shim": ["shim", "shim/client", "replicas/abi"],
}
# shim/ sees only the public face of client/.
CLIENT_PUBLIC = {"client.h"}
# Files of the stack that talk to the operating system.
PROCESS_FILES = {"main.c", "main_control.c", "main_queue.c", "main.h", "nicq.c"}
PROCESS_FILES |= {"process.c", "process.h"}
# Headers without system calls, clock or input.
PURE_HEADERS = {"stdbool.h", "stddef.h", "stdint.h", "string.h", "errno.h", "assert.h", "limits.h"}


def sources(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).glob("*.[ch]"))


@pytest.mark.parametrize("room", list(MAY_INCLUDE))
def test_includes_point_one_way(room: str) -> None:
    allowed = {p.name for r in MAY_INCLUDE[room] for p in sources(r)}
    for path in sources(room):
        for name in INCLUDE.findall(path.read_text()):
            assert name in allowed, f"{path.relative_to(ROOT)} includes {name}"
            if room == "shim" and (ROOT / "shim/client" / name).exists():
                assert name in CLIENT_PUBLIC, f"{path.name} reaches into client/ by {name}"


def test_the_stack_makes_no_system_calls() -> None:
    """Nor do the headers of others that it includes: copy.h, which looks at the clock, is none."""
    rooms = {p.name: p for room in MAY_INCLUDE["replicas/stack"] for p in sources(room)}
    library = [p for p in sources("replicas/stack") if p.name not in PROCESS_FILES]
    reached = {p.name for p in library}
    while more := {n for r in reached for n in INCLUDE.findall(rooms[r].read_text())} - reached:
        reached |= more
    for name in reached:
        for header in SYSTEM.findall(rooms[name].read_text()):
            assert header in PURE_HEADERS, f"{name} includes <{header}>"


def test_the_stack_has_no_mutable_statics(tmp_path: Path) -> None:
    """Data and bss of every object of the library part are empty: all state is an argument."""
    if not shutil.which("nm"):
        pytest.skip("nm is not installed (apt install binutils)")
    for path in sources("replicas/stack"):
        if path.suffix != ".c" or path.name in PROCESS_FILES:
            continue
        out = tmp_path / (path.stem + ".o")
        include = [f"-I{ROOT}/replicas/{r}" for r in ("abi", "stack")]
        subprocess.run(
            ["gcc", "-std=gnu11", "-fno-pie", *include, "-c", str(path), "-o", str(out)], check=True
        )
        names = subprocess.run(["nm", str(out)], check=True, capture_output=True, text=True).stdout
        mutable = [line for line in names.splitlines() if re.search(r" [bBdDC] ", line)]
        assert not mutable, f"{path.name}: {mutable}"


def calls() -> list[str]:
    return re.findall(r"^NEAT_SHIM\((\w+)\)", (ROOT / "shim/calls.h").read_text(), re.MULTILINE)


def test_the_table_names_what_the_library_exports() -> None:
    exported = re.findall(r"^\t\t(\w+);", (ROOT / "shim/libneatsock.map").read_text(), re.MULTILINE)
    assert sorted(exported) == sorted(calls())
    defined = set()
    for path in sources("shim"):
        defined |= set(re.findall(r"^SHIM [^;{]*?\b(\w+)\(", path.read_text(), re.MULTILINE))
    assert {n for n in defined if not n.startswith("neatsock_")} == set(calls())


# Of those in pthreads(7), the ones that a library for sockets might call.
CANCELLATION_POINTS = set(
    """accept accept4 close connect epoll_pwait epoll_wait nanosleep open openat poll ppoll pread
    preadv pselect pwrite pwritev read readv recv recvfrom recvmsg select send sendmsg sendto usleep
    waitpid write writev""".split()
)
# Waits that hold nothing, or have switched cancellation off.
MAY_BE_CANCELLED = {("epoll.c", "epoll_pwait"), ("sock.c", "connect"), ("wait.c", "ppoll")}


def test_calls_inside_are_no_cancellation_points() -> None:
    """A thread that is cancelled there would leave locks behind, and cleanup handlers inside."""
    comment = re.compile(r"/\*.*?\*/", re.DOTALL)
    call = re.compile(r"(?:\bnt_real\.|(?<![\w.>]))(\w+)\(")
    found = {
        (path.name, name)
        for path in sources("shim/client")
        for name in call.findall(comment.sub("", path.read_text()))
        if name in CANCELLATION_POINTS
    }
    assert found == MAY_BE_CANCELLED


def ours(pattern: str) -> list[Path]:
    """Files that we write, in all rooms."""
    rooms = (ROOT / room for room in ("shim", "replicas", "neatsock", "bench", "tests"))
    found = sorted(path for room in rooms for path in room.rglob(pattern))
    return [p for p in found if p.name != "_abi.py" and "_native" not in p.parts]


def c_functions(text: str) -> Iterator[tuple[int, int]]:
    """(line, lines) of each body: from a { to the next } that begin a line, both counted."""
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line == "{":
            start = number
        if line == "}":
            yield start, number - start + 1


def python_functions(text: str) -> Iterator[tuple[int, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, (node.end_lineno or 0) - node.lineno + 1


def test_files_and_functions_stay_small() -> None:
    """Files of at most 800 lines, functions of at most 60 (style of the house)."""
    files = {path: c_functions for path in ours("*.[ch]")}
    files |= {path: python_functions for path in ours("*.py")}
    assert len(files) > 200
    too_long = []
    for path, functions in files.items():
        text, name = path.read_text(), path.relative_to(ROOT)
        length = len(text.splitlines())
        if length > 800:
            too_long.append(f"{name}: {length} lines")
        too_long += [f"{name}:{at}: {lines} lines" for at, lines in functions(text) if lines > 60]
    assert not too_long
