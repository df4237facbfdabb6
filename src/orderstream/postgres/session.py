"""The Postgres session of a worker or relay. It connects when needed, and reconnects after an error.

After an error the session is replaced, so that no broken state persists, such as a server that has become read-only, a
lost prepared statement, or a plan for another schema. `begin` sets up each new session, for example with LISTEN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg.pq import TransactionStatus

from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.faults import StaleSessionError, fault_of, is_about_data, is_fatal
from orderstream.postgres.limited import LimitedConnection
from orderstream.telemetry import databases
from orderstream.telemetry.tracing import Operation


def _nothing(_connection: Connection) -> None:
    """Do nothing."""


class Session:
    """Lends one connection at a time, to one thread. Calls `begin` with each new connection."""

    def __init__(self, postgres_url: str, name: str, begin: Callable[[Connection], None] = _nothing) -> None:
        self._url = postgres_url
        self._name = name
        self._begin = begin
        self._connection: Connection | None = None
        self._proven = False
        self._reached = False

    @property
    def ready(self) -> bool:
        """Whether the last attempt to connect reached a server that accepts writes. Any thread may read this.

        A closed connection does not change it. Only the next attempt to connect does.
        """
        return self._reached

    def operation(self, summary: str) -> Operation:
        """Describe a transaction of this session for spans. `summary` names its statements and their tables."""
        return databases.postgres(self._url, summary)

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """Lend the connection, and open it if needed. Close it after any error of Postgres that is not about data.

        Raises the errors of connecting and of the block. A fatal error of a session that had worked before is raised as
        StaleSessionError, which is transient, because a new session shows whether the error persists.
        """
        connection = self.open()
        try:
            yield connection
        except Exception as error:
            is_usable = fault_of(error) is None or is_about_data(error)
            # psycopg hides it if a ROLLBACK fails.
            if is_usable and connection.info.transaction_status is TransactionStatus.IDLE:
                raise
            proven = self._proven
            self.close()
            if proven and is_fatal(error):
                raise StaleSessionError(str(error)) from error
            raise
        self._proven = True

    def open(self) -> Connection:
        """Return the connection. Opens it and sets it up if needed. Raises the same errors as `connect`."""
        if self._connection is None or self._connection.closed:
            self.close()
            try:
                self._connection = self._connect()
            except BaseException:
                self._reached = False
                raise
            self._reached = True
        return self._connection

    def _connect(self) -> Connection:
        opened = connect(self._url, self._name, LimitedConnection)
        try:
            self._begin(opened)
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._proven = self._connection, None, False
        if connection is not None:
            connection.close()
