"""Every event can be encoded and decoded, and any other bytes are a dead letter with a reason (P9)."""

import json
from datetime import UTC
from typing import Any, get_args

from hypothesis import example, given
from hypothesis import strategies as st

from orderstream.domain.events import TOPICS, Event, Payload, topic_of
from orderstream.kafka.envelope import Reason, Undecodable, decode, encode
from tests.support.strategies import EVENTS, TEXT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _decode(topic_name: str, key: bytes | None, value: bytes | None) -> Event[Payload] | Undecodable:
    """Return the event, or the reason why the record cannot be decoded. Any other exception fails the test."""
    try:
        return decode(topic_name, key, value)
    except Undecodable as refusal:
        return refusal


def _is_dead_letter(answer: Event[Payload] | Undecodable) -> bool:
    if isinstance(answer, Event):
        return False
    assert answer.reason in get_args(Reason)
    assert 0 < len(answer.detail) < 2_000
    return True


@given(EVENTS)
def test_an_encoded_event_is_decoded_to_the_same_event(event: Event[Payload]) -> None:
    decoded = decode(topic_of(event.type), event.correlation_id.encode(), encode(event))
    assert decoded == event
    assert decoded.occurred_at.tzinfo is not None
    assert decoded.occurred_at.astimezone(UTC) == event.occurred_at
    assert encode(decoded) == encode(event)


@given(EVENTS, st.dictionaries(st.text(min_size=1).map("x-{}".format), JSON, max_size=3))
def test_unknown_fields_are_ignored(event: Event[Payload], more: dict[str, Any]) -> None:
    body = json.loads(encode(event))
    body |= more
    body["payload"] |= more
    assert decode(topic_of(event.type), event.correlation_id.encode(), json.dumps(body).encode()) == event


@given(st.sampled_from([*TOPICS, "other.v1", ""]), st.none() | st.binary(max_size=40), st.none() | st.binary())
@example("order.created.v1", b"k", b"[" * 100_000)
@example("order.created.v1", b"k", b'{"payload":' * 100_000)
@example("order.created.v1", b"k", b"\xff\xfe")
@example("order.created.v1", b"k", b'{"type":"order.created","version":' + b"9" * 5_000 + b"}")
@example("order.created.v1", b"k", b'{"type":' + b"9" * 5_000 + b',"version":1}')
@example("order.created.v1", b"k", b'{"type":"order.created","version":1e99999999999999999999}')
@example("order.created.v1", b"k", b'{"type":"\\ud800","version":1}')
def test_any_bytes_are_an_event_or_a_dead_letter(topic_name: str, key: bytes | None, value: bytes | None) -> None:
    assert _is_dead_letter(_decode(topic_name, key, value))


def _set(body: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return body | {first: _set(body[first], rest, value) if rest else value}


ODD = JSON | st.sampled_from([10**30, -1, "1E+2", "NaN", "sNaN", "1e99999999999999999999", "0001-01-01T00:00:00+23:59"])


@given(
    EVENTS,
    st.sampled_from(["type", "version", "id", "occurredAt", "correlationId", "payload", "payload.orderId"]),
    ODD,
)
def test_an_envelope_with_one_odd_field_is_the_same_event_or_a_dead_letter(
    event: Event[Payload], path: str, odd: object
) -> None:
    body = json.dumps(_set(json.loads(encode(event)), path, odd)).encode()
    decoded = _decode(topic_of(event.type), event.correlation_id.encode(), body)
    if not _is_dead_letter(decoded):
        assert isinstance(decoded, Event)
        assert decoded.payload.order_id == decoded.correlation_id == event.correlation_id
        assert (decoded.type, decoded.version) == (event.type, event.version)


@given(EVENTS, st.data())
def test_a_payload_with_any_odd_fields_is_an_event_or_a_dead_letter(event: Event[Payload], data: st.DataObject) -> None:
    body = json.loads(encode(event))
    for name in data.draw(st.lists(st.sampled_from(sorted(body["payload"])), unique=True)):
        body["payload"][name] = data.draw(ODD)
    _is_dead_letter(_decode(topic_of(event.type), event.correlation_id.encode(), json.dumps(body).encode()))


@given(EVENTS, st.sampled_from(TOPICS), TEXT)
def test_the_wrong_topic_or_key_is_a_dead_letter(event: Event[Payload], topic_name: str, key: str) -> None:
    value = encode(event)
    if topic_name != topic_of(event.type):
        assert _is_dead_letter(_decode(topic_name, event.correlation_id.encode(), value))
    if key != event.correlation_id:
        assert _is_dead_letter(_decode(topic_of(event.type), key.encode(), value))
