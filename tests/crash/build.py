"""Builds tests/crash/crash: the stack with every store seen, and a second, untouched stack as the
remote host."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
STACK = ROOT / "replicas/stack"
FOLDERS = ("replicas/abi", "replicas/stack", "replicas/nic", "tests/crash")
COMMON = ("-std=gnu11", "-g", "-fno-pie", *(f"-I{ROOT / d}" for d in FOLDERS))
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes",
            "-Wmissing-prototypes", "-Wvla", "-Werror")  # fmt: skip
# The process around the stack: machine.c does its part.
NOT_STACK = {"main.c", "main_control.c", "main_queue.c", "process.c"}
# The host's own socket layer (harness.c) takes the place of these.
NOT_HOST = NOT_STACK | {"api.c", "api_cmd.c", "api_adopt.c", "api_udp.c", "nicq.c"}
# Copies must be calls, so that stores.c sees them; tsan then reports everything else.
SEEN = ("-O2", "-fsanitize=thread", "-Wno-tsan", "--param=tsan-instrument-func-entry-exit=0",
        "-fno-builtin", "-fno-tree-loop-distribute-patterns")  # fmt: skip


def run(*command: object) -> None:
    subprocess.run([str(c) for c in command], check=True)


def stack_files(without: set[str]) -> list[Path]:
    return sorted(p for p in STACK.glob("*.c") if p.name not in without)


def jobs(directory: Path) -> dict[str, list[tuple[Path, Path, tuple[str, ...]]]]:
    """Sources, objects and flags by what they are for."""
    plain = ("-O2",)
    groups = {
        "seen": (stack_files(NOT_STACK), SEEN),
        "host": ([*stack_files(NOT_HOST), ROOT / "tests/stack/harness.c"], plain),
        "own": (sorted(HERE.glob("*.c")), plain),
        "nic": ([ROOT / f"replicas/nic/{n}.c" for n in ("gso", "frame")], plain),
    }
    return {
        name: [(p, directory / f"{name}_{p.stem}.o", flags) for p in sources]
        for name, (sources, flags) in groups.items()
    }


def build(directory: Path) -> Path:
    work = jobs(directory)
    everything = [job for group in work.values() for job in group]

    def compile_one(job: tuple[Path, Path, tuple[str, ...]]) -> None:
        source, out, flags = job
        run("gcc", *COMMON, *WARNINGS, *flags, "-c", source, "-o", out)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, everything))
    objects = {name: [out for _, out, _ in group] for name, group in work.items()}
    for obj in objects["seen"]:
        names = (f"--redefine-sym={n}=crash_{n}" for n in ("memcpy", "memmove", "memset"))
        run("objcopy", *names, obj)
    remote = directory / "remote_host.o"
    run("ld", "-r", "-o", remote, *objects["host"])
    run("objcopy", "--wildcard", "--keep-global-symbol=host_*", remote)
    out = directory / "crash"
    run("gcc", "-no-pie", *objects["seen"], *objects["own"], *objects["nic"], remote, "-o", out)
    return out


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(build(target))
