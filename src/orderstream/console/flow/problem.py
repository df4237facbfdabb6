"""One problem of the overview, and the texts that the rules share: times, ages and numbers in words."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from orderstream.audit.under_way import Backlog
from orderstream.console.flow.snapshot import Snapshot
from orderstream.console.flow.source import Reading
from orderstream.local.backlog import COUNTED_MAX

Severity = Literal["error", "warning", "notice"]
RECOVERED_SECONDS = 60.0
"""For how long the overview says that a server answers again."""
SILENCE_MIN_SECONDS = 2.0
"""A shorter silence is not mentioned."""


class Problem(Struct, frozen=True, rename="camel"):
    """One thing that is wrong: what, what it means for orders, and what to do."""

    severity: Severity
    subject: str
    text: str
    effect: str
    advice: str
    since: datetime | None = None
    link: str | None = None


def silence_text(now: Snapshot, reading: Reading[Any], name: str, since: float) -> str:
    """Return since when a server has not answered."""
    if reading.answered_at is None:
        return f"{name} has not answered since the console started at {said(now, since)}."
    return f"{name} has not answered since {said(now, since)}."


def answers_again(now: Snapshot, reading: Reading[Any], name: str, effect: str) -> Iterator[Problem]:
    """Say for a moment that a server answers again."""
    at = reading.recovered_at
    if at is None or now.now - at > RECOVERED_SECONDS or reading.silence_seconds < SILENCE_MIN_SECONDS:
        return
    text = f"{name} has answered again since {said(now, at)}. It was silent for {duration(reading.silence_seconds)}."
    yield Problem("notice", name.lower(), text, effect, "You do not need to do anything.", now.time_of(at))


def start_advice(server: str, now: Snapshot) -> str:
    """Return who starts a server again."""
    if now.local:
        return f"The local stack restarts {server} by itself."
    return f"Start {server} again, or find out why it does not answer."


def is_silent(reading: Reading[Any], now: Snapshot) -> bool:
    """Return whether a server does not answer."""
    return reading.silent_from(now.now) is not None


def said(now: Snapshot, monotonic: float) -> str:
    """Return a time of day, with its date if that is not today."""
    at = now.time_of(monotonic)
    return at.strftime("%H:%M:%S" if at.date() == now.at.date() else "%Y-%m-%d %H:%M")


def counted(backlog: Backlog | None, what: str) -> str:
    """Return for example `: 12 events, the oldest for 3 s`, or nothing."""
    if backlog is None or backlog.oldest_seconds is None:
        return ""
    return f": {number(backlog)} {what}, the oldest for {duration(backlog.oldest_seconds)}"


def number(backlog: Backlog) -> str:
    """Return the number of rows of a backlog."""
    return limited(backlog.number)


def limited(number: int) -> str:
    """Return a number, or that it is at the limit of the count."""
    return f"{COUNTED_MAX:,} or more" if number >= COUNTED_MAX else f"{number:,}"


def duration(seconds: float) -> str:
    """Return an age, for example `3 s`, `5 min` or `2 h`."""
    whole = int(max(0.0, seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7_200 else f"{whole // 3_600} h"
