"""The fixture of the tests that count the statements of a batch."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from orderstream.worker import due_scan
from tests.integration.set_based.counting import SKU, Counting
from tests.support.postgres_counts import counted


@pytest.fixture
def counting(connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """A database with stock, behind a proxy that counts statements. Timers do not sweep: how far they get is chance."""
    monkeypatch.setattr(due_scan, "SWEEP_SECONDS", 0.0)
    connection.execute("INSERT INTO inventory VALUES (%s, 1000, 0), ('EMPTY', 0, 0)", (SKU,))
    with ExitStack() as opened:
        asked = opened.enter_context(counted(settings.postgres_url))
        work = opened.enter_context(connect(asked.url, "test"))
        through_proxy = settings.model_copy(update={"postgres_url": asked.url})
        yield Counting(connection, work, through_proxy, settings.postgres_url, asked, opened)
