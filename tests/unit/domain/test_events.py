"""Every service builds equal events: the id follows from the order and the type, the topic from the type (P7)."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid5

import pytest

from orderstream.domain.events import (
    NAMESPACE,
    PAYLOADS,
    TOPICS,
    Event,
    Item,
    Payload,
    PaymentAuthorized,
    StockLine,
    build,
    event_id,
    stock_lines,
    topic_of,
    wanted,
)
from tests.support.samples import SAMPLES, order_updated

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def test_the_nine_topics() -> None:
    assert set(TOPICS) == {
        "order.created.v1",
        "order.aborted.v1",
        "order.updated.v1",
        "payment.authorized.v1",
        "payment.failed.v1",
        "payment.voided.v1",
        "inventory.reserved.v1",
        "inventory.failed.v1",
        "inventory.released.v1",
    }
    assert len(TOPICS) == 9


@pytest.mark.parametrize("payload", SAMPLES.values(), ids=SAMPLES)
def test_an_event_is_its_payload_in_an_envelope(payload: Payload) -> None:
    event = build(payload, NOW)
    assert PAYLOADS[event.type] is type(payload)
    assert topic_of(event.type) == f"{event.type}.v{event.version}"
    assert (event.correlation_id, event.occurred_at, event.payload) == (payload.order_id, NOW, payload)


@pytest.mark.parametrize("payload", SAMPLES.values(), ids=SAMPLES)
def test_a_repeated_event_is_equal_with_the_same_id(payload: Payload) -> None:
    assert build(payload, NOW) == build(payload, NOW)
    assert build(payload, NOW).id == build(payload, NOW + timedelta(days=1)).id
    assert UUID(build(payload, NOW).id).version == 5


def test_the_ids_of_published_events_do_not_change() -> None:
    assert UUID("6f1d1c0e-5a55-5d0b-9d6e-0d7a3b1f4c21") == NAMESPACE
    ids = {name: build(payload, NOW).id for name, payload in SAMPLES.items()}
    assert ids == KNOWN_IDS


def test_ids_differ_by_order_type_and_version_of_the_row() -> None:
    events: list[Event[Payload]] = [build(payload, NOW) for payload in SAMPLES.values()]
    events += [build(order_updated(version=2), NOW), build(order_updated(order_id="another"), NOW)]
    assert len({event.id for event in events}) == len(events)


def test_payment_authorized_carries_what_inventory_needs() -> None:
    authorized = SAMPLES["payment.authorized"]
    assert isinstance(authorized, PaymentAuthorized)
    assert wanted(authorized.items) == {"SKU-1": 2, "SKU-2": 1}


def test_stock_lines_are_in_the_order_of_the_skus() -> None:
    assert stock_lines({"B": 2, "A": 1}) == (StockLine(sku="A", qty=1), StockLine(sku="B", qty=2))


def test_the_wanted_lines_map_each_sku_to_its_quantity() -> None:
    assert wanted([Item(sku="A", qty=3, price=Decimal(1))]) == {"A": 3}


KNOWN_IDS = {
    "order.created": "933d946d-b49d-5f9e-84e5-ffc10db80564",
    "order.aborted": "431baf5c-46e7-5e86-b869-4e4adba8f665",
    "order.updated": "a97cb23f-c9f1-5ecf-9e33-a9e7d38bded2",
    "payment.authorized": "aca1a56f-aea0-57b2-bfaa-b81b9b1863f5",
    "payment.failed": "8e2b74a1-cb98-521e-b0e0-b9f9a4edb84b",
    "payment.voided": "bcbd132a-d8cd-5c01-a458-4dcab89c5ef3",
    "inventory.reserved": "b49b15f7-651f-51c5-8208-7eea4a4752af",
    "inventory.failed": "1812d5d3-80aa-5a65-8a96-4f68d3437596",
    "inventory.released": "5b7f6fb0-c8a8-5bbc-ba47-94ec46456ae4",
}


@pytest.mark.parametrize("name", ["", "o-1:order.created", "é中🎉:payment.voided", *(f"o-{n}" for n in range(50))])
def test_an_id_is_the_name_based_uuid_of_its_name(name: str) -> None:
    assert event_id(name) == str(uuid5(NAMESPACE, name))
