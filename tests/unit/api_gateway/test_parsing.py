"""Parsing of new orders, and the violations of invalid bodies."""

import json
from typing import Any

import pytest

from orderstream.api_gateway.orders import violations as module
from orderstream.api_gateway.orders.parsing import BYTE_ORDER_MARK, InvalidOrderError, read_order
from orderstream.api_gateway.orders.violations import MARKS_MAX, violations
from tests.support.bodies import BAD, GOOD, README, Bad, Good, order
from tests.support.samples import ORDER_ID


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
def test_a_valid_order_has_no_violations(good: Good) -> None:
    assert violations(good.body.removeprefix(BYTE_ORDER_MARK)) == []


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_every_violation_is_reported_with_its_pointer(bad: Bad) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        read_order(bad.body, ORDER_ID)
    assert {error.pointer for error in caught.value.errors} == bad.pointers
    assert all(error.detail for error in caught.value.errors)


def test_a_body_that_only_the_decoder_rejects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.api_gateway.orders.parsing.violations", lambda _body: [])
    with pytest.raises(InvalidOrderError) as caught:
        read_order(b"[", ORDER_ID)
    assert [error.pointer for error in caught.value.errors] == [""]


def test_an_order_without_additional_members_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "orderstream.api_gateway.orders.parsing.violations", lambda _body: pytest.fail("the violations were searched")
    )
    assert read_order(README, ORDER_ID).user_id == "u-1"


def test_the_violations_of_a_thousand_wrong_items_are_all_reported() -> None:
    items = "[" + ",".join(["{}"] * 1000) + "]"
    assert len(violations(order(items=items))) == 3000


def test_the_length_and_number_of_pointers_are_limited() -> None:
    names = ",".join(f'"{number}":"\\ud800"' for number in range(20_000))
    found = violations(order(more=f',"{"x" * 10_000}":{{{names}}}'))
    assert len(found) <= 5_000
    assert max(len(violation.pointer) for violation in found) <= 500


def test_no_pointers_are_built_for_ignored_values(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    join = module._join

    def count(pointer: str, name: str | int) -> str:
        joined.append(name)
        return join(pointer, name)

    monkeypatch.setattr(module, "_join", count)
    zeros = ",".join(["0"] * 15_000)
    assert read_order(order(more=f',"x":[{zeros}]'), ORDER_ID).user_id == "u-1"
    assert joined == []
    assert read_order(order(more=f',"x":[{zeros}],"y":"NaN"'), ORDER_ID).user_id == "u-1"
    assert joined == ["items", "x", 0]


def test_a_body_with_far_more_values_than_an_order_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("the body was parsed"))
    for value in ("0", "[]", "{}", "[[]]"):
        values = ",".join([value] * (MARKS_MAX + 1))
        with pytest.raises(InvalidOrderError) as caught:
            read_order(order(more=f',"x":[{values}]'), ORDER_ID)
        assert [(error.pointer, error.detail) for error in caught.value.errors] == [
            ("", "has more than 20000 commas and opening brackets outside its strings")
        ]


def test_the_largest_order_has_fewer_values_than_the_limit() -> None:
    def name(number: int) -> str:
        return f"{number:04}:" + "," * 59

    lines: list[Any] = [{"sku": name(number), "qty": 1_000_000, "price": "9" * 12} for number in range(1_000)]
    body = json.dumps({"userId": "," * 128, "items": lines, "amount": 1, "currency": "USD"}).encode()
    assert len(read_order(body, ORDER_ID).items) == 1_000
