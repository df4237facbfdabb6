"""Bounds the outbox: while more events wait for Kafka than may, no new order is taken.

It is measured now and then while orders come, never by the orders themselves. A gateway that does not know how many
wait takes orders: whatever keeps it from knowing would keep it from storing them.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import psycopg

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.postgres.sql import load
from orderstream.telemetry import logs

MEASURE_SECONDS = 1.0
STALE_SECONDS = 5.0
"""Age at which a measurement says nothing any more."""

SQL = load("orderstream.api_gateway.orders")


class OutboxBound:
    """Says whether the outbox holds more than `limit` rows. Used as a context manager."""

    def __init__(self, session: Session, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._limit = limit
        self._clock = clock
        self._exceeded = False
        self._begun_at = self._measured_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "OutboxBound":
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def is_exceeded(self) -> bool:
        """Answer from the last measurement, and see to it that there is a next one. Never waits."""
        now = self._clock()
        if now - self._begun_at >= MEASURE_SECONDS and (self._task is None or self._task.done()):
            self._begun_at = now
            self._task = asyncio.create_task(self._measure())
        return self._exceeded and now - self._measured_at < STALE_SECONDS

    async def _measure(self) -> None:
        try:
            rows = await self._session.check(SQL["outbox_exceeds"], {"limit": self._limit})
        except (TryAgainError, psycopg.Error) as error:
            logs.get().warning("outbox_not_measured", error=repr(error.__cause__ or error))
            return
        if rows[0][0] != self._exceeded:
            self._exceeded = rows[0][0]
            logs.get().warning("outbox_full" if self._exceeded else "outbox_has_room", limit=self._limit)
        self._measured_at = self._clock()
