"""The orders that the play desk places: the kinds, a mix of them, and one order of a kind."""

import random
from typing import Any, Literal, get_args

from msgspec import Struct

KindName = Literal["well", "declined", "outOfStock", "unknownSku", "manyLines", "cancelled", "repeated"]

STOCKED = tuple(f"PLAY-{number:02}" for number in range(1, 21))
"""SKUs that the play desk keeps in stock."""
SOLD_OUT = "PLAY-SOLD-OUT"
"""A SKU that exists and has no units."""
UNKNOWN = "PLAY-UNKNOWN"
DECLINED_AMOUNT = "13.13"
"""The amount of orders that are to be declined: the play desk puts it into `declinedAmounts` of the payment simulator.
No other kind has this amount."""
_DECLINED_CENTS = 1313
_PRICES_CENTS = (490, 990, 1900, 4950, 12900)
_CURRENCIES = ("EUR", "USD", "GBP")
_USERS = 500


class Kind(Struct, frozen=True, rename="camel"):
    """A kind of order, with what it ends as if all goes well with the system."""

    name: KindName
    title: str
    ends: str
    default_share: int


KINDS = (
    Kind("well", "Goes well", "CONFIRMED", 70),
    Kind("declined", "Declined by the bank", "FAILED, PAYMENT_DECLINED", 8),
    Kind("outOfStock", "Sold out", "FAILED, OUT_OF_STOCK. Its charge is voided", 6),
    Kind("unknownSku", "Unknown SKU", "FAILED, UNKNOWN_SKU. Its charge is voided", 2),
    Kind("manyLines", "Twenty lines", "CONFIRMED, with all lines or none", 4),
    Kind("cancelled", "Cancelled a moment later", "CANCELLED. Charge and stock are given back", 6),
    Kind("repeated", "Sent twice with one idempotency key", "CONFIRMED, once", 4),
)
DEFAULT_MIX = {kind.name: kind.default_share for kind in KINDS}
assert {kind.name for kind in KINDS} == set(get_args(KindName))


def draw_kind(mix: dict[KindName, int], source: random.Random) -> KindName:
    """Draw a kind by its share."""
    return source.choices(list(mix), list(mix.values()))[0]


def order_of(kind: KindName, source: random.Random) -> dict[str, Any]:
    """Return the body of `POST /orders` for an order of this kind."""
    skus: tuple[str, ...] = (source.choice(STOCKED),)
    if kind == "outOfStock":
        skus = (*skus, SOLD_OUT)
    elif kind == "unknownSku":
        skus = (UNKNOWN,)
    elif kind == "manyLines":
        skus = STOCKED
    prices = [_DECLINED_CENTS] if kind == "declined" else [source.choice(_PRICES_CENTS) for _ in skus]
    items = [{"sku": sku, "qty": 1, "price": _amount(price)} for sku, price in zip(skus, prices, strict=True)]
    return {
        "userId": f"play-{source.randrange(_USERS):03}",
        "items": items,
        "amount": _amount(sum(prices)),
        "currency": source.choice(_CURRENCIES),
    }


def _amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"
