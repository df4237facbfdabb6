"""The content of a span, its parent, and the decision whether it is recorded."""

import re
import subprocess
import sys

import pytest

from orderstream.settings import load
from orderstream.telemetry.setup import start
from orderstream.telemetry.tracing import (
    BUCKETS_MAX,
    ERROR_MAX_CHARACTERS,
    NO_TRACE,
    RecordedSpan,
    Span,
    TokenBucket,
    TraceContext,
    Tracer,
    parse,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED: TraceContext = TraceContext(f"00-{TRACE}-{PARENT}-01", "vendor=1")
UNSAMPLED: TraceContext = TraceContext(f"00-{TRACE}-{PARENT}-00", "vendor=1")


class Kept:
    """A sink that keeps the spans that it receives."""

    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []
        self.shut_down = False

    def record(self, span: RecordedSpan) -> None:
        self.spans.append(span)

    def shutdown(self) -> None:
        self.shut_down = True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def tracer(kept: Kept) -> Tracer:
    return Tracer(kept, 100)


def recorded(span: Span | None) -> RecordedSpan:
    assert isinstance(span, RecordedSpan)
    return span


def test_a_request_without_a_collector_has_a_trace_id_of_its_own() -> None:
    tracer = start("api-gateway", load())
    first, second = tracer.server("POST /orders", NO_TRACE), tracer.server("POST /orders", NO_TRACE)
    for span in (first, second):
        traceparent, tracestate = span.context
        assert traceparent is not None
        assert re.fullmatch(rf"00-{span.trace_id}-[0-9a-f]{{16}}-00", traceparent)
        assert tracestate is None
        span.set({"order.id": "x"}, status=1)
        span.end(error="late")
    assert first.trace_id != second.trace_id
    assert len(first.trace_id) == 32
    tracer.shutdown()


@pytest.mark.parametrize("parent", [SAMPLED, UNSAMPLED])
def test_a_request_without_a_collector_continues_the_clients_trace_unsampled(parent: TraceContext) -> None:
    span = start("api-gateway", load()).server("POST /orders", parent)
    assert span.trace_id == TRACE
    context = parse(span.context)
    assert context is not None
    assert (context.trace_id, context.sampled, context.tracestate) == (TRACE, False, "vendor=1")
    assert context.span_id != PARENT


def test_without_a_collector_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys; from orderstream.settings import load; from orderstream.telemetry import logs, metrics, setup;"
        "setup.start('api-gateway', load()); logs.configure('api-gateway', load());"
        "sys.exit(any(name.startswith(('opentelemetry', 'requests', 'google')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env={}).returncode == 0


def test_without_a_collector_no_other_span_is_made() -> None:
    tracer = start("payment-worker", load())
    assert tracer.process("order.created.v1", "order.created", "o-1", SAMPLED, "payment-worker", 0, 1) is None
    assert tracer.publish("order.created.v1", "order.created", "o-1", SAMPLED) is None
    tracer.batch("batch", 1, [Span(TRACE, SAMPLED)])


def test_a_sampled_request_is_the_root_of_its_trace(tracer: Tracer, kept: Kept) -> None:
    span = recorded(tracer.server("GET /orders/{id}", NO_TRACE))
    span.set({"http.response.status_code": 200})
    span.end()
    span.end(error="too late")
    assert kept.spans == [span]
    assert span.parent is None
    assert span.kind == "SERVER"
    assert span.context == (f"00-{span.trace_id}-{span.span_id}-01", None)
    assert span.error is None
    assert 0 < span.started_ns <= span.ended_ns
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/orders/{id}",
        "http.response.status_code": 200,
    }


def test_a_request_that_matches_no_route_has_no_route(tracer: Tracer) -> None:
    assert recorded(tracer.server("unknown", NO_TRACE)).attributes == {}


@pytest.mark.parametrize("name", ["GET /livez", "GET /readyz", "HEAD /readyz", "GET /metrics"])
def test_probes_are_not_traced(tracer: Tracer, name: str) -> None:
    assert not isinstance(tracer.server(name, NO_TRACE), RecordedSpan)


def test_a_sampled_clients_trace_is_continued(tracer: Tracer) -> None:
    span = recorded(tracer.server("POST /orders", SAMPLED))
    assert span.parent is not None
    assert (span.trace_id, span.parent.span_id) == (TRACE, PARENT)
    assert span.context == (f"00-{TRACE}-{span.span_id}-01", "vendor=1")


def test_a_trace_that_the_client_did_not_sample_is_not_recorded(tracer: Tracer) -> None:
    span = tracer.server("POST /orders", UNSAMPLED)
    assert not isinstance(span, RecordedSpan)
    assert span.trace_id == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00-{TRACE[:-1]}٣-{PARENT}-01",
        "x" * 100_000,
    ],
)
def test_a_malformed_traceparent_begins_a_new_trace(tracer: Tracer, traceparent: str) -> None:
    span = tracer.server("POST /orders", TraceContext(traceparent, "vendor=1"))
    assert span.trace_id != TRACE
    assert span.context.tracestate is None
    assert tracer.publish("t", "e", "o", TraceContext(traceparent, None)) is None


def test_the_known_part_of_a_traceparent_of_a_later_version_is_used(tracer: Tracer) -> None:
    assert tracer.server("POST /orders", TraceContext(f"01-{TRACE}-{PARENT}-01-more", None)).trace_id == TRACE


@pytest.mark.parametrize("tracestate", ["x" * 513, "a=\x00", "a=é", "a=1\r\nb=2"])
def test_a_harmful_tracestate_is_dropped(tracer: Tracer, tracestate: str) -> None:
    assert tracer.server("POST /orders", TraceContext(SAMPLED.traceparent, tracestate)).context.tracestate is None


def test_an_order_is_one_trace_from_parent_to_child(tracer: Tracer) -> None:
    request = recorded(tracer.server("POST /orders", NO_TRACE))
    sent = recorded(tracer.publish("order.created.v1", "order.created", "o-1", request.context))
    taken = recorded(tracer.process("order.created.v1", "order.created", "o-1", sent.context, "payment-worker", 3, 0))
    answered = recorded(tracer.publish("payment.authorized.v1", "payment.authorized", "o-1", taken.context))
    for parent, child in ((request, sent), (sent, taken), (taken, answered)):
        assert child.parent is not None
        assert (child.trace_id, child.parent.span_id) == (request.trace_id, parent.span_id)
    assert (sent.kind, taken.kind, answered.kind) == ("PRODUCER", "CONSUMER", "PRODUCER")
    assert (sent.name, taken.name) == ("send order.created.v1", "process order.created.v1")
    assert taken.attributes == {
        "order.id": "o-1",
        "event.type": "order.created",
        "kafka.topic": "order.created.v1",
        "messaging.system": "kafka",
        "messaging.destination.name": "order.created.v1",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.kafka.message.key": "o-1",
        "messaging.consumer.group.name": "payment-worker",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 0,
    }


@pytest.mark.parametrize("parent", [NO_TRACE, UNSAMPLED, TraceContext(f"00-{TRACE}-{PARENT}-02", None)])
def test_a_trace_that_the_gateway_did_not_sample_is_not_recorded_later(tracer: Tracer, parent: TraceContext) -> None:
    assert tracer.process("order.created.v1", "order.created", "o-1", parent, "payment-worker", 0, 1) is None
    assert tracer.publish("order.created.v1", "order.created", "o-1", parent) is None


def test_a_batch_is_a_trace_of_its_own_with_links_to_its_records(tracer: Tracer, kept: Kept) -> None:
    spans = [recorded(tracer.publish("t", "e", "o", SAMPLED)) for _ in range(2)]
    tracer.batch("payment-worker batch", 5, [*spans, Span(TRACE, UNSAMPLED)])
    (batch,) = kept.spans
    assert batch.trace_id != TRACE
    assert batch.parent is None
    assert batch.links == spans
    assert batch.started_ns == 5


def test_a_batch_without_a_recorded_span_is_not_recorded(tracer: Tracer, kept: Kept) -> None:
    tracer.batch("payment-worker batch", 5, [])
    tracer.batch("payment-worker batch", 5, [Span(TRACE, UNSAMPLED)])
    assert kept.spans == []


def test_an_error_is_kept_with_its_span(tracer: Tracer) -> None:
    span = recorded(tracer.publish("order.created.v1", "order.created", "o-1", SAMPLED))
    span.end(error="ProviderUnavailable " + "x" * 10_000)
    assert span.error is not None
    assert span.error.startswith("ProviderUnavailable")
    assert len(span.error) == ERROR_MAX_CHARACTERS


def test_traces_are_limited_per_second_and_route(kept: Kept) -> None:
    clock = Clock()
    tracer = Tracer(kept, 2, clock)

    def sampled(name: str, times: int) -> int:
        return sum(isinstance(tracer.server(name, NO_TRACE), RecordedSpan) for _ in range(times))

    assert sampled("GET /orders/{id}", 100) == 2
    assert sampled("POST /orders", 100) == 2
    clock.now += 0.5
    assert sampled("POST /orders", 100) == 1
    clock.now += 100
    assert sampled("POST /orders", 100) == 2


def test_the_limit_also_applies_to_clients_that_sample_everything(kept: Kept) -> None:
    tracer = Tracer(kept, 2, Clock())
    spans = [tracer.server("POST /orders", SAMPLED) for _ in range(100)]
    assert sum(isinstance(span, RecordedSpan) for span in spans) == 2
    assert {span.trace_id for span in spans} == {TRACE}


def test_route_names_beyond_the_limit_share_a_bucket(kept: Kept) -> None:
    tracer = Tracer(kept, 1, Clock())
    spans = [tracer.server(f"GET /{number}", NO_TRACE) for number in range(BUCKETS_MAX + 50)]
    assert sum(isinstance(span, RecordedSpan) for span in spans) == BUCKETS_MAX + 1


@pytest.mark.parametrize(("per_second", "at_once"), [(0, 0), (0.1, 1), (1, 1), (10, 10)])
def test_a_bucket_has_room_for_one_second(per_second: float, at_once: int) -> None:
    clock = Clock()
    bucket = TokenBucket(per_second, clock)
    assert sum(bucket.take() for _ in range(100)) == at_once


def test_a_bucket_with_a_low_rate_fills_with_time() -> None:
    clock = Clock()
    bucket = TokenBucket(0.1, clock)
    assert bucket.take()
    clock.now = 9.9
    assert not bucket.take()
    clock.now = 10.0
    assert bucket.take()


def test_shutdown_reaches_the_sink(tracer: Tracer, kept: Kept) -> None:
    tracer.shutdown()
    assert kept.shut_down
