"""A collector that takes OTLP over HTTP as a real one does: it decodes the protobuf that arrived and keeps spans."""

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
    """One span as it arrived; ids in hexadecimal, times in nanoseconds of Unix time, no parent is an empty string."""

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
    """What arrived so far. Its base URL goes into OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour: Behaviour = behaviour
        self.requests: list[str] = []
        self.endpoint = ""
        self._spans: list[ReceivedSpan] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """Every span so far, in the order of arrival."""
        with self._changed:
            return list(self._spans)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """Every span of one trace so far, the earliest first."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.started_ns)

    def wait_for(
        self, condition: Callable[[Sequence[ReceivedSpan]], bool], limit_seconds: float, why: str
    ) -> list[ReceivedSpan]:
        """Return all spans once `condition` holds for them; fail with `why` when it does not within the limit."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._spans), limit_seconds):
                seen = sorted((span.service, span.name) for span in self._spans)
                raise AssertionError(f"waited {limit_seconds:g} s in vain: {why}; arrived: {seen}")
            return list(self._spans)

    def wait_for_request(self, limit_seconds: float) -> None:
        """Wait until anything was sent here."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.requests), limit_seconds), "no request arrived"

    def take(self, path: str, body: bytes) -> None:
        """Note a request and keep its spans, unless the collector is one that fails."""
        with self._changed:
            self.requests.append(path)
            if self.behaviour == "answers":
                self._spans.extend(decode(body))
            self._changed.notify_all()

    def close(self) -> None:
        """Let requests that hang go."""
        self._closing.set()

    def stalled(self, seconds: float | None = None) -> bool:
        """Wait until the collector closes, or for `seconds`; says whether it has not closed."""
        return not self._closing.wait(seconds)


def roots(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    """Return the spans of a trace that have no parent within it; more than one means that there is an orphan."""
    ids = {span.span_id for span in spans}
    return [span for span in spans if span.parent_id not in ids]


def decode(body: bytes) -> Iterator[ReceivedSpan]:
    """Read the spans of an OTLP request. Raises google.protobuf.message.DecodeError when it is not one."""
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
            """Keep the test's output clean."""

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
