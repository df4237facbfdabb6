"""The durable ledger of the simulator: async methods, one thread, group commit.

The thread takes all requests that wait, runs them in one transaction, commits it, and then answers all of them. So the
number of commits does not grow with the number of requests, and an answer means that the entry is on disk.
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from orderstream.payment_simulator.store import (
    Account,
    Authorization,
    Entry,
    KeyReusedError,
    Payment,
    Store,
    VoidStatus,
)
from orderstream.telemetry import logs

WAITING_MAX = 5_000
"""Requests that wait for the thread."""
GROUP_MAX = 500
"""Requests in one transaction."""
COLLECT_SECONDS = 0.002
"""Time for which a group collects requests. A commit for each request would cost as much CPU as the rest of it."""

log = logs.get()

T = TypeVar("T")
_Job = tuple[Callable[[], object], "asyncio.Future[Any]"]
_Answer = tuple["asyncio.Future[Any]", object, Exception | None]


class LedgerFullError(Exception):
    """WAITING_MAX requests wait already. This request changed nothing."""


class LedgerFailedError(Exception):
    """SQLite failed, for example because the disk is full. The group was rolled back."""


class Ledger:
    """An async context manager. It owns the store and closes it at the end, after the requests that wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> "Ledger":
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._store.close()

    def authorize(self, request: Authorization) -> "asyncio.Future[Payment]":
        """Charge, or return the payment that the key has already. Raises KeyReusedError.

        This method and all others raise LedgerFullError and LedgerFailedError.
        """
        return self._submit(lambda: self._store.authorize(request))

    def void(self, key: str) -> "asyncio.Future[VoidStatus]":
        """Release the held amount of the key, or return the answer to an earlier void."""
        return self._submit(lambda: self._store.void(key))

    def decide_due(self, limit: int) -> "asyncio.Future[list[str]]":
        """Authorize or decline pending payments whose time is over, at most `limit`. Return their keys."""
        return self._submit(lambda: self._store.decide_due(limit))

    def find(self, key: str) -> "asyncio.Future[Account | None]":
        """Return the payment of a key."""
        return self._submit(lambda: self._store.find(key))

    def history(self, key: str) -> "asyncio.Future[list[Entry] | None]":
        """Return the charges and voids of a key, oldest first. None if the key was never used."""
        return self._submit(lambda: self._store.history(key))

    def page(self, after: str, limit: int) -> "asyncio.Future[list[Account]]":
        """Return at most `limit` payments in the order of their keys, beginning after the key `after`."""
        return self._submit(lambda: self._store.page(after, limit))

    def _submit(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        assert self._loop is not None
        if self._waiting >= WAITING_MAX:
            raise LedgerFullError
        self._waiting += 1
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((work, future))
        return future

    def _deliver(self, answers: list[_Answer]) -> None:
        """Complete the futures of one group. Runs in the event loop."""
        self._waiting -= len(answers)
        for future, result, error in answers:
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _work(self) -> None:
        """Commit group after group until `__aexit__`. Runs in the thread."""
        assert self._loop is not None
        is_last = False
        while not is_last:
            group = [self._jobs.get()]
            time.sleep(COLLECT_SECONDS)
            while group[-1] is not None and len(group) < GROUP_MAX:
                try:
                    group.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            is_last = group[-1] is None
            if jobs := [job for job in group if job is not None]:
                self._loop.call_soon_threadsafe(self._deliver, self._commit(jobs))

    def _commit(self, group: list[_Job]) -> list[_Answer]:
        """Run a group in one transaction and return its answers."""
        answers: list[_Answer] = []
        try:
            self._store.begin()
            for work, future in group:
                try:
                    answers.append((future, work(), None))
                except KeyReusedError as error:
                    answers.append((future, None, error))
            self._store.commit()
        except sqlite3.Error as error:
            log.error("ledger_failed", error=str(error), requests=len(group))
            self._store.roll_back()
            return [(future, None, LedgerFailedError(str(error))) for _, future in group]
        return answers
