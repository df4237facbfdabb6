"""The exporter is loaded when the first span ends, away from the thread of the orders."""

import logging
import threading

import pytest

from orderstream.telemetry import loading, logs
from orderstream.telemetry.loading import LoadingSink
from orderstream.telemetry.otlp import LOG_EVERY_SECONDS, _Seldom
from orderstream.telemetry.tracing import NO_TRACE, RecordedSpan, Tracer


class Loaded:
    """A sink that keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []
        self.shut_down = False

    def record(self, span: RecordedSpan) -> None:
        self.spans.append(span)

    def shutdown(self) -> None:
        self.shut_down = True


class Loader:
    """Loads a sink when it may."""

    def __init__(self) -> None:
        self.sink = Loaded()
        self.may_load = threading.Event()
        self.calls = 0

    def __call__(self) -> Loaded:
        self.calls += 1
        assert self.may_load.wait(10)
        return self.sink


def end_spans(tracer: Tracer, number: int) -> None:
    for _ in range(number):
        tracer.server("POST /orders", NO_TRACE).end()


def test_nothing_is_loaded_for_a_process_without_a_span() -> None:
    load = Loader()
    sink = LoadingSink(load)
    sink.shutdown()
    assert load.calls == 0


def test_spans_wait_until_the_exporter_is_loaded_and_no_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "WAITING_MAX_SPANS", 3)
    load = Loader()
    sink = LoadingSink(load)
    tracer = Tracer(sink, 100)
    end_spans(tracer, 5)
    assert load.sink.spans == []
    load.may_load.set()
    sink.shutdown()
    assert (load.calls, len(load.sink.spans), load.sink.shut_down) == (1, 3, True)
    end_spans(tracer, 2)
    assert len(load.sink.spans) == 5


def test_an_exporter_that_cannot_be_loaded_is_logged_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Loaded:
        raise ValueError("Invalid compression type")

    class Log:
        def error(self, event: str, **_fields: object) -> None:
            lines.append(event)

    lines: list[str] = []
    monkeypatch.setattr(logs, "get", Log)
    sink = LoadingSink(fail)
    tracer = Tracer(sink, 100)
    end_spans(tracer, 2)
    sink.shutdown()
    end_spans(tracer, 2)
    assert lines == ["spans_not_sent"]


def test_the_exporter_logs_one_failure_a_minute() -> None:
    now = [100.0]
    seldom = _Seldom(lambda: now[0])
    record = logging.makeLogRecord({"msg": "Transient error"})
    assert [seldom.filter(record), seldom.filter(record)] == [True, False]
    now[0] += LOG_EVERY_SECONDS
    assert [seldom.filter(record), seldom.filter(record)] == [True, False]
