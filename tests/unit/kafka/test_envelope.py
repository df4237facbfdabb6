"""Each kind of record that cannot be decoded has a reason of its own (P9)."""

import json
from typing import Any, get_args

import pytest

from orderstream.domain.events import build
from orderstream.kafka.envelope import Reason, Undecodable, decode, encode
from tests.support.contracts import CONTRACTS
from tests.support.samples import AT, ORDER_ID, SAMPLES

TOPIC = "payment.authorized.v1"
KEY = ORDER_ID.encode()
GOOD: dict[str, Any] = json.loads(encode(build(SAMPLES["payment.authorized"], AT)))


def _changed(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def _payload(**changes: object) -> bytes:
    return _changed(payload=GOOD["payload"] | changes)


def _item(**changes: object) -> bytes:
    return _payload(items=[GOOD["payload"]["items"][0] | changes])


@pytest.mark.parametrize(
    ("topic", "key", "value", "reason"),
    [
        (TOPIC, None, _changed(), "NO_KEY"),
        (TOPIC, b"", _changed(), "NO_KEY"),
        (TOPIC, KEY, None, "NO_VALUE"),
        (TOPIC, KEY, b"", "NO_VALUE"),
        (TOPIC, KEY, b"no json", "NOT_JSON"),
        (TOPIC, KEY, b"\xff\xfe", "NOT_JSON"),
        (TOPIC, KEY, _changed()[:-1], "NOT_JSON"),
        (TOPIC, KEY, b"[" * 100_000, "NOT_JSON"),
        (TOPIC, KEY, b"[]", "BAD_PAYLOAD"),
        (TOPIC, KEY, b"null", "BAD_PAYLOAD"),
        ("shipping.sent.v1", KEY, _changed(), "UNKNOWN_TYPE"),
        (TOPIC, KEY, _changed(type="payment.failed"), "UNKNOWN_TYPE"),
        (TOPIC, KEY, _changed(type=None), "UNKNOWN_TYPE"),
        (TOPIC, KEY, b"{}", "UNKNOWN_TYPE"),
        (TOPIC, KEY, _changed(version=2), "UNKNOWN_VERSION"),
        (TOPIC, KEY, _changed(version="1"), "UNKNOWN_VERSION"),
        (TOPIC, KEY, _changed(payload=None), "BAD_PAYLOAD"),
        (TOPIC, KEY, _changed(id="7"), "BAD_PAYLOAD"),
        (TOPIC, KEY, _changed(occurredAt="yesterday"), "BAD_PAYLOAD"),
        (TOPIC, KEY, _changed(occurredAt="2026-01-02T03:04:05"), "BAD_PAYLOAD"),
        (TOPIC, KEY, _payload(amount="much"), "BAD_PAYLOAD"),
        (TOPIC, KEY, _payload(items={}), "BAD_PAYLOAD"),
        (TOPIC, KEY, _item(qty=0), "BAD_PAYLOAD"),
        (TOPIC, KEY, _item(qty=-5), "BAD_PAYLOAD"),
        (TOPIC, KEY, _item(qty=1.5), "BAD_PAYLOAD"),
        (TOPIC, b"another", _changed(), "KEY_MISMATCH"),
        (TOPIC, KEY, _changed(correlationId="another"), "KEY_MISMATCH"),
        (TOPIC, KEY, _payload(orderId="another"), "KEY_MISMATCH"),
    ],
)
def test_a_record_that_cannot_be_decoded_has_its_reason(
    topic: str, key: bytes | None, value: bytes | None, reason: Reason
) -> None:
    with pytest.raises(Undecodable) as refusal:
        decode(topic, key, value)
    assert refusal.value.reason == reason
    assert refusal.value.detail


def test_a_valid_record_is_decoded_to_its_event() -> None:
    assert decode(TOPIC, KEY, _changed()) == build(SAMPLES["payment.authorized"], AT)


def test_the_schema_of_dead_letters_lists_every_reason() -> None:
    schema = json.loads((CONTRACTS / "dead-letter-headers.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["dlq-reason"]["enum"] == list(get_args(Reason))
