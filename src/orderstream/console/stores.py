"""The console's sessions of PostgreSQL: one pool that only reads, and one for the actions of operators."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Self

import psycopg
from psycopg_pool import ConnectionPool

from orderstream.postgres import session_settings
from orderstream.postgres.connect import Connection, parameters
from orderstream.postgres.limited import LimitedConnection
from orderstream.settings import Settings

READING_MAX = 4
ACTING_MAX = 4
WAIT_SECONDS = 3.0
"""Longest wait for a free session, and for a new one."""
READ_SECONDS = 2
"""Longest statement of a page."""
IDLE_SECONDS = 60.0


class Stores:
    """Opens sessions when they are needed, and closes them when they are idle. Used as a context manager."""

    def __init__(self, settings: Settings) -> None:
        url = settings.console_postgres_url or settings.postgres_url
        self._reading = _pool(url, "console: reads", READING_MAX, _only_read, _Reading)
        self._acting = _pool(url, "console: actions", ACTING_MAX, _prepare, _Acting)

    def __enter__(self) -> Self:
        self._reading.open()
        self._acting.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._reading.close()
        self._acting.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a session that cannot write, in autocommit mode. A statement has READ_SECONDS. Raises psycopg.Error."""
        with self._reading.connection() as connection:
            yield connection

    @contextlib.contextmanager
    def acting(self) -> Iterator[Connection]:
        """Lend a session that may write, in autocommit mode. Raises psycopg.Error."""
        with self._acting.connection() as connection:
            yield connection


class _Reading(LimitedConnection):
    """A session whose statements end at the server's limit, or a second later if the server hangs."""

    answer_limit_seconds = READ_SECONDS + 1


class _Acting(LimitedConnection):
    """A session of an action. The longest statement, which queues a large job, has 60 s."""

    answer_limit_seconds = 65.0


def _pool(
    url: str, name: str, most: int, configure: Callable[[Connection], None], kind: type[Connection]
) -> ConnectionPool[Connection]:
    return ConnectionPool(
        "",
        connection_class=kind,
        kwargs={**parameters(url, name), "autocommit": True, "prepare_threshold": None},
        min_size=0,
        max_size=most,
        open=False,
        configure=configure,
        check=ConnectionPool.check_connection,
        timeout=WAIT_SECONDS,
        max_waiting=4 * most,
        max_idle=IDLE_SECONDS,
        reconnect_timeout=WAIT_SECONDS,
        name=name,
    )


def _prepare(connection: psycopg.Connection) -> None:
    """Set the session settings that our SQL relies on. Raises UnsuitableServerError."""
    statement, values = session_settings.statement(connection.info.backend_pid)
    session_settings.check(connection.execute(statement, values).fetchone())


def _only_read(connection: psycopg.Connection) -> None:
    _prepare(connection)
    connection.execute(f"SET statement_timeout = '{READ_SECONDS}s'".encode())
    connection.execute("SET default_transaction_read_only = on")
