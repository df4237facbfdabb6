"""The exporter of a service sends its spans to a console, as `orderstream up` sets it up."""

from typing import Any

import pytest

from orderstream.settings import Settings
from orderstream.telemetry.ingest import exporter_headers
from orderstream.telemetry.setup import start
from orderstream.telemetry.tracing import NO_TRACE, RecordedSpan, Tracer
from tests.support.consoles import TOKEN, running_console
from tests.support.waiting import wait_until

NOWHERE = {"postgres_url": "postgresql://127.0.0.1:1/none", "kafka_brokers": "127.0.0.1:1"}


def tracing_to(endpoint: str, samples: float = 100) -> Tracer:
    given: dict[str, Any] = {"otel_exporter_otlp_endpoint": endpoint, "trace_samples_per_second": samples}
    return start("api-gateway", Settings.model_validate(given))


def place(tracer: Tracer, order_id: str) -> str:
    """Make the span of a request that places an order, and return its trace id."""
    span = tracer.server("POST /orders", NO_TRACE)
    span.set({"order.id": order_id})
    span.end()
    return span.trace_id


def test_the_spans_of_a_service_arrive_with_the_token_that_up_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", exporter_headers(TOKEN))
    with running_console(Settings.model_validate(NOWHERE)) as console:
        tracer = tracing_to(console.url)
        trace_id = place(tracer, "o-1")
        wait_until(lambda: console.get("/api/traces", orderId="o-1")["placedBy"] == trace_id, 60, "the span arrives")
        tracer.shutdown()
        assert console.get(f"/api/traces/{trace_id}")["trace"]["services"] == ["api-gateway"]


def test_without_samples_no_span_is_made() -> None:
    span = tracing_to("http://127.0.0.1:1", samples=0).server("POST /orders", NO_TRACE)
    assert not isinstance(span, RecordedSpan)
