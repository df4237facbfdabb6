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


def totals(orders: Sequence[Lines]) -> dict[str, int]:
    """Add the lines of several orders up, per SKU, in the order of the SKUs: the order in which rows are locked."""
    sums: dict[str, int] = {}
    for lines in orders:
        for sku, quantity in lines.items():
            sums[sku] = sums.get(sku, 0) + quantity
    return dict(sorted(sums.items()))
