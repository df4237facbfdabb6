"""One session of the gateway with Postgres: opened when needed, closed when it fails, and never waited for in vain.

It is the asyncio twin of `orderstream.postgres.session`: no state of a session outlives its cause.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import LiteralString, Self

import psycopg
from psycopg.rows import TupleRow

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.postgres.connect import AsyncConnection, AsyncCursor, connect_async
from orderstream.postgres.faults import is_about_data, is_bad_value, is_fatal
from orderstream.telemetry import logs

BUDGET_SECONDS = 5.0
"""How long a request waits for Postgres before it is answered 503."""


class Session:
    """Runs one transaction at a time; whoever comes meanwhile waits for the turn. Used as a context manager.

    All ways raise TryAgainError when Postgres is not there, did not answer in time, or found fault with the session:
    whether a write was committed is then unknown. They raise psycopg.Error when Postgres refused the data, or when a
    fresh session meets what no retry can help. Only after a refusal of a value is the connection kept: any other error
    may be of the session, which a new connection does not have.
    """

    def __init__(self, postgres_url: str, name: str, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._url = postgres_url
        self._name = name
        self._budget_seconds = budget_seconds
        self._connection: AsyncConnection | None = None
        self._proven = False
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._close()

    async def execute(self, statement: LiteralString, parameters: Mapping[str, object]) -> list[TupleRow]:
        """Run a statement, which is a transaction by itself, and return its rows."""
        async with self._use() as connection:
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchall()

    @contextlib.asynccontextmanager
    async def reading(self, statement: LiteralString, parameters: Mapping[str, object]) -> AsyncIterator[AsyncCursor]:
        """Run a statement as `execute` does, and lend its rows, which are decoded one by one."""
        async with self._use() as connection:
            yield await connection.execute(statement, parameters)

    async def renew(self) -> None:
        """Have the next transaction run on a new connection."""
        async with self._turn:
            await self._close()

    async def check(self, statement: LiteralString, parameters: Mapping[str, object]) -> list[TupleRow]:
        """Run a short read as `execute` does, and once more on a fresh connection if one that had worked fails.

        While it rested, a server, a pooler or a firewall may have closed it, which says nothing about Postgres now. A
        used connection has half of the budget, so that one that hangs leaves time for the other.
        """
        if self._proven:
            with contextlib.suppress(TryAgainError):
                async with self._use(self._budget_seconds / 2) as connection:
                    cursor = await connection.execute(statement, parameters)
                    return await cursor.fetchall()
        return await self.execute(statement, parameters)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Run several statements as one transaction, all of them within one budget; it commits at the end."""
        async with self._use() as connection, connection.transaction():
            yield connection

    @contextlib.asynccontextmanager
    async def _use(self, budget_seconds: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Lend the connection for the budget; it is closed after any error that is not about data."""
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
    """End a connection's statement at once, without a word to the server: it may be the one that hangs."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=socket.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
