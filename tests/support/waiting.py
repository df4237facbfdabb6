"""How tests wait: for a condition, with a limit, never for a length of time that is hoped to be enough.

A thread or process that a test depends on is watched meanwhile. If it ends, each wait fails at once and names it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from msgspec import Struct

T = TypeVar("T")
Ending = BaseException | str
"""How something ended: what it raised, or a text that says so."""

_PAUSE_SECONDS = 0.01
_TAIL_CHARACTERS = 4_000


class StoppedError(Exception):
    """Something that a test depends on has stopped; the message names it and says how it ended."""


class _Watched(Struct, frozen=True):
    name: str
    ending: Callable[[], Ending | None]
    said: Callable[[], str]


_watched: list[_Watched] = []


@contextmanager
def watched(name: str, ending: Callable[[], Ending | None], said: Callable[[], str] = str) -> Iterator[None]:
    """Until the block ends, each wait fails as soon as `ending` returns how `name` ended.

    A wait that fails shows the last of what `name` has `said`.
    """
    entry = _Watched(name, ending, said)
    _watched.append(entry)
    try:
        yield
    finally:
        _watched[:] = [other for other in _watched if other is not entry]


def _stopped() -> StoppedError | None:
    for entry in _watched:
        end = entry.ending()
        if end is not None:
            error = StoppedError(f"{entry.name} has stopped: {end if isinstance(end, str) else repr(end)}")
            error.__cause__ = end if isinstance(end, BaseException) else None
            return error
    return None


def _failure(message: str) -> AssertionError:
    error = AssertionError(message)
    for entry in _watched:
        if said := entry.said().strip():
            error.add_note(f"The last of what {entry.name} said:\n{said[-_TAIL_CHARACTERS:]}")
    return error


def wait_until(condition: Callable[[], T], limit_seconds: float, why: str) -> T:
    """Return the first true value of `condition`; fail with `why` and its last value when there is none in time.

    An exception of `condition` ends the wait: a condition that may fail for a while says so itself. So does the end of
    what is watched, unless the condition holds after it.
    """
    deadline = time.monotonic() + limit_seconds
    while True:
        end = _stopped()
        value = condition()
        if value:
            return value
        if end is not None:
            raise _failure(f"waiting for: {why} (last seen: {value!r}), but {end}") from end
        if time.monotonic() > deadline:
            raise _failure(f"waited {limit_seconds:g} s in vain: {why} (last seen: {value!r})")
        time.sleep(_PAUSE_SECONDS)
