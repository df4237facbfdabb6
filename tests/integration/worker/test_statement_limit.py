"""The session is usable after the limit of the statements that scan a slice, also if the limit ended the COMMIT."""

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from orderstream.postgres.connect import Connection
from orderstream.worker import due_scan
from orderstream.worker.due_scan import FLOOR, TimeRange, statement_limit

SLICE = TimeRange(FLOOR, FLOOR, is_limited=True)


def _setting(connection: Connection) -> tuple[str, ...] | None:
    return connection.execute("SHOW statement_timeout").fetchone()


@pytest.mark.parametrize("ends", ["a statement", "the COMMIT"])
def test_the_session_is_usable_after_the_limit(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """PostgreSQL ends a COMMIT only if its process gets no CPU at that moment. A slow statement stands for it."""
    before = _setting(connection)
    monkeypatch.setattr(due_scan, "SLICE_STATEMENT_SECONDS", 0.1)
    if ends == "the COMMIT":
        monkeypatch.setattr(psycopg.Transaction, "_get_commit_commands", lambda _: [b"SELECT pg_sleep(10)"])
    with pytest.raises(psycopg.errors.QueryCanceled), statement_limit(connection, SLICE):
        connection.execute("SELECT pg_sleep(%s)", (10 if ends == "a statement" else 0,))
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert _setting(connection) == before
