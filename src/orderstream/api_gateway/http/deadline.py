"""One time limit of a connection, which moves with every request and costs a timer only now and then."""

import asyncio
import math
from collections.abc import Callable

_COARSE_SECONDS = 0.005
"""The clock of a timer is coarser than the one that is read."""


class Deadline:
    """Calls `on_expiry` once the time that was set last is over. A later time costs no new timer."""

    __slots__ = ("_at", "_fires_at", "_handle", "_loop", "_on_expiry")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expiry: Callable[[], None]) -> None:
        self._loop = loop
        self._on_expiry = on_expiry
        self._at = math.inf
        self._fires_at = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Expire in `seconds`. This replaces the time that was set before."""
        self._at = self._loop.time() + seconds
        if self._at < self._fires_at:
            self._arm()

    def clear(self) -> None:
        """Do not expire."""
        self._at = math.inf

    def close(self) -> None:
        """Do not expire, and give the timer back."""
        self._at = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._fires_at = self._at
        self._handle = self._loop.call_at(self._at, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._fires_at = math.inf
        if self._at == math.inf:
            return
        if self._at - self._loop.time() > _COARSE_SECONDS:
            self._arm()
        else:
            self._at = math.inf
            self._on_expiry()
