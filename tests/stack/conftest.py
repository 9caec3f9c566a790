"""Fixtures of the stack's tests: the harness is built once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.stack.host import Config, Host, build


@pytest.fixture(scope="session")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tmp_path_factory.mktemp("stack"))


@pytest.fixture
def make(lib: Any) -> Iterator[Callable[..., Host]]:
    """A host; keywords are those of `Config`."""
    hosts: list[Host] = []

    def new(**keywords: int) -> Host:
        hosts.append(Host(lib, Config(**keywords)))
        return hosts[-1]

    yield new
    for host in hosts:
        host.free()


@pytest.fixture
def host(make: Callable[..., Host]) -> Host:
    return make()


@pytest.fixture(scope="session")
def make_many(lib: Any) -> Callable[..., Host]:
    """As `make` for hypothesis, which runs a test many times: the test frees what it makes."""
    return lambda **keywords: Host(lib, Config(**keywords))
