"""Knows which activities of a loop have not succeeded for 30 s, and why. `/readyz` and `status` report it.

A hung call is reported like a failing call, because an activity begins before its first attempt.
"""

import time
from collections.abc import Callable

NOT_READY_AFTER_SECONDS = 30.0
"""A shorter failure is not reported, so that readiness does not flap. One success ends the failure."""
WHY_MAX_CHARACTERS = 200


class Readiness:
    """The activities in progress in one loop. Each activity is written by one thread. Any thread may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._why: dict[str, str] = {}

    def begin(self, activity: str) -> None:
        """Note the first attempt of `activity`, such as "published nothing". A retry does not begin it again."""
        self._since.setdefault(activity, self._clock())

    def failed(self, activity: str, error: Exception) -> None:
        """Note why an attempt failed."""
        self.begin(activity)
        self._why[activity] = " ".join(str(error).split())[:WHY_MAX_CHARACTERS]

    def succeeded(self, activity: str) -> None:
        """Note that the activity succeeded, or that there is nothing left to do."""
        self._since.pop(activity, None)
        self._why.pop(activity, None)

    def problem(self) -> str | None:
        """Describe the activity without success for the longest time; None if that is below NOT_READY_AFTER_SECONDS."""
        now = self._clock()
        oldest = sorted((since, activity) for activity, since in list(self._since.items()))
        lasting = [(now - since, activity) for since, activity in oldest if now - since >= NOT_READY_AFTER_SECONDS]
        if not lasting:
            return None
        seconds, activity = lasting[0]
        why = self._why.get(activity)
        return f"has {activity} for {seconds:.0f} s" + (f": {why}" if why else "")
