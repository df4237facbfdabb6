"""Who answers which event with what, as the design says it; the handlers are held to it."""

from itertools import product
from typing import get_args

from orderstream.domain.order import (
    Facts,
    FactUpdate,
    OrderState,
    PaymentFact,
    Status,
    StockFact,
    aborts,
    apply,
    derive,
)

# (service, event consumed) -> events that may answer it.
ANSWERS: dict[tuple[str, str], set[str]] = {
    ("payment-worker", "order.created"): {"payment.authorized", "payment.failed", "payment.voided"},
    ("payment-worker", "order.aborted"): {"payment.failed", "payment.voided"},
    ("inventory-worker", "payment.authorized"): {"inventory.reserved", "inventory.failed", "inventory.released"},
    ("inventory-worker", "order.aborted"): {"inventory.released"},
    ("order-service", "payment.authorized"): {"order.updated", "order.aborted"},
    ("order-service", "payment.failed"): {"order.updated", "order.aborted"},
    ("order-service", "payment.voided"): {"order.updated", "order.aborted"},
    ("order-service", "inventory.reserved"): {"order.updated", "order.aborted"},
    ("order-service", "inventory.failed"): {"order.updated", "order.aborted"},
    ("order-service", "inventory.released"): {"order.updated", "order.aborted"},
}

FACT_OF: dict[str, Facts] = {
    "payment.authorized": Facts(payment="authorized"),
    "payment.failed": Facts(payment="failed"),
    "payment.voided": Facts(payment="voided"),
    "inventory.reserved": Facts(stock="reserved"),
    "inventory.failed": Facts(stock="failed"),
    "inventory.released": Facts(stock="released"),
}

Node = tuple[str, bool]
"""An event, and whether its order has been aborted by the time that the event is met."""


def _may_abort(event_type: str, aborted: bool) -> bool:
    """Say whether order-service can answer the event with order.aborted, whatever is known of the order."""
    update = FactUpdate(FACT_OF[event_type])
    statuses: tuple[Status, ...] = ("FAILED", "CANCELLED")
    for payment, stock in product(get_args(PaymentFact), get_args(StockFact)):
        known = Facts(payment, stock)
        for status in statuses if aborted else (derive(payment, stock),):
            before = OrderState(status, known)
            if aborts(before, apply(before, update), update):
                return True
    return False


def successors(node: Node) -> set[Node]:
    """Return what may follow an event: its answers, and, as an order may be aborted at any time, itself thereafter."""
    event_type, aborted = node
    answers: set[Node] = set() if aborted else {(event_type, True)}
    for (service, consumed), emitted in ANSWERS.items():
        if consumed != event_type:
            continue
        for answer in emitted - {"order.aborted"}:
            answers.add((answer, aborted))
        if service == "order-service" and _may_abort(event_type, aborted):
            answers.add(("order.aborted", True))
    return answers
