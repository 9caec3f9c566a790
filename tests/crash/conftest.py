"""Fixture: tests/crash/crash, built once per run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.crash.build import build


@pytest.fixture(scope="session")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("objcopy"):
        pytest.skip("objcopy is not installed (apt install binutils)")
    return build(tmp_path_factory.mktemp("crash"))
