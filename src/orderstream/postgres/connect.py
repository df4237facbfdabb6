"""How every process connects to Postgres: with timeouts, in UTC, and with plans that hold on an empty table."""

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 5
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 45
"""Longer than the relay waits for Kafka's acknowledgements while it holds its rows."""

TRANSIENT_CLASSES = ("08", "40", "53", "57", "58")
TRANSIENT_STATES = ("55P03", "25006", "25P03", "25P04")
FATAL_CLASSES = ("42", "3D", "3F", "28")
# libpq keeps no SQLSTATE of a connection that was refused, so the server's words for classes 28 and 3D must do, and
# libpq's own for a server that is not the one it should be.
_REFUSED_FOR_GOOD = re.compile(
    r"FATAL: .*(authentication failed|no pg_hba\.conf entry|(role|database) .* does not exist|not permitted to log in)"
    r"|certificate verify failed|does not match host name|certificate file .* does not exist|does not support SSL"
)


def options(name: str) -> dict[str, Any]:
    """Return the keyword arguments that every connection of process `name` is made with.

    Sequential scans are off: a plan prepared while a table is empty would else scan it until autovacuum comes by.
    """
    limits = {
        "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
        "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS}s",
        "timezone": "UTC",
        "enable_seqscan": "off",
        "jit": "off",
    }
    return {
        "application_name": name,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "options": " ".join(f"-c {key}={value}" for key, value in limits.items()),
        "prepare_threshold": 0,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }


def _merged(url: str, name: str) -> dict[str, Any]:
    """Return our options, and before them the server options that the connection string brings along."""
    ours = options(name)
    theirs = conninfo_to_dict(url).get("options")
    return ours | {"options": f"{theirs} {ours['options']}"} if theirs else ours


def connect(url: str, name: str) -> Connection:
    """Open a connection in autocommit mode. Raises psycopg.OperationalError when Postgres cannot be reached."""
    return psycopg.connect(url, autocommit=True, **_merged(url, name))


async def connect_async(url: str, name: str) -> AsyncConnection:
    """Open an asyncio connection in autocommit mode. Raises as `connect` does."""
    return await psycopg.AsyncConnection.connect(url, autocommit=True, **_merged(url, name))


def is_transient(error: Exception) -> bool:
    """Say whether the same statements may succeed later: a lost connection, a deadlock, a full or stopping server."""
    if not isinstance(error, psycopg.Error) or is_fatal(error):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(TRANSIENT_CLASSES) or state in TRANSIENT_STATES


def names_unknown_order(error: Exception) -> bool:
    """Say whether a row was refused because the order that it is about does not exist."""
    return isinstance(error, psycopg.errors.ForeignKeyViolation)


def is_bad_value(error: Exception) -> bool:
    """Say whether a value cannot be stored: a NUL in a text, a number out of range, a key too long for its index."""
    return isinstance(error, psycopg.DataError | psycopg.errors.ProgramLimitExceeded)


def is_fatal(error: Exception) -> bool:
    """Say whether no retry and no other record can help: a missing table or column, a wrong password."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return _REFUSED_FOR_GOOD.search(str(error)) is not None
    return error.sqlstate.startswith(FATAL_CLASSES)
