"""Fixtures that several rooms of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .long import TIMES
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


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """What runs N times as long may take N times as long."""
    if TIMES > 1:
        for item in items:
            mark = item.get_closest_marker("timeout")
            usual = mark.args[0] if mark else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(usual * TIMES), append=False)
