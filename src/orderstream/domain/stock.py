"""Stock as pure functions: an order gets all its lines or none, and no unit is promised twice (P3).

A reservation is one row for one order. The functions `on_...` are the rows of the table in docs/architecture.md.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Literal, TypeGuard, assert_never, get_args, overload

from msgspec import Struct

from orderstream.domain.order import AnyReason, StockFact

ReservationState = Literal["RESERVED", "FAILED", "RELEASED"]
STATES: tuple[ReservationState, ...] = get_args(ReservationState)

Lines = Mapping[str, int]
"""SKU -> quantity of one order."""


class Reservation(Struct, frozen=True):
    """The outcome for one order.

    A RESERVED reservation holds `lines`, and a RELEASED reservation has returned them. `skus` are the SKUs that were
    unknown or had too few units.
    """

    state: ReservationState
    lines: Lines
    reason: AnyReason | None = None
    skus: tuple[str, ...] = ()


def is_known(state: str) -> TypeGuard[ReservationState]:
    """Say whether this version knows a state. A state that a newer version has added is left to that version."""
    return state in STATES


def on_authorized(available: MutableMapping[str, int], lines: Lines) -> Reservation:
    """Reserve the lines of a paid order. If every line fits, take them out of `available` (SKU -> units).

    If a line does not fit, `available` stays. If some SKUs are unknown and others lack
    units, the result names the unknown ones, because new stock would not help them.
    """
    if unknown := tuple(sku for sku in lines if sku not in available):
        return Reservation("FAILED", {}, "UNKNOWN_SKU", unknown)
    if short := tuple(sku for sku, quantity in lines.items() if available[sku] < quantity):
        return Reservation("FAILED", {}, "OUT_OF_STOCK", short)
    for sku, quantity in lines.items():
        available[sku] -= quantity
    return Reservation("RESERVED", lines)


@overload
def on_aborted(state: None, lines: Lines, reason: AnyReason | None) -> Reservation: ...


@overload
def on_aborted(state: ReservationState, lines: Lines, reason: AnyReason | None) -> Reservation | None: ...


def on_aborted(state: ReservationState | None, lines: Lines, reason: AnyReason | None) -> Reservation | None:
    """Return the reservation after the abort of its order; None if it is released already.

    `state` is None if there is no reservation yet. The order is then released without lines, so that none is made.
    """
    match state:
        case "RESERVED":
            return Reservation("RELEASED", lines, reason)
        case None | "FAILED":
            return Reservation("RELEASED", {}, reason)
        case "RELEASED":
            return None
        case _:
            assert_never(state)


def fact_of(state: str | None) -> StockFact:
    """Return what an order may know of its stock, by the state of the reservation or None if there is none.

    The fact is `none` for a state of a newer version.
    """
    if state is None or not is_known(state):
        return "none"
    match state:
        case "RESERVED":
            return "reserved"
        case "FAILED":
            return "failed"
        case "RELEASED":
            return "released"
        case _:
            assert_never(state)


def give_back(available: MutableMapping[str, int], lines: Lines) -> None:
    """Add the lines of a released order to `available`. A SKU that no longer exists is left out."""
    for sku, quantity in lines.items():
        if sku in available:
            available[sku] += quantity


def net(reserved: Sequence[Lines], released: Sequence[Lines]) -> dict[str, int]:
    """Return the change of the reserved units of each SKU. SKUs that do not change are left out."""
    sums: dict[str, int] = {}
    for sign, orders in ((1, reserved), (-1, released)):
        for lines in orders:
            for sku, quantity in lines.items():
                sums[sku] = sums.get(sku, 0) + sign * quantity
    return {sku: quantity for sku, quantity in sums.items() if quantity}
