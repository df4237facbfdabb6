"""No unit is promised twice, and an order gets all its lines or none (P3)."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orderstream.domain.stock import give_back, net, on_authorized

SKUS = st.sampled_from("ABCD")
STOCK = st.dictionaries(SKUS, st.integers(0, 12))
ORDERS = st.lists(st.dictionaries(SKUS, st.integers(1, 6), min_size=1), max_size=12)


@given(STOCK, ORDERS)
def test_stock_is_conserved_and_never_negative(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    available = dict(stock)
    held = net([on_authorized(available, lines).lines for lines in orders], [])
    assert all(units >= 0 for units in available.values())
    assert Counter(available) + Counter(held) == Counter(stock)


@given(STOCK, ORDERS)
def test_an_order_gets_all_its_lines_or_none(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    available = dict(stock)
    for lines in orders:
        before = dict(available)
        outcome = on_authorized(available, lines)
        fits = all(before.get(sku, -1) >= quantity for sku, quantity in lines.items())
        assert (outcome.state, outcome.lines) == (("RESERVED", lines) if fits else ("FAILED", {}))
        taken = {sku: before[sku] - available[sku] for sku in before if before[sku] != available[sku]}
        assert taken == (lines if fits else {})


@given(STOCK, ORDERS)
def test_a_refusal_names_the_lines_at_fault(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    available = dict(stock)
    for lines in orders:
        outcome = on_authorized(available, lines)
        if outcome.state == "RESERVED":
            continue
        unknown = {sku for sku in lines if sku not in stock}
        short = {sku for sku in lines if sku in stock and available[sku] < lines[sku]}
        assert (outcome.reason, set(outcome.skus)) == (("UNKNOWN_SKU", unknown) if unknown else ("OUT_OF_STOCK", short))


@given(ORDERS)
def test_giving_back_undoes_a_reservation(orders: list[dict[str, int]]) -> None:
    assert net(orders, orders) == {}
    available = dict.fromkeys("ABCD", 0)
    for lines in orders:
        give_back(available, lines)
    assert {sku: units for sku, units in available.items() if units} == net(orders, [])
