"""Stock without a database: all lines or none from one running stock, and the table of docs/architecture.md (P3)."""

from pathlib import Path

import pytest

from orderstream.domain.order import STOCK_RANK
from orderstream.domain.stock import (
    STATES,
    Reservation,
    ReservationState,
    fact_of,
    give_back,
    is_known,
    net,
    on_aborted,
    on_authorized,
)

ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"


def _refused(reason: str, *skus: str) -> Reservation:
    return Reservation("FAILED", {}, reason, skus)


def test_lines_that_fit_are_taken() -> None:
    available = {"A": 5, "B": 2}
    assert on_authorized(available, {"A": 3, "B": 2}) == Reservation("RESERVED", {"A": 3, "B": 2})
    assert available == {"A": 2, "B": 0}


def test_if_one_line_lacks_units_no_stock_is_reserved() -> None:
    available = {"A": 5, "B": 1}
    assert on_authorized(available, {"A": 3, "B": 2}) == _refused("OUT_OF_STOCK", "B")
    assert available == {"A": 5, "B": 1}


def test_every_short_sku_is_named() -> None:
    assert on_authorized({"A": 0, "B": 1, "C": 0}, {"C": 1, "B": 1, "A": 1}) == _refused("OUT_OF_STOCK", "C", "A")


def test_an_unknown_sku_is_named_before_a_short_one() -> None:
    available = {"A": 0}
    assert on_authorized(available, {"A": 1, "X": 1, "Y": 1}) == _refused("UNKNOWN_SKU", "X", "Y")
    assert available == {"A": 0}


def test_orders_of_a_batch_share_one_running_stock() -> None:
    available = {"HOT": 3}
    outcomes = [on_authorized(available, {"HOT": quantity}) for quantity in (2, 2, 1)]
    assert outcomes == [
        Reservation("RESERVED", {"HOT": 2}),
        _refused("OUT_OF_STOCK", "HOT"),
        Reservation("RESERVED", {"HOT": 1}),
    ]
    assert available == {"HOT": 0}


@pytest.mark.parametrize("reason", [None, "TIMED_OUT"])
@pytest.mark.parametrize(
    ("state", "given_back"), [(None, {}), ("RESERVED", {"A": 2}), ("FAILED", {}), ("RELEASED", None)]
)
def test_an_abort_releases_every_order_once_and_gives_back_what_was_reserved(
    state: ReservationState | None, given_back: dict[str, int] | None, reason: str | None
) -> None:
    released = None if given_back is None else Reservation("RELEASED", given_back, reason)
    assert on_aborted(state, {"A": 2}, reason) == released


def test_an_order_learns_of_every_state_of_its_reservation() -> None:
    assert [fact_of(state) for state in STATES] == [state.lower() for state in STATES]
    assert {"none", *map(fact_of, STATES)} == set(STOCK_RANK)


def test_a_state_of_a_newer_version_is_not_known() -> None:
    assert all(is_known(state) for state in STATES)
    assert not is_known("PICKED")


def test_the_table_of_the_document_has_a_column_for_each_state() -> None:
    lines = ARCHITECTURE.read_text(encoding="utf-8").splitlines()
    (head,) = [line for line in lines if line.startswith("| input | no row | RESERVED ")]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["input", "no row", *STATES]


def test_the_net_change_is_what_was_reserved_less_what_was_released() -> None:
    assert net([{"B": 1, "A": 2}, {"C": 4, "B": 3}], [{"A": 5}, {"C": 4}]) == {"A": -3, "B": 4}
    assert net([], []) == {}


def test_units_that_were_given_back_can_be_reserved_again() -> None:
    available = {"A": 0}
    give_back(available, {"A": 2, "GONE": 1})
    assert available == {"A": 2}
    assert on_authorized(available, {"A": 2}).state == "RESERVED"
