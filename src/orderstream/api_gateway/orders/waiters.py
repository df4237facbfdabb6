"""Reads that wait until their order settles: `Prefer: wait=N` (RFC 7240).

One query every 25 ms asks Postgres for all waiting orders, so waiting needs neither Kafka nor Redis (P11). Without
waiting reads there is no query. At most 1,000 reads wait. A read beyond this limit, and every read while the gateway
stops, is answered at once.
"""

import asyncio
import contextlib
import re
from typing import Literal, Self

import psycopg
from psycopg.rows import scalar_row

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.http_server.header_fields import preferences
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics

WAIT_MAX_SECONDS = 30
WAITERS_MAX = 1_000
POLL_SECONDS = 0.025
POLL_AFTER_FAILURE_SECONDS = 0.5

SQL = load("orderstream.api_gateway.orders")

WaitResult = Literal["over", "refused"]

_SECONDS = re.compile("[0-9]{1,100}")


def preferred_wait(header: bytes | None) -> int:
    """Return the seconds that a client prefers to wait, at most WAIT_MAX_SECONDS; 0 without a valid preference.

    Only the first `wait` preference counts, even if it is not valid.
    """
    for name, value in preferences(header) if header else ():
        if name == "wait":
            return min(int(value), WAIT_MAX_SECONDS) if _SECONDS.fullmatch(value) else 0
    return 0


class Waiters:
    """The waiting reads by order. Used as a context manager. Its length is the number of waiting reads."""

    def __init__(self, session: Session, *, limit: int = WAITERS_MAX) -> None:
        self._session = session
        self._limit = limit
        self._waiting: dict[str, set[asyncio.Future[bool]]] = {}
        self._count = 0
        self._has_waiters = asyncio.Event()
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._poll())
        metrics.WAITING_READS.set_function(lambda: self._count)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.drain()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def __len__(self) -> int:
        return self._count

    async def wait(self, order_id: str, seconds: float, disconnected: asyncio.Future[bool]) -> WaitResult:
        """Wait until the order has settled, `seconds` have passed, or `disconnected` is done.

        The wait is refused if too many reads wait, or if the gateway stops before or during the wait.
        """
        if self._draining or self._count >= self._limit:
            return "refused"
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(order_id, set()).add(future)
        self._count += 1
        self._has_waiters.set()
        try:
            await asyncio.wait([future, disconnected], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._count -= 1
            others = self._waiting.get(order_id, set())
            others.discard(future)
            if not others:
                self._waiting.pop(order_id, None)
        return "over" if not future.done() or future.result() else "refused"

    def drain(self) -> None:
        """End every wait now, and refuse new ones."""
        self._draining = True
        for order_id in list(self._waiting):
            self._end(order_id, settled=False)

    def _end(self, order_id: str, *, settled: bool) -> None:
        for future in self._waiting.pop(order_id, set()):
            if not future.done():
                future.set_result(settled)

    async def _poll(self) -> None:
        pause = POLL_SECONDS
        while True:
            if not self._waiting:
                self._has_waiters.clear()
                await self._has_waiters.wait()
            await asyncio.sleep(pause)
            if not self._waiting:
                continue
            try:
                settled_ids: list[str] = await self._session.check(
                    SQL["settled_of"], {"ids": list(self._waiting)}, scalar_row
                )
            except (TryAgainError, psycopg.Error) as error:
                logs.get().warning("waiters_not_polled", error=repr(error.__cause__ or error))
                pause = POLL_AFTER_FAILURE_SECONDS
                continue
            pause = POLL_SECONDS
            for order_id in settled_ids:
                self._end(order_id, settled=True)
