"""Waits of tests: for a condition, with a time limit, never for a fixed time.

A test can watch the threads and processes that it depends on. If one ends, each wait fails at once and names it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from msgspec import Struct

T = TypeVar("T")
Ending = BaseException | str
"""How a watched thread or process ended: its exception, or a text."""

_PAUSE_SECONDS = 0.01
_TAIL_CHARACTERS = 4_000


class StoppedError(Exception):
    """A thread or process that a test depends on has ended. The message names it and says how it ended."""


class _Watched(Struct, frozen=True):
    name: str
    ending: Callable[[], Ending | None]
    said: Callable[[], str]


_watched: list[_Watched] = []


@contextmanager
def watched(name: str, ending: Callable[[], Ending | None], said: Callable[[], str] = str) -> Iterator[None]:
    """Until the block ends, each wait fails as soon as `ending` returns how `name` ended.

    A wait that fails shows the end of the output `said` of `name`.
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
            error.add_note(f"The end of the output of {entry.name}:\n{said[-_TAIL_CHARACTERS:]}")
    return error


def wait_until(condition: Callable[[], T], limit_seconds: float, why: str) -> T:
    """Return the first true value of `condition`. Without one in time, fail with `why` and the last value.

    `why` says what the test waits for. An exception of `condition` ends the wait. The end of a watched thread or
    process also ends it, unless the condition is true afterwards.
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
            raise _failure(f"not within {limit_seconds:g} s: {why} (last seen: {value!r})")
        time.sleep(_PAUSE_SECONDS)
