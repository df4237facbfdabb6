"""Knows since when a loop has not succeeded in something that it tries, and why: readiness and `status` tell it.

A hung call shows as well as a failing one, because an activity begins before its first attempt.
"""

import time
from collections.abc import Callable

STANDSTILL_SECONDS = 30.0
"""A failure that lasts no longer is a hiccup: readiness does not flap. One success ends it."""
WHY_MAX_CHARACTERS = 200


class Standstill:
    """The activities under way in one loop. The loop's thread writes, the thread of the pages reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._why: dict[str, str] = {}

    def begin(self, activity: str) -> None:
        """Note that `activity` ("published nothing") is tried. A retry does not begin it again."""
        self._since.setdefault(activity, self._clock())

    def failed(self, activity: str, error: Exception) -> None:
        """Note why the attempt failed."""
        self.begin(activity)
        self._why[activity] = " ".join(str(error).split())[:WHY_MAX_CHARACTERS]

    def succeeded(self, activity: str) -> None:
        """Note that it succeeded, or that there is nothing left to do."""
        self._since.pop(activity, None)
        self._why.pop(activity, None)

    def problem(self) -> str | None:
        """Say what has not succeeded for STANDSTILL_SECONDS, for the longest time, or return None."""
        now = self._clock()
        oldest = sorted((since, activity) for activity, since in list(self._since.items()))
        lasting = [(now - since, activity) for since, activity in oldest if now - since >= STANDSTILL_SECONDS]
        if not lasting:
            return None
        seconds, activity = lasting[0]
        why = self._why.get(activity)
        return f"has {activity} for {seconds:.0f} s" + (f": {why}" if why else "")
