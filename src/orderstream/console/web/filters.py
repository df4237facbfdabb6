"""How pages write times, ages, amounts and numbers. The server formats them, so that every page agrees."""

from datetime import UTC, datetime
from decimal import Decimal

CUT_CHARACTERS = 2_000


def time_of_day(moment: datetime | None) -> str:
    """Return for example `10:32:07.123`, in UTC."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]


def clock(moment: datetime) -> str:
    """Return for example `10:32:07`, in UTC."""
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def since(moment: datetime, now: datetime) -> str:
    """Return how long ago a time was, or in how long it will be: `now`, `12 s ago`, `in 3 min`."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{age(seconds)} ago" if seconds > 0 else f"in {age(-seconds)}"


def full_time(moment: datetime | None) -> str:
    """Return for example `2026-11-26 10:32:07.123 UTC`."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def iso_time(moment: datetime | None) -> str:
    """Return the time for the attribute `datetime` of a page."""
    return "" if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(seconds: float | None) -> str:
    """Return for example `350 ms`, `12 s`, `3 min`, `2 h` or `5 d`."""
    if seconds is None:
        return ""
    if abs(seconds) < 1:
        return f"{seconds * 1_000:.0f} ms"
    for limit, unit_seconds, unit in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def money(amount: Decimal | str | None, currency: str = "") -> str:
    """Return an exact amount with its currency, for example `1,290.00 EUR`."""
    return "" if amount is None else f"{Decimal(amount):,f} {currency}".rstrip()


def number(value: float | None) -> str:
    """Return a number with thousands separators. Numbers below 10 that are not whole have one digit."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:,.1f}"


def size(count: int | None) -> str:
    """Return a number of bytes, for example `12 B`, `3.4 KiB` or `5.6 MiB`."""
    if count is None:
        return ""
    if count < 1_024:
        return f"{count} B"
    return f"{count / 1_024:,.1f} KiB" if count < 1_024**2 else f"{count / 1_024**2:,.1f} MiB"


def cut(text: str, most: int = CUT_CHARACTERS) -> str:
    """Return the text, or its beginning and the number of characters that are not shown."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
