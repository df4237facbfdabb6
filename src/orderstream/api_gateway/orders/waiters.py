"""Reads that wait for their order to settle: `Prefer: wait=N` (RFC 7240).

One query every 25 ms asks Postgres for all of them, so that waiting needs neither Kafka nor Redis (P11); nothing is
asked while nobody waits. At most 1,000 wait, and none while the gateway stops: beyond that a read is answered at once.
"""

import asyncio
import contextlib
import re
from typing import Literal, Self

import psycopg

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.http.fields import preferences
from orderstream.api_gateway.session import Session
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics

WAIT_MAX_SECONDS = 30
WAITERS_MAX = 1_000
POLL_SECONDS = 0.025
POLL_AFTER_FAILURE_SECONDS = 0.5

SQL = load("orderstream.api_gateway.orders")

_SECONDS = re.compile("[0-9]{1,100}")


def preferred_wait(header: bytes | None) -> int:
    """Return for how many seconds a client would wait; 0 if it says nothing that can be followed.

    More than WAIT_MAX_SECONDS is taken for as many. Of several such preferences the first counts, whatever it says.
    """
    for name, value in preferences(header) if header else ():
        if name == "wait":
            return min(int(value), WAIT_MAX_SECONDS) if _SECONDS.fullmatch(value) else 0
    return 0


class Waiters:
    """Who waits for which order. Used as a context manager."""

    def __init__(self, session: Session, *, limit: int = WAITERS_MAX) -> None:
        self._session = session
        self._limit = limit
        self._waiting: dict[str, set[asyncio.Future[bool]]] = {}
        self._count = 0
        self._someone = asyncio.Event()
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

    async def wait(self, order_id: str, seconds: float, gone: asyncio.Future[bool]) -> Literal["over", "refused"]:
        """Wait until an order has settled, the time is over, or `gone` is done.

        It is refused if too many wait, and when the gateway begins to stop, also while waiting.
        """
        if self._draining or self._count >= self._limit:
            return "refused"
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(order_id, set()).add(future)
        self._count += 1
        self._someone.set()
        try:
            await asyncio.wait([future, gone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._count -= 1
            others = self._waiting.get(order_id, set())
            others.discard(future)
            if not others:
                self._waiting.pop(order_id, None)
        return "over" if not future.done() or future.result() else "refused"

    def drain(self) -> None:
        """Have everyone answered at once who waits, and all who would."""
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
                self._someone.clear()
                await self._someone.wait()
            await asyncio.sleep(pause)
            if not self._waiting:
                continue
            try:
                rows = await self._session.check(SQL["settled_of"], {"ids": list(self._waiting)})
            except (TryAgainError, psycopg.Error) as error:
                logs.get().warning("waiters_not_polled", error=repr(error.__cause__ or error))
                pause = POLL_AFTER_FAILURE_SECONDS
                continue
            pause = POLL_SECONDS
            for (order_id,) in rows:
                self._end(order_id, settled=True)
