"""Fixtures that several rooms of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .worlds import Instance, World


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance with one replica for the whole run; it must survive every test."""
    made = Instance(tmp_path_factory.mktemp("neat"))
    yield made
    made.down()


@pytest.fixture(scope="session")
def neat(instance: Instance) -> World:
    return instance.world()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path
