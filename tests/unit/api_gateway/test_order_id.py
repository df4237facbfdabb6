"""New order ids, and the canonical form of an id in a path."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from orderstream.api_gateway.orders.order_id import canonical, new_order_id
from tests.support.samples import AT, ORDER_ID


def test_an_id_is_a_uuid_of_version_7_in_canonical_form() -> None:
    for _ in range(1000):
        order_id = new_order_id(AT.timestamp())
        parsed = UUID(order_id)
        assert str(parsed) == order_id
        assert parsed.version == 7
        assert parsed.variant == "specified in RFC 4122"
        assert datetime.fromtimestamp((parsed.int >> 80) / 1000, UTC) == AT.replace(microsecond=678_000)


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_order_id((AT + timedelta(milliseconds=number)).timestamp()) for number in range(1000)]
    assert ids == sorted(ids)
    assert len({new_order_id(AT.timestamp()) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("unix_seconds", [-1e12, -1, 0, 2**48 / 1000, 1e15])
def test_a_clock_beyond_the_range_of_an_id_still_gives_valid_ids(unix_seconds: float) -> None:
    order_id = new_order_id(unix_seconds)
    assert canonical(order_id) == order_id
    assert UUID(order_id).version == 7


def test_an_id_in_upper_case_is_the_same_order() -> None:
    assert canonical(ORDER_ID.upper()) == ORDER_ID
    assert canonical(ORDER_ID) == ORDER_ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        ORDER_ID[:-1],
        ORDER_ID + "0",
        ORDER_ID + "\n",
        f"{{{ORDER_ID}}}",
        ORDER_ID.replace("-", ""),
        "\x00",
        ORDER_ID.replace("0", "\u0660"),
    ],
)
def test_a_text_that_is_not_a_uuid_is_not_an_order_id(text: str) -> None:
    assert canonical(text) is None
