"""The diagrams of docs/architecture.md, in Mermaid, generated from the saga and from the pure functions of the domain.

`make diagrams` writes them.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, get_args

from msgspec import Struct

from orderstream.domain import payment, stock
from orderstream.domain.events import PAYLOADS
from orderstream.domain.order import (
    Facts,
    FactUpdate,
    OrderState,
    PaymentFact,
    Status,
    StockFact,
    apply,
    cancel,
    derive,
    settled,
    time_out,
)
from orderstream.domain.saga import FACTS, PAYMENT_EVENTS, STOCK_EVENTS, consumers_of, emitters_of

START = "[*]"
_OUTCOMES: dict[type[object], str] = {
    payment.Authorized: "authorized",
    payment.Declined: "declined",
    payment.Pending: "pending",
    payment.Voided: "voided",
    payment.NothingToVoid: "nothing to void",
    payment.Unanswered: "unanswered",
    payment.Refused: "refused",
    payment.InFlight: "call still runs",
    payment.TooOld: "too old",
}


class Edge(Struct, frozen=True):
    """An arrow of a diagram: what causes it, and in which case."""

    start: str
    end: str
    cause: str
    case: str = ""


def diagrams() -> dict[str, str]:
    """Return the text of each diagram by its name."""
    return {
        "events": _events(),
        "order": _states(_order_edges(), {}),
        "payment": _states(_payment_edges(), PAYMENT_EVENTS),
        "stock": _states(_stock_edges(), STOCK_EVENTS),
    }


def _events() -> str:
    """Return the graph of the services, with an edge for the events that one emits and the other consumes."""
    labels = _labels(
        Edge(emitter, consumer, event)
        for event in PAYLOADS
        for emitter in emitters_of(event)
        for consumer in consumers_of(event) or ("your own readers",)
    )
    services = dict.fromkeys(service for ends in labels for service in ends)
    lines = [f'{_id(service)}["{service}"]' for service in services]
    lines += [f'{_id(start)} -->|"{label}"| {_id(end)}' for (start, end), label in labels.items()]
    return "\n  ".join(["flowchart LR", *lines])


def _id(service: str) -> str:
    return service.replace("-", "_").replace(" ", "_")


def _states(edges: Iterable[Edge], events: Mapping[Any, str]) -> str:
    """Return a state diagram. A state shows the event that it leads to."""
    lines = [f"{state} : {state}<br/>{event}" for state, event in events.items()]
    lines += [f"{start} --> {end} : {label}" for (start, end), label in _labels(edges).items()]
    return "\n  ".join(["stateDiagram-v2", *lines])


def _labels(edges: Iterable[Edge]) -> dict[tuple[str, str], str]:
    """Return one label for all edges between the same two nodes: each cause once, with its cases."""
    causes: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for edge in edges:
        cases = causes.setdefault((edge.start, edge.end), {}).setdefault(edge.cause, {})
        if edge.case:
            cases[edge.case] = None
    return {
        ends: ", ".join(f"{cause} ({', '.join(cases)})" if cases else cause for cause, cases in found.items())
        for ends, found in causes.items()
    }


def _order_edges() -> Iterator[Edge]:
    """Yield each change of the status: by the fact of an event, by a cancel, and by the deadline."""
    yield Edge(START, "PROCESSING", "POST /orders")
    known = [Facts(*facts) for facts in product(get_args(PaymentFact), get_args(StockFact))]
    orders = [OrderState(derive(facts.payment, facts.stock), facts) for facts in known]
    for before, (event, fact) in product(orders, FACTS.items()):
        yield from _changed(before, apply(before, FactUpdate(fact)), event)
    for status in get_args(Status):
        before = OrderState(status, Facts())
        if after := cancel(before):
            yield from _changed(before, after, "cancel")
        if not settled(status):
            yield from _changed(before, time_out(before), "deadline")


def _changed(before: OrderState, after: OrderState, cause: str) -> Iterator[Edge]:
    if before.status != after.status:
        yield Edge(before.status, after.status, cause)


def _payment_edges() -> Iterator[Edge]:
    for outcome in get_args(payment.FirstOutcome):
        yield from _transition(None, payment.on_created(None, outcome()), "order.created", _OUTCOMES[outcome])
        for state in payment.STATES:
            yield from _transition(state, payment.on_created(state, outcome()), "late authorization")
    for paid in (None, *payment.STATES):
        yield from _transition(paid, payment.on_aborted(paid, None), "order.aborted")
    for outcome, is_last in product(get_args(payment.Outcome), (False, True)):
        after = payment.on_attempted("PENDING", None, 1, outcome(), is_last=is_last, is_overdue=is_last)
        last = "pending for too long" if outcome is payment.Pending else "last attempt"
        case = last if after.state == "VOIDING" else _OUTCOMES[outcome]
        yield from _transition("PENDING", after, "timer", case)
    for outcome, reason in product(get_args(payment.VoidOutcome), (None, "PROVIDER_UNAVAILABLE")):
        after = payment.on_attempted("VOIDING", reason, 1, outcome(), is_last=False)
        case = f"voided after {reason}" if after.state == "FAILED" else _OUTCOMES[outcome]
        yield from _transition("VOIDING", after, "timer", case)


def _stock_edges() -> Iterator[Edge]:
    for available in ({"SKU": 1}, {"SKU": 0}, {}):
        after = stock.on_authorized(available, {"SKU": 1})
        yield from _transition(None, after, "payment.authorized", after.reason or "all lines fit")
    for state in (None, *stock.STATES):
        yield from _transition(state, stock.on_aborted(state, {}, None), "order.aborted")


def _transition(
    state: str | None, after: payment.Transition | stock.Reservation | None, cause: str, case: str = ""
) -> Iterator[Edge]:
    if after:
        yield Edge(state or START, after.state, cause, case)
