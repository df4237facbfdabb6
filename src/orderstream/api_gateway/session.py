"""One Postgres connection of the gateway, opened when it is needed and closed when it fails. Every wait has a limit.

This is the asyncio counterpart of `orderstream.postgres.session`. No state of a failed connection survives it.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import LiteralString, Self, TypeVar

import psycopg
from psycopg.rows import BaseRowFactory

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.postgres.connect import AsyncConnection, connect_async
from orderstream.postgres.faults import is_about_data, is_bad_value, is_fatal
from orderstream.telemetry import databases, logs
from orderstream.telemetry.tracing import Operation

BUDGET_SECONDS = 5.0
"""How long a request waits for Postgres before the gateway answers 503."""

Row = TypeVar("Row")


class Session:
    """Runs one transaction at a time. Further callers wait for their turn. Used as a context manager.

    The methods raise TryAgainError if Postgres cannot be reached, does not answer in time, or rejects the session. It
    is then unknown whether a write was committed. They raise psycopg.Error if Postgres rejects the data, or if a new
    connection meets an error that no retry can solve. The connection is kept only after a rejected value. After any
    other error it is closed, because the error may belong to this connection.
    """

    def __init__(self, postgres_url: str, name: str, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._url = postgres_url
        self._name = name
        self._budget_seconds = budget_seconds
        self._connection: AsyncConnection | None = None
        self._proven = False
        """Whether the connection has completed a transaction."""
        self._turn = asyncio.Lock()

    def operation(self, summary: str, name: str = databases.TRANSACTION) -> Operation:
        """Describe a statement or transaction of this session for spans. `summary` names statements and tables."""
        return databases.postgres(self._url, summary, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._close()

    async def execute(
        self, statement: LiteralString, parameters: Mapping[str, object], row_factory: BaseRowFactory[Row]
    ) -> list[Row]:
        """Run a statement as a transaction of its own and return its rows."""
        async with self._use() as connection:
            cursor = await connection.cursor(row_factory=row_factory).execute(statement, parameters)
            return await cursor.fetchall()

    @contextlib.asynccontextmanager
    async def reading(
        self, statement: LiteralString, parameters: Mapping[str, object], row_factory: BaseRowFactory[Row]
    ) -> AsyncIterator[psycopg.AsyncCursor[Row]]:
        """Run a statement as `execute` does and yield the cursor. The cursor decodes its rows one at a time."""
        async with self._use() as connection:
            yield await connection.cursor(row_factory=row_factory).execute(statement, parameters)

    async def renew(self) -> None:
        """Close the connection. The next transaction opens a new one."""
        async with self._turn:
            await self._close()

    async def check(
        self, statement: LiteralString, parameters: Mapping[str, object], row_factory: BaseRowFactory[Row]
    ) -> list[Row]:
        """Run a short read as `execute` does. If a proven connection fails, repeat the read on a new connection.

        A server, a pooler or a firewall may have closed an idle connection. That says nothing about Postgres now. A
        proven connection gets half of the time budget, so that a hanging one leaves time for the second attempt.
        """
        if self._proven:
            with contextlib.suppress(TryAgainError):
                async with self._use(self._budget_seconds / 2) as connection:
                    cursor = await connection.cursor(row_factory=row_factory).execute(statement, parameters)
                    return await cursor.fetchall()
        return await self.execute(statement, parameters, row_factory)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Run several statements as one transaction within one time budget, and commit it at the end."""
        async with self._use() as connection, connection.transaction():
            yield connection

    @contextlib.asynccontextmanager
    async def _use(self, budget_seconds: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Yield the connection and limit its use to the budget. Close it after any error that is not a bad value."""
        async with self._turn:
            try:
                connection = await self._connected()
                cut = asyncio.get_running_loop().call_later(budget_seconds or self._budget_seconds, _cut, connection)
                try:
                    yield connection
                finally:
                    cut.cancel()
            except (psycopg.Error, OSError, TimeoutError) as error:
                if is_about_data(error):
                    if not is_bad_value(error):
                        await self._close()
                    raise
                proven = self._proven
                await self._close()
                reason = str(error).strip() or repr(error)
                if is_fatal(error) and not proven:
                    logs.get().error("postgres_refuses", connection=self._name, error=reason)
                    raise
                logs.get().warning("postgres_unavailable", connection=self._name, error=reason)
                raise TryAgainError from error
            self._proven = True

    async def _connected(self) -> AsyncConnection:
        if self._connection is None or self._connection.closed:
            await self._close()
            self._connection = await connect_async(self._url, self._name, self._budget_seconds)
        return self._connection

    async def _close(self) -> None:
        connection, self._connection, self._proven = self._connection, None, False
        if connection is not None:
            await connection.close()


def _cut(connection: AsyncConnection) -> None:
    """End the running statement by shutting the socket down. The server is not told, because it may hang."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=socket.dup(connection.fileno())) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)
