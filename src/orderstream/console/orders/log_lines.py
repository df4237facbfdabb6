"""Finds the log lines of one order in the log files of the local stack. Reads a limited part from the end of each."""

import os
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

FILE_MAX_BYTES = 2 << 20
"""Bytes that are read from the end of each log file."""
FILES_MAX = 40
LINES_MAX = 200
"""Lines that are returned: the newest."""
LINE_MAX_BYTES = 64 << 10
"""A longer line is left out."""
FIELDS_MAX = 30
VALUE_MAX_CHARACTERS = 1_000
_SERVICE = re.compile(r"[a-z0-9.-]{1,60}")


class LogLine(Struct, frozen=True, kw_only=True, rename="camel"):
    """A log line of the order. `fields` are its details, as text."""

    at: datetime
    level: str
    service: str
    event: str
    trace_id: str | None
    fields: dict[str, str]
    file: str


class LogSearch(Struct, frozen=True, rename="camel"):
    """The log lines of an order, the oldest first, and what the search left out.

    `isAvailable` is false if this console does not know the log files, because it does not belong to a local stack.
    """

    is_available: bool
    lines: Sequence[LogLine] = ()
    left_out: int = 0
    """Lines before the first that is returned."""
    cut_files: Sequence[str] = ()
    """Log files of which only the last `FILE_MAX_BYTES` were searched."""


NO_LOGS = LogSearch(is_available=False)


def find_lines(folder: Path, words: Collection[str]) -> LogSearch:
    """Return the lines of `folder`/*.log that have one of `words` as a whole word: an order id or a trace id."""
    pattern = re.compile(
        rb"(?<![0-9A-Za-z-])(?:" + b"|".join(re.escape(word.encode()) for word in words) + rb")(?![0-9A-Za-z-])"
    )
    found: list[LogLine] = []
    cut = []
    for path in sorted(folder.glob("*.log"))[:FILES_MAX]:
        text, is_cut = _end_of(path)
        if is_cut:
            cut.append(path.name)
        seen = -1
        for match in pattern.finditer(text):
            if match.start() < seen:
                continue
            begin, seen = text.rfind(b"\n", 0, match.start()) + 1, text.find(b"\n", match.end())
            if seen < 0:
                break
            if seen - begin <= LINE_MAX_BYTES and (line := _line(text[begin:seen], path.name)) is not None:
                found.append(line)
    found.sort(key=lambda line: line.at)
    return LogSearch(
        is_available=True, lines=found[-LINES_MAX:], left_out=max(0, len(found) - LINES_MAX), cut_files=cut
    )


def _end_of(path: Path) -> tuple[bytes, bool]:
    """Return the end of a file from the first whole line on, and whether its beginning is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - FILE_MAX_BYTES))
            text = file.read(FILE_MAX_BYTES)
    except OSError:
        return b"", False
    if size <= FILE_MAX_BYTES:
        return text, False
    return text[text.find(b"\n") + 1 :], True


def _line(text: bytes, file: str) -> LogLine | None:
    """Return a line that is a JSON object with a time, or None for any other line."""
    try:
        members = msgspec.json.decode(text, type=dict[str, Any])
        at = msgspec.convert(members.pop("timestamp", None), datetime)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if at.tzinfo is None:
        return None
    named = {name: str(members.pop(name, "")) for name in ("level", "service", "event")}
    trace_id = members.get("trace_id")
    service = named["service"] if _SERVICE.fullmatch(named["service"]) else file.removesuffix(".log")
    return LogLine(
        at=at,
        level=named["level"][:20],
        service=service,
        event=named["event"][:200],
        trace_id=trace_id if isinstance(trace_id, str) and re.fullmatch("[0-9a-f]{32}", trace_id) else None,
        fields={name[:100]: _cut(_text(value)) for name, value in list(members.items())[:FIELDS_MAX]},
        file=file,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _cut(text: str) -> str:
    more = len(text) - VALUE_MAX_CHARACTERS
    return text if more <= 0 else f"{text[:VALUE_MAX_CHARACTERS]}… {more:,} more characters"
