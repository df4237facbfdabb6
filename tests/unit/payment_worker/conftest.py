"""Fixtures of the tests of ProviderCalls."""

from collections.abc import Callable
from typing import Any

import pytest

from orderstream.payment_worker import call_loop, call_report
from orderstream.payment_worker import calls as calls_module
from tests.unit.payment_worker.calling import Provider


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Return the log lines of the calls: event and fields."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def __getattr__(self, _level: str) -> Callable[..., None]:
            return lambda event, **fields: found.append((event, fields))

    for module in (call_report, calls_module, call_loop):
        monkeypatch.setattr(module, "log", Log())
    return found
