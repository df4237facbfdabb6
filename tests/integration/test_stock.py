"""The stock commands on PostgreSQL: how units come in and go out beside the worker's own moves (P3)."""

import pytest

from orderstream.inventory_worker.stock import TooFewError, UnknownSkuError, add_available, listing, set_available
from orderstream.postgres.connect import Connection


def test_units_are_set_added_and_taken(connection: Connection, postgres_url: str) -> None:
    set_available(postgres_url, "A", 5)
    connection.execute("UPDATE inventory SET reserved = 3 WHERE sku = 'A'")
    add_available(postgres_url, "A", 2)
    add_available(postgres_url, "A", -7)
    add_available(postgres_url, "B", 4)
    set_available(postgres_url, "B", 1)
    assert listing(postgres_url) == [("A", 0, 3), ("B", 1, 0)]


def test_no_more_is_taken_than_there_is(postgres_url: str) -> None:
    add_available(postgres_url, "A", 2)
    with pytest.raises(TooFewError, match="fewer than 3 units of A"):
        add_available(postgres_url, "A", -3)
    with pytest.raises(UnknownSkuError, match="GONE"):
        add_available(postgres_url, "GONE", -1)
    assert listing(postgres_url) == [("A", 2, 0)]
