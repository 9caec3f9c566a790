"""Instances and bystanders. Every test ends with a look at both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .rig import Bystander, Rig


def instance(
    tmp_path_factory: pytest.TempPathFactory, replicas: int, *options: str
) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("rig"), replicas, *options)
    yield made
    made.down()


@pytest.fixture(scope="package")
def rig1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from instance(tmp_path_factory, 1)


@pytest.fixture(scope="package")
def rig2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from instance(tmp_path_factory, 2)


@pytest.fixture
def stateless1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from instance(tmp_path_factory, 1, "--mode", "stateless")


@pytest.fixture
def stateless2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from instance(tmp_path_factory, 2, "--mode", "stateless")


@pytest.fixture(params=["single", "multi"])
def scaled(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Rig]:
    """One replica, of one process or of several, and room for four."""
    yield from instance(tmp_path_factory, 1, "--replicas-max", "4", "--components", request.param)


@pytest.fixture(params=[1, 2], ids=["1-replica", "2-replicas"])
def rig(request: pytest.FixtureRequest) -> Rig:
    found: Rig = request.getfixturevalue(f"rig{request.param}")
    return found


@pytest.fixture
def bystander(rig: Rig) -> Iterator[Bystander]:
    """It goes on without one broken connection, and neither neatd nor a replica restarts."""
    made = Bystander(rig.world, rig.evidence)
    before = rig.pids()
    yield made
    made.lively()
    made.close()
    assert made.broken == []
    assert rig.pids() == before, rig.log()[-3000:]
