"""Says in one word what an order waits for, by a few columns of its rows. The page of an order says it in sentences."""

from typing import Literal

Kind = Literal[
    "outbox",
    "kafka",
    "payment_call",
    "payment_retry",
    "provider_pending",
    "void",
    "stock",
    "order",
    "compensation",
    "newer_version",
]


def waiting_kind(  # noqa: PLR0911 - a return for each case
    status: str,
    *,
    is_compensating: bool,
    has_event: bool,
    payment_state: str | None,
    is_pending: bool,
    attempts: int | None,
    has_reservation: bool,
) -> Kind | None:
    """Return what an order waits for, or None if it is settled, compensated and published.

    `has_event` means that an event of the order waits in the outbox. `is_pending` means that the customer or the bank
    has not decided about the payment. `payment_state` is None if there is no payment yet.
    """
    known = (None, "PENDING", "AUTHORIZED", "FAILED", "VOIDING", "VOIDED")
    if status not in ("PROCESSING", "PAID"):
        if is_compensating:
            return "compensation" if payment_state in known else "newer_version"
        if has_event:
            return "outbox"
        return None if status in ("CONFIRMED", "FAILED", "CANCELLED") else "newer_version"
    match payment_state:
        case "PENDING":
            return "provider_pending" if is_pending else "payment_retry" if attempts else "payment_call"
        case "VOIDING":
            return "void"
        case _ if payment_state not in known:
            return "newer_version"
        case _ if has_event:
            return "outbox"
        case None:
            return "kafka"
        case "AUTHORIZED" if not has_reservation:
            return "stock"
        case _:
            return "order"
