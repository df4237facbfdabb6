"""Refuses a pooler that gives a session another server connection for each transaction, such as PgBouncer's.

Settings, prepared statements, LISTEN and the wait for a lock belong to a session. A pooler in session mode keeps it.
"""

from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from orderstream.postgres.faults import UnsuitableServerError

ROUNDS = 5
"""In a busy pool another client may take the connection that the probe looks for."""
_REFUSAL = (
    "a pooler in transaction or statement mode stands before Postgres, and OrderStream needs its sessions:"
    " set pool_mode = session for it, or give POSTGRES_URL the address of Postgres itself"
)
_STATEMENT_MODE = "statement pooling mode"


def check(connect: Callable[[], psycopg.Connection[TupleRow]]) -> None:
    """Raise UnsuitableServerError unless sessions stay on their server connection.

    `connect` opens a connection through the pooler. If it does not answer, nothing is known and nothing raised: a pool
    in session mode may have no connection left.
    """
    try:
        with connect() as resting, connect() as working:
            resting.autocommit = True
            if _share(resting, working):
                raise UnsuitableServerError(_REFUSAL)
    except UnsuitableServerError:
        raise
    except psycopg.Error as error:
        if _STATEMENT_MODE in str(error):
            raise UnsuitableServerError(_REFUSAL) from error


def _share(resting: psycopg.Connection[TupleRow], working: psycopg.Connection[TupleRow]) -> bool:
    """Say whether a session at rest loses its server connection to a transaction of another, or to anyone else."""
    pid = _pid(resting)
    for _ in range(ROUNDS):
        if _pid(working) == pid or _pid(resting) != pid:
            return True
        working.rollback()
    return False


def _pid(connection: psycopg.Connection[TupleRow]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
