"""Sends recorded spans to a collector by OTLP over HTTP, in the background. Only this module loads OpenTelemetry.

A dead, hung or slow collector does not slow down orders. The queue is bounded and drops spans. One thread waits for the
collector. At its end, the process waits two seconds at most.
"""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from orderstream.telemetry.tracing import ParentSpan, RecordedSpan

QUEUE_MAX_SPANS = 4_096
BATCH_MAX_SPANS = 512
SEND_EVERY_SECONDS = 1.0
EXPORT_TIMEOUT_SECONDS = 3.0
SHUTDOWN_SECONDS = 2.0
LOG_EVERY_SECONDS = 60.0

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)
_SCOPE = InstrumentationScope("orderstream")


class _Seldom(logging.Filter):
    """Passes one record a minute. While no collector listens, the exporter logs each of its attempts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + LOG_EVERY_SECONDS
        return super().filter(record)


_EXPORTER_LOG = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")


class _Direct(requests.Session):
    """An HTTP session that uses no proxy and ignores HTTP_PROXY and ALL_PROXY. Certificates are found as usual."""

    def merge_environment_settings(self, *arguments: Any) -> Any:
        """Return the settings of one request, without proxies."""
        return {**super().merge_environment_settings(*arguments), "proxies": {}}


def is_loopback(url: str) -> bool:
    """Say whether `url` names this machine. A proxy cannot be used then: it would connect to its own machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class OtlpSink:
    """Sends the spans of one service to the collector whose base URL is `endpoint`. Appends `/v1/traces`."""

    def __init__(self, service: str, endpoint: str) -> None:
        if not any(isinstance(known, _Seldom) for known in _EXPORTER_LOG.filters):
            _EXPORTER_LOG.addFilter(_Seldom())
        self._resource = Resource.create({SERVICE_NAME: service})
        self._exporter = OTLPSpanExporter(
            endpoint=f"{endpoint.rstrip('/')}/v1/traces",
            timeout=EXPORT_TIMEOUT_SECONDS,
            session=_Direct() if is_loopback(endpoint) else None,
        )
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE_MAX_SPANS,
            schedule_delay_millis=SEND_EVERY_SECONDS * 1_000,
            max_export_batch_size=BATCH_MAX_SPANS,
        )

    def record(self, span: RecordedSpan) -> None:
        """Queue a span. Drops the oldest span when the queue is full. Never blocks, never raises."""
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_own_context(span),
                parent=None if span.parent is None else _context(span.parent),
                resource=self._resource,
                attributes=span.attributes,
                links=[Link(_context(linked)) for linked in span.links],
                kind=SpanKind[span.kind],
                status=Status(StatusCode.ERROR, span.error) if span.error is not None else Status(),
                start_time=span.started_ns,
                end_time=span.ended_ns,
                instrumentation_scope=_SCOPE,
            )
        )

    def shutdown(self) -> None:
        """Send the queued spans, for two seconds at most.

        The SDK waits up to 30 s for its own thread, which may hang in a request. Therefore another thread waits for the
        SDK, and the exporter stops its retries after two seconds. Both threads are daemons and end with the process.
        """
        waiter = threading.Thread(target=self._processor.shutdown, name="otlp-shutdown", daemon=True)
        waiter.start()
        waiter.join(SHUTDOWN_SECONDS)
        if waiter.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _own_context(span: RecordedSpan) -> SpanContext:
    state = span.parent.tracestate if span.parent else None
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), False, _SAMPLED, _trace_state(state))


def _context(span: ParentSpan) -> SpanContext:
    flags = _SAMPLED if span.sampled else _UNSAMPLED
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), True, flags, _trace_state(span.tracestate))


def _trace_state(tracestate: str | None) -> TraceState | None:
    return TraceState.from_header([tracestate]) if tracestate else None
