"""Refuses a pooler that gives a session another server connection for each transaction, such as PgBouncer.

Settings, prepared statements, LISTEN and the wait for a lock belong to a session. A pooler in session mode keeps the
session.
"""

from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from orderstream.postgres.faults import UnsuitableServerError

ROUNDS = 5
"""Rounds of the check. In a busy pool, another client may take the connection that the check waits for."""
_REFUSAL = (
    "a pooler in transaction or statement mode is in front of Postgres, and OrderStream needs sessions:"
    " set its pool_mode = session, or set POSTGRES_URL to the address of Postgres itself"
)
_STATEMENT_MODE = "statement pooling mode"


def check(connect: Callable[[], psycopg.Connection[TupleRow]]) -> None:
    """Raise UnsuitableServerError unless sessions stay on their server connection.

    `connect` opens a connection through the pooler. If the pooler does not respond, nothing is raised, because a pool
    in session mode may have no free connection.
    """
    try:
        with connect() as idle, connect() as busy:
            idle.autocommit = True
            if _share(idle, busy):
                raise UnsuitableServerError(_REFUSAL)
    except UnsuitableServerError:
        raise
    except psycopg.Error as error:
        if _STATEMENT_MODE in str(error):
            raise UnsuitableServerError(_REFUSAL) from error


def _share(idle: psycopg.Connection[TupleRow], busy: psycopg.Connection[TupleRow]) -> bool:
    """Say whether an idle session loses its server connection to a transaction of another session."""
    pid = _pid(idle)
    for _ in range(ROUNDS):
        if _pid(busy) == pid or _pid(idle) != pid:
            return True
        busy.rollback()
    return False


def _pid(connection: psycopg.Connection[TupleRow]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
