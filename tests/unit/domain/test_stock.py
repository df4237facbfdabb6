"""Allocation: all lines or none, from one running stock (P3)."""

from orderstream.domain.stock import Refused, Reserved, allocate, give_back, net


def test_lines_that_fit_are_taken() -> None:
    available = {"A": 5, "B": 2}
    assert allocate(available, {"A": 3, "B": 2}) == Reserved()
    assert available == {"A": 2, "B": 0}


def test_one_short_line_takes_nothing() -> None:
    available = {"A": 5, "B": 1}
    assert allocate(available, {"A": 3, "B": 2}) == Refused("OUT_OF_STOCK", ("B",))
    assert available == {"A": 5, "B": 1}


def test_every_short_sku_is_named() -> None:
    assert allocate({"A": 0, "B": 1, "C": 0}, {"C": 1, "B": 1, "A": 1}) == Refused("OUT_OF_STOCK", ("C", "A"))


def test_an_unknown_sku_weighs_more_than_a_short_one() -> None:
    available = {"A": 0}
    assert allocate(available, {"A": 1, "X": 1, "Y": 1}) == Refused("UNKNOWN_SKU", ("X", "Y"))
    assert available == {"A": 0}


def test_orders_of_a_batch_see_each_other() -> None:
    available = {"HOT": 3}
    answers = [allocate(available, {"HOT": 2}), allocate(available, {"HOT": 2}), allocate(available, {"HOT": 1})]
    assert answers == [Reserved(), Refused("OUT_OF_STOCK", ("HOT",)), Reserved()]
    assert available == {"HOT": 0}


def test_net_is_what_was_reserved_less_what_was_released() -> None:
    assert net([{"B": 1, "A": 2}, {"C": 4, "B": 3}], [{"A": 5}, {"C": 4}]) == {"A": -3, "B": 4}
    assert net([], []) == {}


def test_given_back_units_can_be_allocated_again() -> None:
    available = {"A": 0}
    give_back(available, {"A": 2, "GONE": 1})
    assert available == {"A": 2}
    assert isinstance(allocate(available, {"A": 2}), Reserved)
