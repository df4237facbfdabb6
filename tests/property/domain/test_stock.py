"""Allocation never oversells, and an order gets all its lines or none (P3)."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orderstream.domain.stock import Reserved, allocate, give_back, net

SKUS = st.sampled_from("ABCD")
STOCK = st.dictionaries(SKUS, st.integers(0, 12))
ORDERS = st.lists(st.dictionaries(SKUS, st.integers(1, 6), min_size=1), max_size=12)


@given(STOCK, ORDERS)
def test_stock_is_conserved_and_never_negative(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    available = dict(stock)
    held = net([lines for lines in orders if isinstance(allocate(available, lines), Reserved)], [])
    assert all(units >= 0 for units in available.values())
    assert Counter(available) + Counter(held) == Counter(stock)


@given(STOCK, ORDERS)
def test_all_lines_or_none(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    available = dict(stock)
    for lines in orders:
        before = dict(available)
        answer = allocate(available, lines)
        fits = all(before.get(sku, -1) >= quantity for sku, quantity in lines.items())
        assert isinstance(answer, Reserved) == fits
        taken = {sku: before[sku] - available[sku] for sku in before if before[sku] != available[sku]}
        assert taken == (lines if fits else {})


@given(STOCK, ORDERS)
def test_a_refusal_names_the_lines_at_fault(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    available = dict(stock)
    for lines in orders:
        answer = allocate(available, lines)
        if isinstance(answer, Reserved):
            continue
        unknown = {sku for sku in lines if sku not in stock}
        short = {sku for sku in lines if sku in stock and available[sku] < lines[sku]}
        assert (answer.reason, set(answer.skus)) == (("UNKNOWN_SKU", unknown) if unknown else ("OUT_OF_STOCK", short))


@given(ORDERS)
def test_what_is_given_back_was_never_taken(orders: list[dict[str, int]]) -> None:
    assert net(orders, orders) == {}
    available = dict.fromkeys("ABCD", 0)
    for lines in orders:
        give_back(available, lines)
    assert {sku: units for sku, units in available.items() if units} == net(orders, [])
