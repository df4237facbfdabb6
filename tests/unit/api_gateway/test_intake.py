"""What a body is read as, and everything that is wrong with one that is no order."""

import pytest

from orderstream.api_gateway.intake import InvalidOrderError, read_order
from orderstream.api_gateway.violations import violations
from tests.bodies import BAD, GOOD, README, Bad, Good, order
from tests.samples import ORDER_ID


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD.keys())
def test_an_order_is_read_exactly(good: Good) -> None:
    created = read_order(good.body, ORDER_ID)
    assert created.order_id == ORDER_ID
    assert created.user_id == good.user
    assert created.currency == good.currency
    assert str(created.amount) == str(good.amount)
    assert [(item.sku, item.qty, str(item.price)) for item in created.items] == [
        (sku, qty, str(price)) for sku, qty, price in good.items
    ]


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD.keys())
def test_the_slow_way_finds_nothing_wrong_with_an_order(good: Good) -> None:
    assert violations(good.body) == []


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_every_violation_is_named_by_its_pointer(bad: Bad) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        read_order(bad.body, ORDER_ID)
    assert {error.pointer for error in caught.value.errors} == bad.pointers
    assert all(error.detail for error in caught.value.errors)


def test_what_only_the_fast_decoder_minds_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.api_gateway.intake.violations", lambda _body: [])
    with pytest.raises(InvalidOrderError) as caught:
        read_order(b"[", ORDER_ID)
    assert [error.pointer for error in caught.value.errors] == [""]


def test_an_order_without_extras_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.api_gateway.intake.violations", lambda _body: pytest.fail("walked"))
    assert read_order(README, ORDER_ID).user_id == "u-1"


def test_a_thousand_wrong_items_are_all_named() -> None:
    items = "[" + ",".join(["{}"] * 1000) + "]"
    assert len(violations(order(items=items))) == 3000


def test_pointers_and_their_number_are_bounded() -> None:
    names = ",".join(f'"{number}":"\\ud800"' for number in range(20_000))
    found = violations(order(more=f',"{"x" * 10_000}":{{{names}}}'))
    assert len(found) <= 5_000
    assert max(len(one.pointer) for one in found) <= 500
