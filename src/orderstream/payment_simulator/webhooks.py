"""Decides pending payments when their time is over, and sends their keys to the webhook of the client.

A webhook only brings the next call of the client forward. So a lost webhook does no harm.
"""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

from aiohttp import ClientError, ClientSession, ClientTimeout

from orderstream.payment_simulator.ledger import Ledger, LedgerFailedError, LedgerFullError
from orderstream.telemetry import logs

CHECK_SECONDS = 0.25
DECIDED_MAX = 500
"""Payments that are decided in one transaction."""
QUEUE_MAX = 10_000
"""Webhooks that wait. Further ones are dropped."""
SENDERS = 8
TRIES_MAX = 3
TRY_SECONDS = 2.0
RETRY_SECONDS = 1.0

log = logs.get()


class Webhooks:
    """An async context manager that runs the clock of pending payments and sends their webhooks."""

    def __init__(self, ledger: Ledger, url: Callable[[], str | None]) -> None:
        """`url` returns the address at the time of sending, or None."""
        self._ledger = ledger
        self._url = url
        self._keys: asyncio.Queue[str] = asyncio.Queue(QUEUE_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._session: ClientSession | None = None

    async def __aenter__(self) -> "Webhooks":
        self._session = ClientSession(timeout=ClientTimeout(total=TRY_SECONDS))
        self._tasks = [
            asyncio.create_task(work) for work in (self._decide(), *(self._send(self._session) for _ in range(SENDERS)))
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _decide(self) -> None:
        """Decide the pending payments whose time is over, and queue their webhooks."""
        while True:
            try:
                keys = await self._ledger.decide_due(DECIDED_MAX)
            except (LedgerFailedError, LedgerFullError):
                keys = []
            for key in keys if self._url() else ():
                with contextlib.suppress(asyncio.QueueFull):
                    self._keys.put_nowait(key)
            if len(keys) < DECIDED_MAX:
                await asyncio.sleep(CHECK_SECONDS)

    async def _send(self, session: ClientSession) -> None:
        """Send one webhook after the other."""
        while True:
            key = await self._keys.get()
            for _ in range(TRIES_MAX):
                if await self._is_delivered(session, key):
                    break
                await asyncio.sleep(RETRY_SECONDS)
            else:
                log.warning("webhook_lost", key=key)

    async def _is_delivered(self, session: ClientSession, key: str) -> bool:
        """Send a webhook once. Return whether it needs no retry."""
        url = self._url()
        if url is None:
            return True
        try:
            async with session.post(url, json={"key": key}, allow_redirects=False) as answer:
                return answer.status < 300
        except (ClientError, TimeoutError, OSError, ValueError):
            return False
