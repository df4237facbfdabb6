"""One Postgres connection of the gateway: opened when needed, replaced when it broke, and never waited for in vain."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import LiteralString, Self

import psycopg
from psycopg.rows import TupleRow

from orderstream.api_gateway.gathering import TryAgainError
from orderstream.postgres.connect import AsyncConnection, connect_async, is_bad_value, is_transient
from orderstream.telemetry import logs

BUDGET_SECONDS = 5.0
"""How long a request waits for Postgres before it is answered 503."""


class Session:
    """Runs one transaction at a time; whoever comes meanwhile waits for the turn. Used as a context manager.

    Both ways raise TryAgainError when Postgres is not there, or did not answer in time: whether a write was committed
    is then unknown. They raise psycopg.Error when it refused. Only after a refusal of a value is the connection kept:
    any other error may be the session's, which a new connection does not have.
    """

    def __init__(self, postgres_url: str, name: str, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._url = postgres_url
        self._name = name
        self._budget_seconds = budget_seconds
        self._connection: AsyncConnection | None = None
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

    async def renew(self) -> None:
        """Have the next transaction run on a new connection."""
        async with self._turn:
            await self._close()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Run several statements as one transaction, all of them within one budget; it commits at the end."""
        async with self._use() as connection, connection.transaction():
            yield connection

    @contextlib.asynccontextmanager
    async def _use(self) -> AsyncIterator[AsyncConnection]:
        """Lend the connection for the budget; it is closed if it failed."""
        async with self._turn:
            try:
                connection = await self._connected()
                cut = asyncio.get_running_loop().call_later(self._budget_seconds, _cut, connection)
                try:
                    yield connection
                finally:
                    cut.cancel()
            except (psycopg.Error, OSError, TimeoutError) as error:
                if isinstance(error, psycopg.Error) and not is_transient(error):
                    if not is_bad_value(error):
                        await self._close()
                    raise
                reason = str(error).strip() or repr(error)
                logs.get().warning("postgres_unavailable", connection=self._name, error=reason)
                await self._close()
                raise TryAgainError from error

    async def _connected(self) -> AsyncConnection:
        if self._connection is None or self._connection.closed:
            async with asyncio.timeout(self._budget_seconds):
                self._connection = await connect_async(self._url, self._name)
        return self._connection

    async def _close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def _cut(connection: AsyncConnection) -> None:
    """End a connection's statement at once, without a word to the server: it may be the one that hangs."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=socket.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
