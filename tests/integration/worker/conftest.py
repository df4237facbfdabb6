"""Fixtures for the worker loop: a consumer group, a table for decisions, and orders of their own."""

import itertools
from uuid import uuid4

import pytest
from msgspec import structs

from orderstream.domain.events import Event, Payload, PaymentAuthorized, build
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.worker.recorder import SCHEMA
from tests.support.samples import AT, ITEMS
from tests.support.topics import new_group

_numbers = itertools.count(1)


@pytest.fixture
def group(settings: Settings, connection: Connection) -> str:
    """Return a new consumer group that begins at the end of the topics. Creates its dead-letter topic and its table."""
    connection.execute(SCHEMA.encode())
    name = f"recorder-{next(_numbers)}"
    new_group(settings.kafka_brokers, name)
    return name


def authorized(number: int, sku: str = ITEMS[0].sku) -> list[Event[Payload]]:
    """Return payment.authorized events of `number` orders."""
    items = (structs.replace(ITEMS[0], sku=sku), *ITEMS[1:])
    return [
        build(PaymentAuthorized(order_id=str(uuid4()), items=items, amount=ITEMS[0].price, currency="USD"), AT)
        for _ in range(number)
    ]
