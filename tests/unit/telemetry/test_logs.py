"""The form of a log line, from OrderStream or from a library, and lines that repeat or cannot be written."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from orderstream.settings import Settings
from orderstream.telemetry import logs


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Broken(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level = list(root.handlers), root.level
    yield
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configure(**settings: str) -> None:
    logs.configure("order-service", Settings.model_validate({"log_format": "json"} | settings))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object_with_time_level_service_and_event_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logs.get().bind(order_id="o-1").info("order_settled", trace_id="t-1", text="two\nlines \ud800", exact=1.5)
    (line,) = lines(capsys)
    assert list(line)[:4] == ["timestamp", "level", "service", "event"]
    assert line["timestamp"].endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])).total_seconds()) < 60
    assert line | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "service": "order-service",
        "event": "order_settled",
        "order_id": "o-1",
        "trace_id": "t-1",
        "text": "two\nlines \ud800",
        "exact": 1.5,
    }


def test_order_and_trace_can_be_bound_to_all_lines_of_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    with structlog.contextvars.bound_contextvars(order_id="o-1", trace_id="t-1"):
        logs.get().info("inside")
    logs.get().info("outside")
    inside, outside = lines(capsys)
    assert (inside["order_id"], inside["trace_id"]) == ("o-1", "t-1")
    assert "order_id" not in outside


def test_lines_below_the_log_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_level="warning")
    logs.get().info("quiet")
    logging.getLogger("library.errors").info("quiet")
    logs.get().warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_an_exception_is_a_field_of_a_single_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    try:
        raise LookupError("o-1")
    except LookupError:
        logs.get().exception("batch_failed")
    (line,) = lines(capsys)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("LookupError: o-1")


def test_lines_of_libraries_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logging.getLogger("library.errors").warning("port %d is taken", 3000)
    logging.getLogger("odd").log(35, "between the levels")
    logging.getLogger("wrong").error("%d", "not a number")
    assert [(line["event"], line["level"], line["message"]) for line in lines(capsys)] == [
        ("library.errors", "warning", "port 3000 is taken"),
        ("odd", "warning", "between the levels"),
        ("wrong", "error", "%d ('not a number',)"),
    ]


def test_python_warnings_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines(capsys)
    assert line["event"] == "py.warnings"
    assert "DeprecationWarning: old" in line["message"]


def test_an_uncaught_exception_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure()

    def fail() -> None:
        raise LookupError("o-1")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    error = ValueError("top")
    sys.excepthook(ValueError, error, None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    in_thread, on_top = lines(capsys)
    assert (in_thread["event"], on_top["event"]) == ("crashed", "crashed")
    assert in_thread["exception"].endswith("LookupError: o-1")
    assert on_top["exception"].endswith("ValueError: top")


def test_a_line_that_cannot_be_written_raises_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    configure()
    logs.get().error("into_the_void")
    logging.getLogger("library.errors").error("into the void")


def test_the_console_format_is_text_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="console")
    logs.get().info("order_settled", order_id="o-1")
    written = capsys.readouterr().err
    assert "order_settled" in written
    assert "order_id=o-1" in written
    assert "\x1b" not in written


def test_auto_is_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="auto")
    logs.get().info("order_settled")
    assert lines(capsys)[0]["event"] == "order_settled"


def kept(repeats: logs.RepeatLimit, times: int, **line: str) -> list[dict[str, Any]]:
    written = []
    for _ in range(times):
        try:
            written.append(dict(repeats(None, "", dict(line))))
        except structlog.DropEvent:
            continue
    return written


def test_a_warning_that_repeats_is_written_a_few_times_and_then_counted() -> None:
    clock = Clock()
    repeats = logs.RepeatLimit(clock)
    assert len(kept(repeats, 1_000, level="warning", event="cache_unreachable")) == logs.REPEATS_MAX
    assert len(kept(repeats, 1_000, level="warning", event="kafka_unreachable")) == logs.REPEATS_MAX
    clock.now = logs.REPEATS_SECONDS
    first, second = kept(repeats, 2, level="warning", event="cache_unreachable")
    assert first["left_out"] == 1_000 - logs.REPEATS_MAX
    assert "left_out" not in second


def test_messages_of_a_library_are_counted_by_their_template() -> None:
    repeats = logs.RepeatLimit(Clock())
    assert len(kept(repeats, 100, level="error", event="otel", template="Failed %s")) == logs.REPEATS_MAX
    (line,) = kept(repeats, 1, level="error", event="otel", template="Queue full")
    assert "template" not in line


def test_a_line_that_is_not_a_warning_is_always_written() -> None:
    assert len(kept(logs.RepeatLimit(Clock()), 1_000, level="info", event="started", template="x")) == 1_000


def test_the_number_of_remembered_names_is_limited() -> None:
    clock = Clock()
    repeats = logs.RepeatLimit(clock)
    for number in range(3 * logs.NAMES_MAX):
        assert kept(repeats, 1, level="warning", event=f"event_{number}")
    assert len(repeats._written) <= logs.NAMES_MAX
