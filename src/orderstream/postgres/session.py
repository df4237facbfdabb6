"""The one session of a worker or relay with Postgres: opened when needed, closed when it fails, then replaced.

No state of a session outlives its cause: a server that has become read-only, a lost prepared statement, a plan of
another schema. What was set up on it, such as LISTEN, is set up on the next one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.faults import StaleSessionError, fault_of, is_about_data, is_fatal
from orderstream.postgres.limited import LimitedConnection


def _nothing(_connection: Connection) -> None:
    """Set nothing up."""


class Session:
    """Lends one connection at a time, to one thread. `begin` sets up each connection that it opens."""

    def __init__(self, postgres_url: str, name: str, begin: Callable[[Connection], None] = _nothing) -> None:
        self._url = postgres_url
        self._name = name
        self._begin = begin
        self._connection: Connection | None = None
        self._proven = False
        self._reached = False

    @property
    def ready(self) -> bool:
        """Whether the last attempt to connect reached a server that takes writes. Any thread may ask.

        A connection that was closed says nothing about the server: the next attempt does.
        """
        return self._reached

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """Lend the connection; opens one if there is none. After any error that is not about data it is closed.

        Raises what connecting and the block raise. A fatal error of a session that had worked before is raised as
        StaleSessionError, which is transient: the next session shows whether it stays.
        """
        connection = self.open()
        try:
            yield connection
        except Exception as error:
            session_may_go_on = fault_of(error) is None or is_about_data(error)
            if session_may_go_on and not connection.closed:
                raise
            proven = self._proven
            self.close()
            if proven and is_fatal(error):
                raise StaleSessionError(str(error)) from error
            raise
        self._proven = True

    def open(self) -> Connection:
        """Return the connection, opened and set up if there is none. Raises as `connect` does."""
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
