"""Makes spans for the store, and requests of an exporter."""

from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from orderstream.console.traces.store import StoredSpan


def trace_id(number: int) -> str:
    """Return a trace id."""
    return f"{number + 1:032x}"


def stored(trace: int = 0, span: int = 0, **fields: Any) -> StoredSpan:
    """Return span number `span` of trace number `trace`, with attributes as a worker's span has them."""
    given: dict[str, Any] = {
        "trace_id": trace_id(trace),
        "span_id": f"{span + 1:016x}",
        "service": "payment-worker",
        "name": "process order.created.v1",
        "kind": "CONSUMER",
        "started_ns": 1_795_689_389_000_000_000 + trace * 10**9 + span,
        "ended_ns": 1_795_689_390_000_000_000 + trace * 10**9 + span,
        "attributes": {
            "order.id": f"01a2176d-9db0-73f7-9e75-{trace:012x}",
            "event.type": "order.created",
            "kafka.topic": "order.created.v1",
            "messaging.system": "kafka",
            "messaging.destination.name": "order.created.v1",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.kafka.message.key": f"01a2176d-9db0-73f7-9e75-{trace:012x}",
            "messaging.consumer.group.name": "payment-worker",
            "messaging.destination.partition.id": "3",
            "messaging.kafka.offset": span,
        },
    }
    return StoredSpan(**(given | fields))


def encoded(**fields: Any) -> Span:
    """Return a span as protobuf."""
    given: dict[str, Any] = {
        "trace_id": bytes.fromhex(trace_id(0)),
        "span_id": b"12345678",
        "name": "POST /orders",
        "kind": Span.SPAN_KIND_SERVER,
        "start_time_unix_nano": 1_000,
        "end_time_unix_nano": 2_000,
    }
    return Span(**(given | fields))


def request(*spans: Span, service: str = "api-gateway") -> ExportTraceServiceRequest:
    """Return the request of an exporter."""
    whole = ExportTraceServiceRequest()
    group = whole.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = service
    group.scope_spans.add().spans.extend(spans)
    return whole
