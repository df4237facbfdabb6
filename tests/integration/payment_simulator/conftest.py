"""A payment simulator as a process. The tests of a module share it, and each test begins without faults."""

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.support.simulators import Simulator, simulator


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """The simulator of this module."""
    with simulator(tmp_path_factory.mktemp("simulator")) as running:
        yield running


@pytest.fixture
def running(shared: Simulator) -> Iterator[Simulator]:
    """The simulator, whose faults end with the test."""
    harmless = httpx.get(f"{shared.url}/simulator/faults").json()
    yield shared
    shared.change_faults(**harmless)


@pytest.fixture
def http(running: Simulator) -> Iterator[httpx.Client]:
    """A client of the simulator."""
    with httpx.Client(base_url=running.url, timeout=10) as client:
        yield client


@pytest.fixture
def key() -> str:
    """A key that no other test has."""
    return str(uuid4())
