"""Loads OpenTelemetry in the background, when the first span ends. It takes 10 MB, and 0.15 s of a processor.

A process therefore starts as fast with a collector as without one. The spans that end meanwhile wait.
"""

import threading
from collections import deque
from collections.abc import Callable

from orderstream.telemetry import logs
from orderstream.telemetry.tracing import RecordedSpan, Sink

WAITING_MAX_SPANS = 4_096
"""Spans that wait until OpenTelemetry is loaded. Beyond it, the oldest is dropped."""
LOAD_SECONDS = 2.0
"""How long the end of the process waits until OpenTelemetry is loaded."""


class LoadingSink:
    """A sink that makes another one when it gets its first span, and passes all spans on to it."""

    def __init__(self, load: Callable[[], Sink]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._waiting: deque[RecordedSpan] = deque(maxlen=WAITING_MAX_SPANS)
        self._thread: threading.Thread | None = None
        self._sink: Sink | None = None

    def record(self, span: RecordedSpan) -> None:
        """Pass a span on, or keep it until OpenTelemetry is loaded."""
        if self._sink is None:
            with self._lock:
                if self._sink is None:
                    self._waiting.append(span)
                    if self._thread is None:
                        self._thread = threading.Thread(target=self._start, name="otlp-load", daemon=True)
                        self._thread.start()
                    return
        self._sink.record(span)

    def shutdown(self) -> None:
        """Send the queued spans, if there were any. Waits LOAD_SECONDS at most until OpenTelemetry is loaded."""
        if self._thread is not None:
            self._thread.join(LOAD_SECONDS)
        if self._sink is not None:
            self._sink.shutdown()

    def _start(self) -> None:
        try:
            sink = self._load()
        except Exception as error:  # noqa: BLE001 - a wrong variable of OpenTelemetry must not stop a service
            logs.get().error("spans_not_sent", exc_info=error)
            return
        with self._lock:
            for span in self._waiting:
                sink.record(span)
            self._waiting.clear()
            self._sink = sink
