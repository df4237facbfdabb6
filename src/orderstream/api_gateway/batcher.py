"""Natural batching: while one batch is under way the next one gathers, so a batch is as large as the load makes it.

It carries orders to their group commit and reads to their one query. It keeps no promise alone, but it bounds: what
waits, what a batch holds, and how long a batch is repeated (as long as somebody still waits for it).
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Self, TypeVar

from orderstream.telemetry import logs

T = TypeVar("T")
R = TypeVar("R")

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5


class FullError(Exception):
    """As much is waiting as may wait."""


class TryAgainError(Exception):
    """Work on a batch failed in a way that passes; whoever is unanswered is worked for again."""


class Asked(Generic[T, R]):
    """One thing asked for, and everyone who waits for its answer."""

    __slots__ = ("futures", "item")

    def __init__(self, item: T) -> None:
        self.item = item
        self.futures: list[asyncio.Future[R]] = []

    @property
    def waited_for(self) -> bool:
        """Say whether anyone is still without an answer."""
        return not all(future.done() for future in self.futures)

    def answer(self, value: R) -> None:
        """Give `value` to all who wait."""
        for future in self.futures:
            if not future.done():
                future.set_result(value)

    def fail(self, error: Exception) -> None:
        """Raise `error` in all who wait."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


Work = Callable[[Sequence[Asked[T, R]]], Awaitable[None]]


class Gathering(Generic[T, R]):
    """Hands what is asked for to `work`, a batch at a time, in order of asking. Used as a context manager.

    A batch has at least one element, and no more than weigh `batch_limit` together. No more than `waiting_limit`
    elements wait, nor more than weigh `weight_limit` together, if it is given.
    `work` answers or fails each element, or raises TryAgainError to be called again, after a growing pause, for those
    that are still waited for. Any other exception fails the whole batch.
    """

    def __init__(
        self,
        work: Work[T, R],
        *,
        batch_limit: int,
        waiting_limit: int,
        weigh: Callable[[T], int] = lambda _item: 1,
        weight_limit: int | None = None,
    ) -> None:
        self._work = work
        self._weigh = weigh
        self._batch_limit = batch_limit
        self._waiting_limit = waiting_limit
        self._weight_limit = weight_limit
        self._weight = 0
        self._waiting: dict[str, Asked[T, R]] = {}
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop; whoever is unanswered by now fails."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for asked in self._waiting.values():
            asked.fail(TryAgainError("stopping"))

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, key: str, item: T) -> asyncio.Future[R]:
        """Ask for `item`. Those who ask with one key before its batch begins share one answer, never one begun before.

        Raises FullError. The future may be cancelled: nobody else notices.
        """
        asked = self._waiting.get(key)
        if asked is None:
            weight = self._weight + self._weigh(item)
            if len(self._waiting) >= self._waiting_limit or (
                self._weight_limit is not None and weight > self._weight_limit
            ):
                raise FullError
            self._weight = weight
            asked = self._waiting[key] = Asked(item)
            self._arrived.set()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        asked.futures.append(future)
        return future

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._take()
            try:
                await self._finish(batch)
            except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting
                logs.get().error("batch_failed", error=repr(error), exc_info=error)
                for asked in batch:
                    asked.fail(error)
            except asyncio.CancelledError:
                for asked in batch:
                    asked.fail(TryAgainError("stopping"))
                raise

    def _take(self) -> list[Asked[T, R]]:
        batch: list[Asked[T, R]] = []
        room = self._batch_limit
        for asked in self._waiting.values():
            weight = self._weigh(asked.item)
            if weight > room and batch:
                break
            room -= weight
            self._weight -= weight
            batch.append(asked)
        for key in list(itertools.islice(self._waiting, len(batch))):
            del self._waiting[key]
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _finish(self, batch: list[Asked[T, R]]) -> None:
        pause = FIRST_PAUSE_SECONDS
        while batch := [asked for asked in batch if asked.waited_for]:
            try:
                await self._work(batch)
            except TryAgainError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            else:
                return
