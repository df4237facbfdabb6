"""Spans as OTLP protobuf over HTTP, and collectors that fail in every way without delaying an order."""

import socket
import time
from collections.abc import Iterator

import pytest

from orderstream.settings import Settings
from orderstream.telemetry import otlp
from orderstream.telemetry.setup import start
from orderstream.telemetry.tracing import NO_TRACE, TraceContext, Tracer
from tests.support import collector
from tests.support.collector import Behaviour, Collector, roots

GRACE_SECONDS = 10.0
"""The time that a busy machine may add to a limit."""

EXPORT_SECONDS = 60.0
"""The time limit of an export in tests that show that nothing waits for it."""

CLIENT: TraceContext = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1,other=2")


@pytest.fixture
def answering() -> Iterator[Collector]:
    with collector.running() as running:
        yield running


def tracing_to(endpoint: str, service: str, **settings: str) -> Tracer:
    given = {"otel_exporter_otlp_endpoint": endpoint, "trace_samples_per_second": 100_000} | settings
    return start(service, Settings.model_validate(given))


def follow_one_order(tracers: dict[str, Tracer], client: TraceContext) -> str:
    """Make the spans of one order in three processes, and return its trace id."""
    request = tracers["api-gateway"].server("POST /orders", client)
    request.set({"order.id": "o-1", "http.response.status_code": 201})
    request.end()
    sent = tracers["outbox-relay"].publish("order.created.v1", "order.created", "o-1", request.context)
    assert sent is not None
    sent.end()
    worker = tracers["payment-worker"]
    began_ns = time.time_ns()
    taken = worker.process("order.created.v1", "order.created", "o-1", sent.context, "payment-worker", 3, 42)
    assert taken is not None
    result = worker.publish("payment.authorized.v1", "payment.authorized", "o-1", taken.context)
    assert result is not None
    result.end(error="NOT_ENOUGH_REPLICAS")
    taken.end()
    worker.batch("payment-worker batch", began_ns, [taken])
    for tracer in tracers.values():
        tracer.shutdown()
    return request.trace_id


@pytest.mark.parametrize("client", [NO_TRACE, CLIENT])
def test_an_order_arrives_as_one_tree_over_all_services(answering: Collector, client: TraceContext) -> None:
    names = ("api-gateway", "outbox-relay", "payment-worker")
    trace_id = follow_one_order({name: tracing_to(answering.endpoint, name) for name in names}, client)
    spans = answering.wait_for(lambda spans: len(spans) == 5, 20, "four spans of the order and one of the batch")
    assert set(answering.requests) == {"/v1/traces"}

    trace = answering.trace(trace_id)
    (root,) = roots(trace)
    assert [(span.service, span.kind, span.name) for span in trace] == [
        ("api-gateway", "SERVER", "POST /orders"),
        ("outbox-relay", "PRODUCER", "send order.created.v1"),
        ("payment-worker", "CONSUMER", "process order.created.v1"),
        ("payment-worker", "PRODUCER", "send payment.authorized.v1"),
    ]
    assert [span.parent_id for span in trace[1:]] == [span.span_id for span in trace[:-1]]
    if client == CLIENT:
        assert (root.trace_id, root.parent_id) == tuple(str(client[0]).split("-")[1:3])
        assert {span.tracestate for span in trace} == {"vendor=1,other=2"}
    else:
        assert root.parent_id == ""
    assert all(span.attributes["order.id"] == "o-1" for span in trace)
    assert trace[2].attributes["event.type"] == "order.created"
    assert trace[2].attributes["kafka.topic"] == "order.created.v1"
    assert trace[2].attributes["messaging.kafka.offset"] == 42
    assert [span.error for span in trace] == [None, None, None, "NOT_ENOUGH_REPLICAS"]

    (batch,) = (span for span in spans if span.trace_id != trace_id)
    assert batch.links == ((trace_id, trace[2].span_id),)
    assert batch.parent_id == ""


def test_spans_arrive_without_a_shutdown(answering: Collector) -> None:
    tracer = tracing_to(answering.endpoint, "api-gateway")
    tracer.server("POST /orders", NO_TRACE).end()
    answering.wait_for(lambda spans: len(spans) == 1, 20, "the queue is sent every second")
    tracer.shutdown()


def test_the_service_name_can_be_set(answering: Collector) -> None:
    tracer = tracing_to(f"{answering.endpoint}/base/", "api-gateway", otel_service_name="shop")
    tracer.server("POST /orders", NO_TRACE).end()
    tracer.shutdown()
    assert [span.service for span in answering.spans] == ["shop"]
    assert answering.requests == ["/base/v1/traces"]


def fill(tracer: Tracer, spans: int) -> float:
    """Record `spans` spans and return how long that took, in seconds."""
    began = time.monotonic()
    for _ in range(spans):
        tracer.server("POST /orders", CLIENT).end()
    return time.monotonic() - began


def shutdown_seconds(tracer: Tracer) -> float:
    began = time.monotonic()
    tracer.shutdown()
    return time.monotonic() - began


@pytest.mark.parametrize("behaviour", ["refuses", "hangs", "drips"])
def test_a_collector_that_fails_delays_no_order(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_SECONDS", EXPORT_SECONDS)
    with collector.running(behaviour) as failing:
        tracer = tracing_to(failing.endpoint, "api-gateway")
        fill(tracer, otlp.BATCH_MAX_SPANS)
        failing.wait_for_request(20)
        assert fill(tracer, 2 * otlp.QUEUE_MAX_SPANS) < GRACE_SECONDS, "a full queue drops at once"
        assert shutdown_seconds(tracer) < otlp.SHUTDOWN_SECONDS + GRACE_SECONDS


def test_a_missing_collector_delays_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_SECONDS", EXPORT_SECONDS)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        tracer = tracing_to(f"http://127.0.0.1:{unused.getsockname()[1]}", "api-gateway")
        assert fill(tracer, 2 * otlp.QUEUE_MAX_SPANS) < GRACE_SECONDS
        assert shutdown_seconds(tracer) < otlp.SHUTDOWN_SECONDS + GRACE_SECONDS


def test_a_collector_that_comes_back_gets_the_later_spans() -> None:
    with collector.running("refuses") as failing:
        tracer = tracing_to(failing.endpoint, "api-gateway")
        tracer.server("POST /orders", CLIENT).end()
        failing.wait_for_request(5)
        failing.behaviour = "answers"
        tracer.server("GET /orders/{id}", CLIENT).end()
        failing.wait_for(
            lambda spans: any(span.name == "GET /orders/{id}" for span in spans), 10, "the retry and the next batch"
        )
        tracer.shutdown()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_spans_for_a_collector_on_this_machine_use_no_proxy(
    answering: Collector, variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    tracer = tracing_to(answering.endpoint.replace("127.0.0.1", host), "api-gateway")
    tracer.server("GET /orders", CLIENT).end()
    tracer.shutdown()
    assert [span.name for span in answering.spans] == ["GET /orders"]


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:4318", True),
        ("http://127.8.9.1:4318", True),
        ("http://[::1]:4318", True),
        ("http://LocalHost:4318", True),
        ("http://otel.localhost", True),
        ("http://10.0.0.1:4318", False),
        ("https://localhost.example", False),
        ("https://127.0.0.1.example", False),
    ],
)
def test_the_addresses_of_this_machine_are_recognized(url: str, loopback: bool) -> None:
    assert otlp.is_loopback(url) is loopback
