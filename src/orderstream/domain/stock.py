"""Stock allocation: an order gets all its lines or none, and no SKU is ever promised twice (P3)."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Literal

from msgspec import Struct

Lines = Mapping[str, int]
"""SKU -> quantity of one order."""


class Reserved(Struct, frozen=True):
    """All lines are held."""


class Refused(Struct, frozen=True):
    """No line is held; `skus` are those that were unknown or short."""

    reason: Literal["OUT_OF_STOCK", "UNKNOWN_SKU"]
    skus: tuple[str, ...]


Allocation = Reserved | Refused


def allocate(available: MutableMapping[str, int], lines: Lines) -> Allocation:
    """Take `lines` out of `available` (SKU -> units) if every line fits; otherwise leave it as it is.

    An unknown SKU weighs more than a short one: no restocking would help such an order.
    """
    unknown = tuple(sku for sku in lines if sku not in available)
    if unknown:
        return Refused("UNKNOWN_SKU", unknown)
    short = tuple(sku for sku, quantity in lines.items() if available[sku] < quantity)
    if short:
        return Refused("OUT_OF_STOCK", short)
    for sku, quantity in lines.items():
        available[sku] -= quantity
    return Reserved()


def give_back(available: MutableMapping[str, int], lines: Lines) -> None:
    """Put the lines of a released order back; a SKU that is not known any more is left out."""
    for sku, quantity in lines.items():
        if sku in available:
            available[sku] += quantity


def net(reserved: Sequence[Lines], released: Sequence[Lines]) -> dict[str, int]:
    """Return by how much the reservations of each SKU grow, below zero if they shrink; SKUs that stay are left out."""
    sums: dict[str, int] = {}
    for sign, orders in ((1, reserved), (-1, released)):
        for lines in orders:
            for sku, quantity in lines.items():
                sums[sku] = sums.get(sku, 0) + sign * quantity
    return {sku: quantity for sku, quantity in sums.items() if quantity}
