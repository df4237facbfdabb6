"""The fixture of the tests for orders on the console."""

import pytest

from orderstream.console.orders import listing


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a search take as long as it needs on a busy machine."""
    monkeypatch.setattr(listing, "SEARCH_SECONDS", 60.0)
    monkeypatch.setattr(listing, "DEEP_SEARCH_SECONDS", 60.0)
    monkeypatch.setattr(listing, "STATEMENT_SECONDS", 10.0)
