"""Fixtures of the tests that call a handler directly."""

from collections.abc import Iterator

import pytest

from orderstream.postgres.connect import Connection
from tests.integration.decisions.payments import outbox_of
from tests.support.payments import close_all


@pytest.fixture(autouse=True)
def _close_payment_workers() -> Iterator[None]:
    """End the calls of the payment-workers that the test has built."""
    yield
    close_all()


@pytest.fixture
def quiet(connection: Connection) -> Iterator[Connection]:
    """Fails the test if the handler publishes without the outbox."""
    yield connection
    outbox_of(connection)
