"""A time limit that moves with every request. A move to a later time needs no new timer."""

import asyncio
import math
from collections.abc import Callable

_TIMER_RESOLUTION_SECONDS = 0.005
"""A timer of the event loop may fire this much before the loop's clock reaches the time."""


class Deadline:
    """Calls `on_expiry` when the time that was set last has passed."""

    __slots__ = ("_at", "_handle", "_loop", "_on_expiry", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expiry: Callable[[], None]) -> None:
        self._loop = loop
        self._on_expiry = on_expiry
        self._at = math.inf
        self._timer_at = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Expire in `seconds`. This replaces the time that was set before."""
        self._at = self._loop.time() + seconds
        if self._at < self._timer_at:
            self._start_timer()

    def clear(self) -> None:
        """Do not expire until the next `set`."""
        self._at = math.inf

    def close(self) -> None:
        """Do not expire any more, and cancel the timer."""
        self._at = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _start_timer(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._timer_at = self._at
        self._handle = self._loop.call_at(self._at, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._timer_at = math.inf
        if self._at == math.inf:
            return
        if self._at - self._loop.time() > _TIMER_RESOLUTION_SECONDS:
            self._start_timer()
        else:
            self._at = math.inf
            self._on_expiry()
