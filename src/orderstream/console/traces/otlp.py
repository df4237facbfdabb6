"""Decodes requests of OTLP over HTTP: `ExportTraceServiceRequest` as protobuf, with limits on everything in it.

This module walks the outer messages itself and gives one span at a time to protobuf. A body of many empty messages
therefore cannot make protobuf allocate many times its size. Values are shortened, and a span without a valid id is
rejected alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from orderstream.console.traces.store import Link, StoredSpan, Value

SPANS_MAX = 4_096
"""Spans in one request. The exporter of OpenTelemetry sends 512."""
SPAN_MAX_BYTES = 64 << 10
RESOURCE_MAX_BYTES = 64 << 10
GROUPS_MAX = 1_024
"""Resources, scopes and other parts around the spans of one request."""
ATTRIBUTES_MAX = 64
LINKS_MAX = 512
NAME_MAX_CHARACTERS = 200
VALUE_MAX_CHARACTERS = 1_000
NESTED_MAX = 32
"""Elements of a list that are shown."""

_RESOURCE_SPANS = 1
_RESOURCE, _SCOPE_SPANS = 1, 2
_SPANS = 2
_BYTES = 2
_WIRE_TYPES = {0, 1, 2, 5}
_KINDS = {kind: name.removeprefix("SPAN_KIND_") for name, kind in Span.SpanKind.items()}
_TIME_MAX_NS = 2**63 - 1


class MalformedError(Exception):
    """The body is not a request of OTLP, or it breaks a limit. Nothing of it is kept."""


class Received(Struct, frozen=True):
    """The valid spans of a request, and the number of spans that were rejected."""

    spans: list[StoredSpan]
    rejected: int


def decode(body: bytes) -> Received:
    """Decode a request. Raises MalformedError."""
    spans: list[StoredSpan] = []
    number = 0
    try:
        for service, encoded in _encoded_spans(memoryview(body)):
            number += 1
            if number > SPANS_MAX:
                raise MalformedError(f"A request may have at most {SPANS_MAX} spans.")
            if len(encoded) <= SPAN_MAX_BYTES and (span := _stored(service, Span.FromString(bytes(encoded)))):
                spans.append(span)
    except (DecodeError, UnicodeDecodeError) as error:
        raise MalformedError("The body is not an ExportTraceServiceRequest of OTLP.") from error
    return Received(spans, number - len(spans))


def answer(rejected: int) -> bytes:
    """Return the `ExportTraceServiceResponse` for a request of which `rejected` spans were not kept."""
    response = ExportTraceServiceResponse()
    if rejected:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = "Spans without valid ids and times, or too large, were not kept."
    return bytes(response.SerializeToString())


def _encoded_spans(body: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield each span as protobuf, with the name of its service."""
    groups = 0
    for resource_spans in _parts(body, _RESOURCE_SPANS):
        service, scopes = "", []
        for field, part in _fields(resource_spans):
            groups += 1
            if groups > GROUPS_MAX:
                raise MalformedError(f"A request may have at most {GROUPS_MAX} resources and scopes.")
            if field == _RESOURCE:
                service = _service(part)
            elif field == _SCOPE_SPANS:
                scopes.append(part)
        for scope in scopes:
            for span in _parts(scope, _SPANS):
                yield service, span


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (part for field, part in _fields(message) if field == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields of a message that have a length. Skips the others. Raises MalformedError."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _BYTES:
            length, position = _varint(message, position)
            end = position + length
            if end <= len(message):
                yield key >> 3, message[position:end]
        elif kind == 0:
            _, end = _varint(message, position)
        elif kind in _WIRE_TYPES:
            end = position + (8 if kind == 1 else 4)
        else:
            raise MalformedError("The body is not protobuf.")
        if end > len(message):
            raise MalformedError("The body ends too early.")
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of variable length, and the position after it. Raises MalformedError."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise MalformedError("The body ends too early.")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise MalformedError("The body is not protobuf.")


def _service(resource: memoryview) -> str:
    if len(resource) > RESOURCE_MAX_BYTES:
        raise MalformedError(f"A resource may have at most {RESOURCE_MAX_BYTES} bytes.")
    for pair in Resource.FromString(bytes(resource)).attributes:
        if pair.key == "service.name":
            return _shortened(pair.value.string_value, NAME_MAX_CHARACTERS)
    return ""


def _stored(service: str, span: Span) -> StoredSpan | None:
    """Return a span as it is stored, or None if it has no valid ids or times."""
    if not (_is_id(span.trace_id, 16) and _is_id(span.span_id, 8)):
        return None
    if max(span.start_time_unix_nano, span.end_time_unix_nano) > _TIME_MAX_NS:
        return None
    attributes, cut = _attributes(span.attributes)
    links = tuple(
        Link(link.trace_id.hex(), link.span_id.hex())
        for link in span.links[:LINKS_MAX]
        if _is_id(link.trace_id, 16) and _is_id(link.span_id, 8)
    )
    failed = span.status.code == span.status.STATUS_CODE_ERROR
    return StoredSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() if _is_id(span.parent_span_id, 8) else "",
        service=service,
        name=_shortened(span.name, NAME_MAX_CHARACTERS),
        kind=_KINDS.get(span.kind, "UNSPECIFIED"),
        started_ns=span.start_time_unix_nano,
        ended_ns=max(span.start_time_unix_nano, span.end_time_unix_nano),
        attributes=attributes,
        error=_shortened(span.status.message, VALUE_MAX_CHARACTERS) if failed else None,
        links=links,
        cut=cut + max(0, len(span.links) - LINKS_MAX),
    )


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _attributes(pairs: Sequence[KeyValue]) -> tuple[dict[str, Value], int]:
    """Return the first ATTRIBUTES_MAX attributes, and how many were dropped or shortened."""
    attributes: dict[str, Value] = {}
    cut = max(0, len(pairs) - ATTRIBUTES_MAX)
    for pair in pairs[:ATTRIBUTES_MAX]:
        value = _value(pair.value)
        if isinstance(value, str) and len(value) > VALUE_MAX_CHARACTERS:
            value = _shortened(value, VALUE_MAX_CHARACTERS)
            cut += 1
        attributes[_shortened(pair.key, NAME_MAX_CHARACTERS)] = value
    return attributes, cut


def _value(value: AnyValue) -> Value:
    """Return a value. Lists and maps become text."""
    match value.WhichOneof("value"):
        case "string_value":
            return str(value.string_value)
        case "int_value":
            return int(value.int_value)
        case "double_value":
            return float(value.double_value)
        case "bool_value":
            return bool(value.bool_value)
        case _:
            return str(_nested(value))


def _nested(value: AnyValue, depth: int = 0) -> Any:
    """Return a value of a list or map, down to two levels."""
    match value.WhichOneof("value"):
        case "array_value" if depth < 2:
            return [_nested(element, depth + 1) for element in value.array_value.values[:NESTED_MAX]]
        case "kvlist_value" if depth < 2:
            pairs = value.kvlist_value.values[:NESTED_MAX]
            return {_shortened(pair.key, NAME_MAX_CHARACTERS): _nested(pair.value, depth + 1) for pair in pairs}
        case "bytes_value":
            return _shortened(value.bytes_value[:NAME_MAX_CHARACTERS].hex(), NAME_MAX_CHARACTERS)
        case "array_value" | "kvlist_value":
            return "…"
        case None:
            return ""
        case _:
            scalar = _value(value)
            return _shortened(scalar, NAME_MAX_CHARACTERS) if isinstance(scalar, str) else scalar


def _shortened(text: str, characters_max: int) -> str:
    """Return a text of at most `characters_max` characters. A longer one ends with the number of those left out."""
    if len(text) <= characters_max:
        return text
    left = characters_max - 30
    return f"{text[:left]}… {len(text) - left:,} more characters"
