"""Fixtures of the tests that call a handler directly."""

from collections.abc import Iterator

import pytest

from tests.support.payments import close_all


@pytest.fixture(autouse=True)
def _close_payment_workers() -> Iterator[None]:
    """End the calls of the payment-workers that the test has built."""
    yield
    close_all()
