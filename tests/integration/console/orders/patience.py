"""Gives Kafka more time in tests than operators have: a busy machine is no failure."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orderstream.console.orders import record_search

PATIENCE_SECONDS = 15.0


@contextmanager
def patience() -> Iterator[None]:
    """Raise the time limits of searches until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ANSWER_SECONDS", "SEARCH_SECONDS", "TURN_SECONDS"):
            patch.setattr(record_search, name, PATIENCE_SECONDS)
        yield
