"""Limits the time of many requests with one timer. A timer for each request would cost more than reading its order.

All calls have the same limit, so they reach it in the order in which they began.
"""

import asyncio
from collections import deque
from types import TracebackType
from typing import Self


class LimitedCall:
    """A context manager, which raises TimeoutError when the limit has passed, as `asyncio.timeout` does."""

    __slots__ = ("_cancel_requests", "_expired", "_task", "ends_at")

    def __init__(self, task: "asyncio.Task[object]", ends_at: float) -> None:
        self._task: asyncio.Task[object] | None = task
        self._cancel_requests = task.cancelling()
        self._expired = False
        self.ends_at = ends_at

    @property
    def has_ended(self) -> bool:
        """Whether the block has ended."""
        return self._task is None

    def expire(self) -> None:
        """Cancel the block."""
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Turn the cancellation by `expire` into a TimeoutError, unless the task was cancelled for another reason."""
        task, self._task = self._task, None
        if self._expired and task is not None:
            others = task.uncancel() > self._cancel_requests
            if not others and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error


class TimeLimit:
    """A time limit in seconds for any number of calls."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: deque[LimitedCall] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def call(self) -> LimitedCall:
        """Begin a call of the running task. Use it as a context manager at once."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        call = LimitedCall(task, loop.time() + self._seconds)
        self._drop_ended()
        self._calls.append(call)
        if self._timer is None:
            self._timer = loop.call_at(call.ends_at, self._check, loop)
        return call

    def _drop_ended(self) -> None:
        """Free the oldest calls that have ended. Calls end almost in the order in which they began."""
        while self._calls and self._calls[0].has_ended:
            self._calls.popleft()

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Expire the calls that have reached the limit, and check again when the next one does."""
        self._timer = None
        now = loop.time()
        while self._calls and (self._calls[0].has_ended or self._calls[0].ends_at <= now):
            self._calls.popleft().expire()
        if self._calls:
            self._timer = loop.call_at(self._calls[0].ends_at, self._check, loop)
