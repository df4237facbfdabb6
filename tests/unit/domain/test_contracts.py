"""The files under contracts/ match the types, and reject events that break a rule."""

import json
from typing import Any

import msgspec
import pytest

from orderstream.domain.contracts import schemas
from orderstream.domain.events import TOPICS, Payload, build, topic_of
from tests.support.contracts import CONTRACTS, assert_event, violations
from tests.support.samples import AT, SAMPLES

EVENTS = {topic_of(event_type): build(payload, AT) for event_type, payload in SAMPLES.items()}
ANY_TOPIC = pytest.mark.parametrize("name", TOPICS)


def _body(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(msgspec.json.encode(EVENTS[name]))
    return body


def test_the_files_are_those_of_the_types() -> None:
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (CONTRACTS / "events").iterdir()}
    wanted = {f"{topic}.schema.json": schema for topic, schema in schemas().items()}
    assert files == wanted, "the types have changed: run `make contracts` and look at what it means for readers"


@pytest.mark.parametrize("payload", SAMPLES.values(), ids=SAMPLES)
def test_every_event_keeps_its_contract(payload: Payload) -> None:
    event = build(payload, AT)
    assert_event(topic_of(event.type), event.correlation_id.encode(), msgspec.json.encode(event))


@ANY_TOPIC
def test_an_event_of_another_type_or_version_violates_the_contract(name: str) -> None:
    body = _body(name)
    for change in ({"type": "order.unknown"}, {"version": 2}, {"version": "1"}, {"correlationId": ""}, {"id": "7"}):
        assert violations(f"events/{name}.schema.json", body | change)


@ANY_TOPIC
def test_every_field_of_the_envelope_is_required(name: str) -> None:
    body = _body(name)
    for field in body:
        assert violations(f"events/{name}.schema.json", {key: body[key] for key in body if key != field})


@ANY_TOPIC
def test_times_are_utc(name: str) -> None:
    for time in ("2026-01-02T03:04:05", "2026-01-02T03:04:05+01:00", "2026-01-02", "yesterday", 1_767_323_045):
        assert violations(f"events/{name}.schema.json", _body(name) | {"occurredAt": time})


@pytest.mark.parametrize("amount", [129.0, 129, "NaN", "1E+2", "-1.00", "", "0.00", " 1", "1,5", None])
@pytest.mark.parametrize("name", ["order.created.v1", "payment.authorized.v1", "order.updated.v1"])
def test_money_is_a_positive_decimal_string(name: str, amount: object) -> None:
    body = _body(name)
    body["payload"]["amount"] = amount
    assert violations(f"events/{name}.schema.json", body)


@pytest.mark.parametrize("quantity", [0, -1, 1.5, "1", None])
@pytest.mark.parametrize(
    "name", ["order.created.v1", "payment.authorized.v1", "inventory.reserved.v1", "inventory.released.v1"]
)
def test_quantities_are_whole_and_positive(name: str, quantity: object) -> None:
    body = _body(name)
    body["payload"]["items"][0]["qty"] = quantity
    assert violations(f"events/{name}.schema.json", body)


@ANY_TOPIC
def test_the_contract_allows_new_fields(name: str) -> None:
    body = _body(name)
    body["payload"]["added"] = {"later": True}
    assert violations(f"events/{name}.schema.json", body | {"added": 1}) == []
