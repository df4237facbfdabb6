"""Reads the log of a process of the local stack piece by piece, with filters. Each read looks at a limited part."""

import re
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from orderstream.local.processes.masking import masked

READ_MAX_BYTES = 256 * 1024
"""Bytes of a log that one read looks at."""
LINES_DEFAULT = 200
LINES_MAX = 1_000
LINE_MAX_CHARACTERS = 2_000

Level = Literal["debug", "info", "warning", "error"]
_ORDER = {"debug": 0, "trace": 0, "info": 1, "log": 1, "notice": 1, "warning": 2, "warn": 2, "error": 3, "critical": 3}
_ORDER |= {"fatal": 3, "panic": 3}
_SHOWN: tuple[Level, ...] = ("debug", "info", "warning", "error")
_LEVEL = re.compile(r"\b(DEBUG|TRACE|INFO|LOG|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL|PANIC)\b")
_LEVEL_PLACE_CHARACTERS = 120
_ORDER_ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")


class LogLine(Struct, frozen=True, rename="camel"):
    """One line. `offset` is its place in the file. `more` is the number of characters that are not shown."""

    offset: int
    text: str
    more: int
    level: Level
    order_id: str | None
    trace_id: str | None


class LogPart(Struct, frozen=True, rename="camel"):
    """Lines of a log that match. `next` is the offset after them, from which to go on.

    The read looked at the bytes from `begin` to `next`. `size` is the size of the file. `isFromStart` means that the
    file was shorter than the given offset, because the stack began a new log. The read began at its start then.
    """

    lines: list[LogLine]
    begin: int
    next: int
    size: int
    is_from_start: bool = False


def log_part(
    log: Path, offset: int | None = None, *, limit: int = LINES_DEFAULT, level: Level | None = None, text: str = ""
) -> LogPart:
    """Return the first `limit` lines that match from `offset` on; without an offset, the last ones of the file.

    `level` is the least severe level, `text` a part of the line in any case. A missing file is empty.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            is_from_start = offset is not None and offset > size
            begin = max(0, size - READ_MAX_BYTES) if offset is None else 0 if is_from_start else offset
            file.seek(max(0, begin - 1))
            content = file.read(min(READ_MAX_BYTES, size - begin) + min(begin, 1))
    except FileNotFoundError:
        return LogPart([], 0, 0, 0)
    if begin > 0:
        # Begin with a whole line: the byte before it is a line feed.
        cut = content.find(b"\n") + 1 or 1
        begin, content = begin - 1 + cut, content[cut:]
    whole = content.rfind(b"\n") + 1
    if not whole and len(content) >= READ_MAX_BYTES:
        whole = len(content)  # one line longer than a whole read: its parts are lines
    found: list[LogLine] = []
    at = begin
    for raw in content[:whole].splitlines(keepends=True):
        following = at + len(raw)
        line = _line(at, raw.decode(errors="replace").rstrip("\r\n"))
        if _matches(line, raw.decode(errors="replace"), level, text):
            if offset is not None and len(found) == limit:
                return LogPart(found, begin, at, size, is_from_start)
            found.append(line)
        at = following
    return LogPart(found[-limit:] if offset is None else found, begin, at, size, is_from_start)


def _matches(line: LogLine, whole: str, level: Level | None, text: str) -> bool:
    if level is not None and _ORDER[line.level] < _ORDER[level]:
        return False
    # A search in what is masked would tell a reader, by trying texts, what is behind the mask.
    return not text or text.casefold() in masked(whole).casefold()


def _line(offset: int, text: str) -> LogLine:
    fields = _fields(text)
    named = str(fields.get("level", ""))
    if named not in _ORDER:
        found = _LEVEL.search(text[:_LEVEL_PLACE_CHARACTERS])
        named = found[1].lower() if found else "info"
    order_id = fields.get("order_id")
    if not isinstance(order_id, str) or not _ORDER_ID.fullmatch(order_id):
        match = _ORDER_ID.search(text)
        order_id = match[0] if match else None
    trace_id = fields.get("trace_id")
    shown = masked(text)
    return LogLine(
        offset,
        shown[:LINE_MAX_CHARACTERS],
        max(0, len(shown) - LINE_MAX_CHARACTERS),
        _SHOWN[_ORDER[named]],
        order_id,
        trace_id if isinstance(trace_id, str) and _TRACE_ID.fullmatch(trace_id) else None,
    )


def _fields(text: str) -> dict[str, Any]:
    """Return the members of a line that is a JSON object, otherwise none."""
    if not text.startswith("{"):
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
