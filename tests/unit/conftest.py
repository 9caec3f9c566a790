"""Fixtures of test_api.py and test_accept.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .api_world import Replica, ffi, library


@pytest.fixture(scope="package")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return library(tmp_path_factory.mktemp("api"))


@pytest.fixture
def replica(lib: Any) -> Iterator[Replica]:
    world = lib.world_new()
    assert world != ffi.NULL
    yield Replica(lib, world)
    lib.world_free(world)
