"""Refuses new orders while too many events wait in the outbox for Kafka.

A background task measures the outbox now and then while orders arrive. The orders themselves never wait for the
measurement. A gateway without a recent measurement accepts orders: the fault that prevents the measurement would also
prevent the commit.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Self

import psycopg
from psycopg.rows import scalar_row

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.postgres.sql import load
from orderstream.telemetry import logs

MEASURE_SECONDS = 1.0
STALE_SECONDS = 5.0
"""Age at which a measurement no longer counts."""

SQL = load("orderstream.api_gateway.orders")


class OutboxLimit:
    """Tells whether the outbox holds more than `limit` rows. Used as a context manager."""

    def __init__(self, session: Session, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._limit = limit
        self._clock = clock
        self._exceeded = False
        self._begun_at = self._measured_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def is_exceeded(self) -> bool:
        """Return the last measurement, and start the next one if it is due. Never waits."""
        now = self._clock()
        if now - self._begun_at >= MEASURE_SECONDS and (self._task is None or self._task.done()):
            self._begun_at = now
            self._task = asyncio.create_task(self._measure())
        return self._exceeded and now - self._measured_at < STALE_SECONDS

    async def _measure(self) -> None:
        try:
            (exceeded,) = await self._session.check(SQL["outbox_exceeds"], {"limit": self._limit}, scalar_row)
        except (TryAgainError, psycopg.Error) as error:
            logs.get().warning("outbox_not_measured", error=repr(error.__cause__ or error))
            return
        if exceeded != self._exceeded:
            self._exceeded = exceeded
            logs.get().warning("outbox_full" if self._exceeded else "outbox_has_room", limit=self._limit)
        self._measured_at = self._clock()
