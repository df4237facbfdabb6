"""How tests wait: for a condition, with a limit, never for a length of time that is hoped to be enough."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE_SECONDS = 0.01


def wait_until(condition: Callable[[], T], limit_seconds: float, why: str) -> T:
    """Return the first true value of `condition`; fail with `why` and its last value when there is none in time.

    An exception of `condition` ends the wait: a condition that may fail for a while says so itself.
    """
    deadline = time.monotonic() + limit_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_seconds:g} s in vain: {why} (last seen: {value!r})")
        time.sleep(_PAUSE_SECONDS)
