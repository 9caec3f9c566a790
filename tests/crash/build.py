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
# As setup.py compiles it.
SHIPPED = ("-O2", "-fno-plt", "-fstack-protector-strong")
# Programs of their own, each with all other sources of this folder.
MAINS = {"crash": {"crash.c", "image.c"}, "order": {"order.c"}}
# Copies must be calls, so that stores.c sees them; tsan then reports everything else.
SEEN = ("-O2", "-fsanitize=thread", "-Wno-tsan", "--param=tsan-instrument-func-entry-exit=0",
        "-fno-builtin", "-fno-tree-loop-distribute-patterns")  # fmt: skip


Job = tuple[Path, Path, tuple[str, ...]]


def run(*command: object) -> None:
    subprocess.run([str(c) for c in command], check=True)


def stack_files(without: set[str]) -> list[Path]:
    return sorted(p for p in STACK.glob("*.c") if p.name not in without)


def own() -> list[Path]:
    mains = set().union(*MAINS.values())
    return [p for p in sorted(HERE.glob("*.c")) if p.name not in mains]


def jobs(directory: Path) -> dict[str, list[Job]]:
    """Sources, objects and flags by what they are for."""
    plain = ("-O2",)
    groups = {
        "seen": (stack_files(NOT_STACK), SEEN),
        "host": ([*stack_files(NOT_HOST), ROOT / "tests/stack/harness.c"], plain),
        "own": (own(), plain),
        "crash": (sorted(HERE / name for name in MAINS["crash"]), plain),
        "nic": ([ROOT / f"replicas/nic/{n}.c" for n in ("gso", "frame")], plain),
    }
    return {
        name: [(p, directory / f"{name}_{p.stem}.o", flags) for p in sources]
        for name, (sources, flags) in groups.items()
    }


def compile_all(work: list[Job]) -> None:
    def compile_one(job: Job) -> None:
        source, out, flags = job
        run("gcc", *COMMON, *WARNINGS, *flags, "-c", source, "-o", out)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, work))


def link(out: Path, objects: list[Path]) -> Path:
    run("gcc", "-no-pie", *objects, "-o", out)
    return out


def build(directory: Path) -> Path:
    work = jobs(directory)
    compile_all([job for group in work.values() for job in group])
    objects = {name: [out for _, out, _ in group] for name, group in work.items()}
    for obj in objects["seen"]:
        names = (f"--redefine-sym={n}=crash_{n}" for n in ("memcpy", "memmove", "memset"))
        run("objcopy", *names, obj)
    remote = directory / "remote_host.o"
    run("ld", "-r", "-o", remote, *objects["host"])
    run("objcopy", "--wildcard", "--keep-global-symbol=host_*", remote)
    common = [*objects["seen"], *objects["own"], *objects["nic"], remote]
    return link(directory / "crash", [*common, *objects["crash"]])


def build_order(built: Path, directory: Path) -> tuple[Path, Path]:
    """order.c with the instrumented stack of build(), and with the stack as it is shipped."""
    main = directory / "order.o"
    shipped = [(p, directory / f"shipped_{p.stem}.o", SHIPPED) for p in stack_files(NOT_STACK)]
    compile_all([(HERE / "order.c", main, ("-O2",)), *shipped])
    others = [*built.glob("own_*.o"), *built.glob("nic_*.o"), built / "remote_host.o", main]
    return (
        link(directory / "order-seen", [*built.glob("seen_*.o"), *others]),
        link(directory / "order-shipped", [*(out for _, out, _ in shipped), *others]),
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(build(target))
