"""The content of a span, its parent, and the decision whether it is recorded."""

import re
import subprocess
import sys
from datetime import UTC, datetime

import psycopg
import pytest

from orderstream.settings import load
from orderstream.telemetry.setup import start
from orderstream.telemetry.tracing import (
    BUCKETS_MAX,
    ERROR_MAX_CHARACTERS,
    NO_SPANS,
    NO_TRACE,
    Operation,
    RecordedSpan,
    Span,
    TokenBucket,
    TraceContext,
    Tracer,
    parse,
    reason_of,
    unix_ns,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED: TraceContext = TraceContext(f"00-{TRACE}-{PARENT}-01", "vendor=1")
UNSAMPLED: TraceContext = TraceContext(f"00-{TRACE}-{PARENT}-00", "vendor=1")


OPERATION = Operation("INSERT orders", "CLIENT", {"db.system.name": "postgresql"})


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
    assert tracer.client("authorize payment", SAMPLED) is None
    assert tracer.call(OPERATION, SAMPLED) is None
    assert tracer.shared(OPERATION, [SAMPLED], 1) is NO_SPANS
    assert not tracer.is_on


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
    tracer.batch("payment-worker batch", 5, spans)
    (batch,) = kept.spans
    assert batch.trace_id != TRACE
    assert batch.parent is None
    assert [(link.trace_id, link.span_id) for link in batch.links] == [(TRACE, span.span_id) for span in spans]
    assert batch.started_ns == spans[0].started_ns
    assert batch.attributes == {"messaging.system": "kafka", "messaging.batch.message_count": 5}


def test_a_batch_without_a_recorded_span_is_not_recorded(tracer: Tracer, kept: Kept) -> None:
    tracer.batch("payment-worker batch", 5, [])
    assert kept.spans == []


def test_a_shared_action_has_a_span_in_each_recorded_trace(tracer: Tracer, kept: Kept) -> None:
    other = TraceContext(f"00-{'1' * 32}-{PARENT}-01", None)
    with tracer.shared(OPERATION, [SAMPLED, UNSAMPLED, NO_TRACE, other], 4):
        assert kept.spans == []
    assert [(span.trace_id, span.name, span.kind) for span in kept.spans] == [
        (TRACE, "INSERT orders", "CLIENT"),
        ("1" * 32, "INSERT orders", "CLIENT"),
    ]
    assert all(span.attributes == {"db.system.name": "postgresql", "batch.size": 4} for span in kept.spans)
    assert all(span.parent is not None and span.parent.span_id == PARENT for span in kept.spans)
    assert OPERATION.attributes == {"db.system.name": "postgresql"}


def test_the_spans_of_a_shared_action_take_the_name_of_its_result(tracer: Tracer, kept: Kept) -> None:
    with tracer.shared(OPERATION, [SAMPLED], 1) as spans:
        spans.rename("UPDATE orders")
    assert [(span.name, span.attributes["db.query.summary"]) for span in kept.spans] == [("UPDATE orders",) * 2]


def test_an_error_of_postgres_shows_its_kind_and_no_value(tracer: Tracer, kept: Kept) -> None:
    with pytest.raises(psycopg.Error), tracer.shared(OPERATION, [SAMPLED], 1):
        raise psycopg.errors.UniqueViolation("Key (user_id)=(u-secret) already exists")
    with pytest.raises(ValueError, match="why"), tracer.shared(OPERATION, [SAMPLED], 1):
        raise ValueError("why")
    assert [span.error for span in kept.spans] == ["UniqueViolation 23505", "why"]
    assert reason_of(TimeoutError()) == "TimeoutError"
    assert reason_of(psycopg.OperationalError("password=x")) == "OperationalError"


def test_nothing_is_shared_without_a_recorded_trace(tracer: Tracer) -> None:
    assert tracer.shared(OPERATION, [UNSAMPLED, NO_TRACE], 2) is NO_SPANS
    with NO_SPANS as spans:
        spans.rename("x")


def test_open_requests_are_counted_while_they_are_recorded(tracer: Tracer) -> None:
    first, second = tracer.server("POST /orders", NO_TRACE), tracer.server("POST /orders", SAMPLED)
    tracer.server("POST /orders", UNSAMPLED)
    assert tracer.open_requests == 2
    first.end()
    first.end()
    assert tracer.open_requests == 1
    second.end("HTTP 500")
    assert tracer.open_requests == 0


def test_a_wait_ends_when_its_event_is_sent(tracer: Tracer, kept: Kept) -> None:
    sent = recorded(tracer.publish("order.created.v1", "order.created", "o-1", SAMPLED))
    tracer.waited("wait in outbox", sent, 1_000, SAMPLED)
    (wait,) = kept.spans
    assert (wait.name, wait.kind, wait.started_ns, wait.ended_ns) == (
        "wait in outbox",
        "INTERNAL",
        1_000,
        sent.started_ns,
    )
    assert wait.parent == sent.parent
    assert wait.attributes == {"order.id": "o-1", "event.type": "order.created", "kafka.topic": "order.created.v1"}


def test_a_wait_never_begins_after_its_end(tracer: Tracer, kept: Kept) -> None:
    sent = recorded(tracer.publish("order.created.v1", "order.created", "o-1", SAMPLED))
    tracer.waited("wait in outbox", sent, sent.started_ns + 10**9, SAMPLED)
    assert kept.spans[0].started_ns == kept.spans[0].ended_ns


def test_a_link_leads_to_the_span_of_another_trace(tracer: Tracer) -> None:
    span = recorded(tracer.server("POST /orders/{order_id}/cancel", NO_TRACE))
    span.link(SAMPLED)
    span.link(NO_TRACE)
    span.link(TraceContext("nonsense", None))
    tracer.server("GET /", UNSAMPLED).link(SAMPLED)
    assert [(link.trace_id, link.span_id) for link in span.links] == [(TRACE, PARENT)]


def test_times_of_postgres_become_unix_nanoseconds() -> None:
    assert unix_ns(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005_000


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
