"""The time of the next row that this process knows to be due, so that its timer sleeps until then (P5).

A timer also runs at its interval. It then finds the rows that a process has left which is no longer running.
"""

import math
import threading
from collections.abc import Callable


class DueTime:
    """A time of the process's clock. Any thread may use it. `wake` wakes the thread of the timers."""

    def __init__(self, clock: Callable[[], float], wake: Callable[[], object]) -> None:
        self._clock = clock
        self._wake = wake
        self._lock = threading.Lock()
        self._at = math.inf

    @property
    def at(self) -> float:
        """The noted time; infinity if there is none."""
        return self._at

    def note(self, seconds: float) -> None:
        """Note that a row is due in `seconds`. Call this after its commit."""
        at = self._clock() + seconds
        with self._lock:
            is_earlier = at < self._at
            if is_earlier:
                self._at = at
        if is_earlier:
            self._wake()

    def take(self) -> None:
        """Forget the noted time. Call this before looking for due rows, so that no later note is lost."""
        with self._lock:
            self._at = math.inf
