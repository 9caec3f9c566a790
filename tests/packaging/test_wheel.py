"""sdist and wheel: what a user installs works without the source tree and without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..worlds import ROOT

pytestmark = pytest.mark.timeout(300)
PROGRAM = (
    "import socket, threading\n"
    "a = socket.create_server(('127.0.0.1', 0))\n"
    "t = threading.Thread(target=lambda: a.accept()[0].sendall(b'installed'))\n"
    "t.start()\n"
    "c = socket.create_connection(a.getsockname())\n"
    "print(c.recv(9, socket.MSG_WAITALL)); t.join()\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as `python -m build` does."""
    out = tmp_path_factory.mktemp("dist")
    tree = tmp_path_factory.mktemp("source") / "tree"
    if not shutil.which("git"):
        pytest.skip("git is not installed: nothing says which files belong to the source")
    list_files = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    files = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the source")
    for name in filter(None, files.stdout.split("\0")):
        source = ROOT / name
        if source.is_symlink() or not source.exists():
            continue
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        target.chmod(source.stat().st_mode)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(out.glob("*.tar.gz"))
    return next(out.glob("*.whl"))


def test_one_wheel_for_every_python(wheel: Path) -> None:
    assert "-py3-none-linux_" in wheel.name
    names = {Path(n).name for n in zipfile.ZipFile(wheel).namelist()}
    assert {"libneatsock.so", "neat-replica", "neat-keeper", "neat-nic", "_abi.py"} <= names
    assert not any(n.endswith(".c") for n in names)


def test_installed_wheel_runs_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    env = {
        **os.environ,
        "PYTHONPATH": str(target),
        "NEATSOCK_DIR": str(tmp_path / "run"),
        "CC": "/nonexistent",
    }
    env.pop("NEATSOCK_NATIVE", None)
    run = [sys.executable, "-m", "neatsock", "run", "--", sys.executable, "-c", PROGRAM]
    done = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "b'installed'\n", done.stderr


def interpreter(version: str) -> str | None:
    """A CPython of this version that runs: on PATH, or one that pyenv has put beside this one."""
    beside = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, beside)):
        ask = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
        if found:
            ran = subprocess.run([found, "-c", ask], capture_output=True, text=True)
            if ran.stdout.strip() == version:
                return found
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_that_is_supported(wheel: Path, tmp_path: Path, version: str) -> None:
    """pip install, then a program by `neatsock run` and one by `python -m neatsock`."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no CPython {version} on this machine")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    bin_ = tmp_path / "venv" / "bin"
    pip = [bin_ / "pip", "install", "-q", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot get what neatsock needs: {done.stderr[-300:]}")
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {"PATH": f"{bin_}:{os.environ['PATH']}", "NEATSOCK_DIR": str(tmp_path / "run")}
    for command in (["neatsock", "run", "--", "python"], ["python", "-m", "neatsock"]):
        words = [str(bin_ / command[0]), *command[1:], "program.py"]
        ran = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert ran.stdout == "b'installed'\n", ran.stderr
