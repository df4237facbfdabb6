"""A collector for OTLP over HTTP. It decodes the protobuf of each request and keeps the spans."""

import gzip
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Behaviour = Literal["answers", "refuses", "hangs", "drips"]


class ReceivedSpan(Struct, frozen=True, kw_only=True):
    """A received span. Ids are hexadecimal, times are Unix nanoseconds, and a missing parent is an empty string."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    attributes: dict[str, str | int | float | bool]
    links: tuple[tuple[str, str], ...]
    error: str | None
    started_ns: int
    ended_ns: int


class Collector:
    """The requests and spans until now. `endpoint` is the value for OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour: Behaviour = behaviour
        self.requests: list[str] = []
        self.endpoint = ""
        self._spans: list[ReceivedSpan] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans until now, in the order of arrival."""
        with self._changed:
            return list(self._spans)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """Return the spans of one trace until now, the earliest first."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.started_ns)

    def wait_for(
        self, condition: Callable[[Sequence[ReceivedSpan]], bool], limit_seconds: float, why: str
    ) -> list[ReceivedSpan]:
        """Return all spans when `condition` is true for them. Fail with `why` if it is not within the limit."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._spans), limit_seconds):
                seen = sorted((span.service, span.name) for span in self._spans)
                raise AssertionError(f"not within {limit_seconds:g} s: {why}; arrived: {seen}")
            return list(self._spans)

    def wait_for_request(self, limit_seconds: float) -> None:
        """Wait for the first request."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.requests), limit_seconds), "no request arrived"

    def take(self, path: str, body: bytes) -> None:
        """Record a request, and keep its spans if this collector answers."""
        with self._changed:
            self.requests.append(path)
            if self.behaviour == "answers":
                self._spans.extend(decode(body))
            self._changed.notify_all()

    def close(self) -> None:
        """End the requests that hang."""
        self._closing.set()

    def stalled(self, seconds: float | None = None) -> bool:
        """Wait for `seconds`, or until the collector closes. Return whether it is still open."""
        return not self._closing.wait(seconds)


def roots(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    """Return the spans of a trace that have no parent in it. A complete trace has exactly one."""
    ids = {span.span_id for span in spans}
    return [span for span in spans if span.parent_id not in ids]


def decode(body: bytes) -> Iterator[ReceivedSpan]:
    """Yield the spans of an OTLP request. Raises google.protobuf.message.DecodeError if it is invalid."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = str(_attributes(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _received(service, span)


def _received(service: str, span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        service=service,
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        tracestate=span.trace_state,
        attributes=_attributes(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
    )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, str | int | float | bool]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> str | int | float | bool:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bool_value":
            return value.bool_value
        case other:
            raise AssertionError(f"an attribute of kind {other}")


@contextmanager
def running(behaviour: Behaviour = "answers") -> Iterator[Collector]:
    """Run a collector on a free port of the loopback address."""
    collector = Collector(behaviour)

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            if collector.behaviour == "hangs":
                collector.stalled()
                self.close_connection = True
                return
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(503 if collector.behaviour == "refuses" else 200)
            self.send_header("content-type", "application/x-protobuf")
            if collector.behaviour == "drips":
                self._drip()
                return
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _drip(self) -> None:
            self.send_header("content-length", "1000000")
            self.end_headers()
            while collector.stalled(0.05):
                self.wfile.write(b"\0")
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Requests) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield collector
        finally:
            collector.close()
            server.shutdown()
            thread.join(5)
