"""Converts between records of Kafka and events of the domain. A record that cannot be decoded has a reason (P9)."""

from typing import Literal

import msgspec
from confluent_kafka import Message
from msgspec import Struct

from orderstream.domain.events import PAYLOADS, VERSION, Event, Payload, topic_of
from orderstream.telemetry.tracing import TraceContext

Reason = Literal[
    "NO_KEY",
    "NO_VALUE",
    "NOT_JSON",
    "UNKNOWN_TYPE",
    "UNKNOWN_VERSION",
    "BAD_PAYLOAD",
    "KEY_MISMATCH",
    "UNKNOWN_ORDER",
    "NOT_DECIDED",
    "FAILED",
]
"""Why a record is a dead letter. The first seven are reasons of the decoder, the others are reasons of the worker."""

Headers = list[tuple[str, bytes | None]]

_YEARS = range(1970, 9_999)
"""Valid years of `occurredAt`. With an offset from UTC, Postgres may store a time outside that Python cannot read."""

_encode = msgspec.json.Encoder().encode
_decoders = {
    topic_of(event_type): (event_type, msgspec.json.Decoder(Event[payload]))  # type: ignore[valid-type]
    for event_type, payload in PAYLOADS.items()
}


class Undecodable(Exception):  # noqa: N818 - the field says what a record is
    """A record that cannot be decoded. A retry does not help."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class Record(Struct, frozen=True):
    """A record as it was polled, before it is decoded."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @classmethod
    def of(cls, message: Message, topic_prefix: str = "") -> "Record":
        """Convert a message without error(). The topic is named without `topic_prefix`."""
        return cls(
            (message.topic() or "").removeprefix(topic_prefix),
            message.partition() or 0,
            message.offset() or 0,
            message.key(),
            message.value(),
            headers_of(message),
        )

    def trace_context(self) -> TraceContext:
        """Return the trace context that the headers carry."""
        traceparent = tracestate = None
        for name, value in self.headers:
            if name == "traceparent" and value is not None:
                traceparent = value.decode("ascii", "replace")
            elif name == "tracestate" and value is not None:
                tracestate = value.decode("ascii", "replace")
        return TraceContext(traceparent, tracestate)


def headers_of(message: Message) -> Headers:
    """Return the headers of a message. Return none if a name is not UTF-8, because the client then cannot read any."""
    try:
        return message.headers() or []  # type: ignore[return-value]
    except (SystemError, UnicodeDecodeError):
        return []


class Received(Struct, frozen=True):
    """A record and the event that it carries."""

    record: Record
    event: Event[Payload]

    @property
    def order_id(self) -> str:
        """The id of the event's order."""
        return self.event.correlation_id


def encode(event: Event[Payload]) -> bytes:
    """Encode an event as the value of a record."""
    return _encode(event)


def decode(topic_name: str, key: bytes | None, value: bytes | None) -> Event[Payload]:
    """Decode the event of a record. For any bytes, raises only Undecodable."""
    if not key:
        raise Undecodable("NO_KEY", "the record has no key")
    if not value:
        raise Undecodable("NO_VALUE", "the record has no value")
    if topic_name not in _decoders:
        raise Undecodable("UNKNOWN_TYPE", f"topic {topic_name} is unknown")
    expected, decoder = _decoders[topic_name]
    try:
        event: Event[Payload] = decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        raise _explain(value, expected, error) from error
    if event.type != expected or event.version != VERSION:
        raise _mislabelled(event.type, event.version, expected)
    if event.occurred_at.year not in _YEARS:
        raise Undecodable("BAD_PAYLOAD", f"occurredAt is in the year {event.occurred_at.year}")
    if event.correlation_id.encode("utf-8", "surrogatepass") != key or event.payload.order_id != event.correlation_id:
        raise Undecodable("KEY_MISMATCH", "key, correlationId and orderId differ")
    return event


def event_headers(event_type: str, event_id: str, context: TraceContext) -> list[tuple[str, str | bytes | None]]:
    """Return the headers of the record of an event."""
    traceparent, tracestate = context
    headers: list[tuple[str, str | bytes | None]] = [("event-type", event_type), ("event-id", event_id)]
    if traceparent:
        headers.append(("traceparent", traceparent))
    if tracestate:
        headers.append(("tracestate", tracestate))
    return headers


def _explain(value: bytes, expected: str, error: Exception) -> Undecodable:
    """Return why a record could not be decoded. Called only after a failure."""
    try:
        body = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ArithmeticError) as unreadable:
        return Undecodable("NOT_JSON", str(unreadable))
    if isinstance(body, dict) and (body.get("type") != expected or body.get("version") != VERSION):
        return _mislabelled(body.get("type"), body.get("version"), expected)
    return Undecodable("BAD_PAYLOAD", str(error))


def _mislabelled(event_type: object, version: object, expected: str) -> Undecodable:
    if event_type != expected:
        return Undecodable("UNKNOWN_TYPE", f"type is {event_type!r:.200}, expected {expected}")
    return Undecodable("UNKNOWN_VERSION", f"version is {version!r:.200}, expected {VERSION}")
