"""The fixture of the tests for dead letters."""

from collections.abc import Iterator

import pytest

from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.support.letters import Letters, own_letters


@pytest.fixture
def letters(settings: Settings, connection: Connection) -> Iterator[Letters]:
    """Topics of this test only."""
    with own_letters(settings, connection) as own:
        yield own
