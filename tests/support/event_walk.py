"""The event graph of domain/saga.py as a walk: which events may follow an event. Tests hold the handlers against it."""

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
from orderstream.domain.saga import FACTS, REACTIONS

ANSWERS: dict[tuple[str, str], set[str]] = {
    (reaction.service, reaction.event): set(reaction.emits) for reaction in REACTIONS
}
"""(service, event consumed) -> events that may answer it."""

Node = tuple[str, bool]
"""An event, and whether its order is aborted when a service consumes the event."""


def _may_abort(event_type: str, aborted: bool) -> bool:
    """Say whether order-service can answer the event with order.aborted, for any facts that the order may have."""
    update = FactUpdate(FACTS[event_type])
    statuses: tuple[Status, ...] = ("FAILED", "CANCELLED")
    for payment, stock in product(get_args(PaymentFact), get_args(StockFact)):
        known = Facts(payment, stock)
        for status in statuses if aborted else (derive(payment, stock),):
            before = OrderState(status, known)
            if aborts(before, apply(before, update), update):
                return True
    return False


def successors(node: Node) -> set[Node]:
    """Return the nodes that may follow: the answers to the event, and the event itself after an abort of its order."""
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
