"""Sets up logging for every process: one JSON object a line on stderr, or readable text on a terminal.

`event` is a stable name, never a sentence. Details are fields of their own, such as `order_id` and `trace_id`. Log
records of libraries that use the standard library have the same form. A repeated warning is written a few times and
then only counted, so that an outage does not fill the disk.
"""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from orderstream.settings import Settings

REPEATS_MAX = 10
"""Number of times that one warning is written within `REPEATS_SECONDS`. The next line says how many were dropped."""
REPEATS_SECONDS = 10.0
NAMES_MAX = 1_000

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
_FIRST = ("timestamp", "level", "service", "event")


def get() -> FilteringBoundLogger:
    """Return the logger: `get().warning("cache_unreachable", error=str(error))`. May be called before `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger())


class RepeatLimit:
    """Drops a warning or error if its event was written `REPEATS_MAX` times within `REPEATS_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may log while its thread holds the lock
        self._written: dict[str, tuple[float, int]] = {}

    def __call__(self, _logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        """Return `line`, with the number of dropped lines of the same event before it. Raises DropEvent to drop it."""
        template = line.pop("template", "")
        if line["level"] not in ("warning", "error", "critical"):
            return line
        key = f"{line['event']} {template}"
        with self._lock:
            now = self._clock()
            since, count = self._written.get(key, (now, 0))
            if now - since >= REPEATS_SECONDS:
                since, count, left_out = now, 0, count - REPEATS_MAX
            else:
                left_out = 0
            if key not in self._written and len(self._written) >= NAMES_MAX:
                self._written.clear()
            self._written[key] = (since, count + 1)
        if count >= REPEATS_MAX:
            raise structlog.DropEvent
        if left_out > 0:
            line["left_out"] = left_out
        return line


def configure(service: str, settings: Settings) -> None:
    """Set up logging for the whole process.

    An uncaught exception in any thread is logged as the event `crashed`.
    """
    level = getattr(logging, settings.log_level.upper())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_service(service),
        RepeatLimit(),
    ]
    # A plain traceback. The traceback of `rich` shows local variables, which may hold passwords.
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_serialize)]
    )
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(level, logging.INFO), handlers=[_ToStructlog()], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _crashed
    threading.excepthook = lambda thread: _crashed(thread.exc_type, thread.exc_value, thread.exc_traceback)


class _Lines:
    """Writes finished lines. Drops a line that it cannot write, so that a full disk or a closed pipe stops no order.

    Python raises RuntimeError when a signal handler writes while its thread writes a line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._stream.write(text + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


class _ToStructlog(logging.Handler):
    """Converts log records of the standard library: `event` is the logger's name, `message` is the text."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max((level for level in _LEVELS if level <= record.levelno), default=logging.DEBUG)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} {record.args}"
        fields: dict[str, Any] = {"message": message, "template": str(record.msg)}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        structlog.get_logger().log(level, record.name, **fields)


def _name_service(service: str) -> Processor:
    def name(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        line["service"] = service
        return line

    return name


def _serialize(line: EventDict, **_options: Any) -> str:
    ordered = {key: line.pop(key) for key in _FIRST if key in line}
    ordered.update(line)
    return json.dumps(ordered, default=str, skipkeys=True)


def _crashed(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    get().critical("crashed", exc_info=(kind, error, trace))
