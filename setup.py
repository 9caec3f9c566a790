"""Builds the native half of neatsock next to the Python half. No compiler is needed at run time.

`pip install .` puts libneatsock.so, neat-replica, neat-nic and neat-keeper into neatsock/_native
and the layouts of the ABI header into neatsock/_abi.py. `python setup.py build_native` does the
same in the source tree. All of it is independent of the Python version: one wheel serves CPython
3.10-3.13.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
STRICT = (
    "-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla".split()
)
COMMON = ["-std=gnu11", "-O2", "-g", "-fno-plt", "-fstack-protector-strong", *STRICT]
HARDENED = ["-fPIE", "-pie", "-Wl,-z,now", "-Wl,-z,relro"]

# Every check that the compiler knows and needs no run-time library: a trap is a fault like another.
QUARANTINE = [
    "-DNEAT_QUARANTINE",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
    "-fstack-protector-all",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=3",
]

# What only a replica that is one process has: its components have queues in these places.
ONE_PROCESS = ("ip", "ip_frag", "ip_hop", "link", "lo", "main_queue", "nicq")


def component(own: str, *rooms: str) -> tuple[list[str], list[str], list[str]]:
    """One component of a replica: the same sources as in the whole one, joined by queues."""
    sources = [f"replicas/stack/{name}.c" for name in (*rooms, "csum", "ip_addr", "process")]
    sources += [f"replicas/components/{name}.c" for name in ("component", "frameq", own)]
    return sources, ["replicas/stack", "replicas/components"], HARDENED


def tcp_component(*flags: str) -> tuple[list[str], list[str], list[str]]:
    stack = sorted(p.stem for p in (ROOT / "replicas/stack").glob("*.c"))
    sources = [f"replicas/stack/{name}.c" for name in stack if name not in ONE_PROCESS]
    sources += [f"replicas/components/{name}.c" for name in ("frameq", "tcp_hop", "tcp_queue")]
    return sources, ["replicas/stack", "replicas/components"], [*HARDENED, *flags]


# Output, folders of sources or single sources, extra include folders, flags.
TARGETS = {
    "neat-replica": (["replicas/stack"], [], HARDENED),
    "neat-replica-quarantine": (["replicas/stack"], [], [*HARDENED, *QUARANTINE]),
    "neat-keeper": (["replicas/keeper"], [], HARDENED),
    "neat-nic": (["replicas/nic"], [], HARDENED),
    "neat-tcp": tcp_component(),
    "neat-tcp-quarantine": tcp_component(*QUARANTINE),
    "neat-ip": component("ip", "ip", "ip_deliver", "ip_frag", "icmp", "icmp_error", "link"),
    "neat-udp": component("udp"),
    "neat-filter": component("filter", "filter", "icmp_error"),
    # initfirst: see shim/shim_process.c. Bsymbolic: inside, a name means our own function.
    "libneatsock.so": (
        ["shim", "shim/client"],
        [],
        [
            "-fPIC",
            "-fvisibility=hidden",
            "-shared",
            "-Wl,--version-script=shim/libneatsock.map",
            "-Wl,-z,initfirst",
            "-Wl,-z,now",
            "-Wl,-z,relro",
            "-Wl,-Bsymbolic",
            "-Wl,-soname,libneatsock.so",
            "-ldl",
            "-lpthread",
        ],
    ),
}


def compile_target(name: str, out: Path, extra: list[str]) -> None:
    folders, includes, flags = TARGETS[name]
    sources = []
    for at in folders:
        found = (
            [at]
            if at.endswith(".c")
            else sorted(p.relative_to(ROOT) for p in (ROOT / at).glob("*.c"))
        )
        sources += map(str, found)
    if not sources:
        raise SystemExit(f"setup.py: no sources for {name} in {folders}: incomplete tree")
    paths = ["replicas/abi", *(f for f in folders if not f.endswith(".c")), *includes]
    compiler = os.environ.get("CC", "gcc").split()
    if shutil.which(compiler[0]) is None:
        raise SystemExit(
            f"setup.py: the C compiler '{compiler[0]}' is missing; "
            "on Debian: apt install gcc libc6-dev"
        )
    scratch = out / f".{name}.{os.getpid()}"
    command = [*compiler, *COMMON, *extra, *(f"-I{p}" for p in paths), *sources, *flags]
    subprocess.run([*command, "-o", str(scratch)], check=True, cwd=ROOT)
    scratch.replace(out / name)


def build_native(package: Path, extra: list[str] | None = None) -> None:
    """Compile everything into package/_native and write package/_abi.py."""
    native = package / "_native"
    native.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        for job in [pool.submit(compile_target, n, native, extra or []) for n in TARGETS]:
            job.result()
    writer = ROOT / "neatsock/_build_ffi.py"
    subprocess.run([sys.executable, str(writer), str(package / "_abi.py")], check=True, cwd=ROOT)


class BuildNative(Command):
    """Build into the source tree (make native)."""

    user_options = [("werror", None, "warnings are errors")]

    def initialize_options(self) -> None:
        self.werror = 0

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        build_native(ROOT / "neatsock", ["-Werror"] if self.werror else [])


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            build_native(ROOT / "neatsock")
        else:
            build_native(Path(self.build_lib) / "neatsock")


class Wheel(bdist_wheel):
    """Contains programs for one machine, but nothing of one Python version."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_native": BuildNative, "build_py": BuildPy, "bdist_wheel": Wheel})
