"""The event that a recorded payment leads to. The same payment always leads to the same event (P7)."""

from decimal import Decimal
from typing import assert_never

from msgspec import Struct

from orderstream.domain.events import Item, Payload, PaymentAuthorized, PaymentFailed, PaymentVoided
from orderstream.domain.order import AnyReason
from orderstream.domain.payment import is_known


class Purchase(Struct, frozen=True):
    """The lines that an order pays for, and the amount that is charged."""

    items: tuple[Item, ...]
    amount: Decimal
    currency: str


def answer(order_id: str, state: str, reason: AnyReason | None, purchase: Purchase | None) -> Payload | None:
    """Return the event of a payment in a state. Only payment.authorized needs the purchase.

    Return None while the outcome is open, and for a state of a newer version, which emits the event itself.
    """
    if not is_known(state):
        return None
    match state:
        case "AUTHORIZED":
            if purchase is None:
                return None
            return PaymentAuthorized(
                order_id=order_id, items=purchase.items, amount=purchase.amount, currency=purchase.currency
            )
        case "FAILED":
            return PaymentFailed(order_id=order_id, reason=reason or "PAYMENT_DECLINED")
        case "VOIDED":
            return PaymentVoided(order_id=order_id, reason=reason)
        case "PENDING" | "VOIDING":
            return None
        case _:
            assert_never(state)
