"""Natural batching: while the gateway works on one batch, new calls collect for the next one.

A batch therefore grows with the load, and a single call never waits for a batch to fill. After a large batch, a batcher
may gather calls for some milliseconds, because a batch has a cost of its own. The writer, the reader, the
canceller and the lookup of idempotency keys each have a batcher. A batcher keeps no promise by itself. It limits the
number of waiting calls, the size of a batch, and the retries of a batch: a batch is retried only while callers wait.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Self, TypeVar

from orderstream.process.gathering import NO_GATHERING, Gathering
from orderstream.telemetry import logs

T = TypeVar("T")
R = TypeVar("R")

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5


class QueueFullError(Exception):
    """The queue of waiting calls is full."""


class TryAgainError(Exception):
    """The batch failed with a transient error. Callers without a result are retried."""


class PendingCall(Generic[T, R]):
    """One submitted item, with a future for each caller that waits for its result."""

    __slots__ = ("futures", "item")

    def __init__(self, item: T) -> None:
        self.item = item
        self.futures: list[asyncio.Future[R]] = []

    @property
    def has_waiters(self) -> bool:
        """Whether a caller still waits for the result."""
        return not all(future.done() for future in self.futures)

    def answer(self, result: R) -> None:
        """Give `result` to every caller that waits."""
        for future in self.futures:
            if not future.done():
                future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Raise `error` in every caller that waits."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


Work = Callable[[Sequence[PendingCall[T, R]]], Awaitable[None]]


class Batcher(Generic[T, R]):
    """Passes submitted items to `work` in batches, in the order of submission. Used as a context manager.

    `size_of` returns the size of an item (1 by default). A batch has at least one item. Its total size is at most
    `batch_limit`, unless it has one item only. At most `waiting_limit` items wait. If `waiting_size_limit` is given,
    the total size of the waiting items is limited too.
    `work` answers or fails each call. If it raises TryAgainError, the batcher calls it again after a growing pause,
    with the calls that still have waiters. Any other exception fails the whole batch.
    """

    def __init__(
        self,
        work: Work[T, R],
        *,
        batch_limit: int,
        waiting_limit: int,
        size_of: Callable[[T], int] = lambda _item: 1,
        waiting_size_limit: int | None = None,
        gathering: Gathering = NO_GATHERING,
    ) -> None:
        self._work = work
        self._size_of = size_of
        self._batch_limit = batch_limit
        self._waiting_limit = waiting_limit
        self._waiting_size_limit = waiting_size_limit
        self._gathering = gathering
        self._waiting_size = 0
        self._waiting: dict[str, PendingCall[T, R]] = {}
        self._submitted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop. Calls without a result fail with TryAgainError."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for call in self._waiting.values():
            call.fail(TryAgainError("stopping"))

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, key: str, item: T) -> asyncio.Future[R]:
        """Queue `item` and return the future of its result. Raises QueueFullError.

        Callers that submit the same key before its batch begins share one result. A caller never shares the result of
        a batch that had begun before. Cancelling the future does not affect the other callers.
        """
        call = self._waiting.get(key)
        if call is None:
            size = self._waiting_size + self._size_of(item)
            if len(self._waiting) >= self._waiting_limit or (
                self._waiting_size_limit is not None and size > self._waiting_size_limit
            ):
                raise QueueFullError
            self._waiting_size = size
            call = self._waiting[key] = PendingCall(item)
            self._submitted.set()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        call.futures.append(future)
        return future

    async def _run(self) -> None:
        while True:
            await self._submitted.wait()
            batch = self._take_batch()
            try:
                await self._finish(batch)
            except Exception as error:  # noqa: BLE001 - after any error, no caller may be left waiting
                logs.get().error("batch_failed", error=repr(error), exc_info=error)
                for call in batch:
                    call.fail(error)
            except asyncio.CancelledError:
                for call in batch:
                    call.fail(TryAgainError("stopping"))
                raise
            if gathering_seconds := self._gathering.seconds(len(batch)):
                await asyncio.sleep(gathering_seconds)

    def _take_batch(self) -> list[PendingCall[T, R]]:
        batch: list[PendingCall[T, R]] = []
        room = self._batch_limit
        for call in self._waiting.values():
            size = self._size_of(call.item)
            if size > room and batch:
                break
            room -= size
            self._waiting_size -= size
            batch.append(call)
        for key in list(itertools.islice(self._waiting, len(batch))):
            del self._waiting[key]
        if not self._waiting:
            self._submitted.clear()
        return batch

    async def _finish(self, batch: list[PendingCall[T, R]]) -> None:
        pause = FIRST_PAUSE_SECONDS
        while batch := [call for call in batch if call.has_waiters]:
            try:
                await self._work(batch)
            except TryAgainError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            else:
                return
