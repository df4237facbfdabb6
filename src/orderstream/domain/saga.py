"""The saga as data: which service answers which event with which events, and what each event says about an order.

The handlers, the consumer groups of Kafka and the diagrams of docs/architecture.md are derived from these tables.
"""

from msgspec import Struct

from orderstream.domain import payment, stock
from orderstream.domain.events import topic_of
from orderstream.domain.order import Facts
from orderstream.domain.payment import PaymentState
from orderstream.domain.stock import ReservationState


class Reaction(Struct, frozen=True):
    """A service consumes `event` and may answer it with the events `emits`, which it publishes without the outbox."""

    service: str
    event: str
    emits: tuple[str, ...]


class Origin(Struct, frozen=True):
    """A service emits events because of an HTTP request or a timer. They leave through the outbox."""

    service: str
    cause: str
    emits: tuple[str, ...]


PAYMENT_EVENTS: dict[PaymentState, str] = {
    "AUTHORIZED": "payment.authorized",
    "FAILED": "payment.failed",
    "VOIDED": "payment.voided",
}
"""State of a payment -> the event that it leads to. There is no event while the outcome is open."""

STOCK_EVENTS: dict[ReservationState, str] = {
    "RESERVED": "inventory.reserved",
    "FAILED": "inventory.failed",
    "RELEASED": "inventory.released",
}
"""State of a reservation -> the event that it leads to."""

FACTS: dict[str, Facts] = {
    **{event: Facts(payment=payment.fact_of(state)) for state, event in PAYMENT_EVENTS.items()},
    **{event: Facts(stock=stock.fact_of(state)) for state, event in STOCK_EVENTS.items()},
}
"""Event type -> the fact that an order learns. order.py derives the status of the order from its facts."""

_RESULTS = ("order.updated", "order.aborted")

REACTIONS: tuple[Reaction, ...] = (
    Reaction("payment-worker", "order.created", ("payment.authorized", "payment.failed", "payment.voided")),
    Reaction("payment-worker", "order.aborted", ("payment.failed", "payment.voided")),
    Reaction(
        "inventory-worker", "payment.authorized", ("inventory.reserved", "inventory.failed", "inventory.released")
    ),
    Reaction("inventory-worker", "order.aborted", ("inventory.released",)),
    Reaction("order-service", "payment.authorized", _RESULTS),
    Reaction("order-service", "payment.failed", _RESULTS),
    Reaction("order-service", "payment.voided", _RESULTS),
    Reaction("order-service", "inventory.reserved", _RESULTS),
    Reaction("order-service", "inventory.failed", _RESULTS),
    Reaction("order-service", "inventory.released", _RESULTS),
)

ORIGINS: tuple[Origin, ...] = (
    Origin("api-gateway", "POST /orders", ("order.created",)),
    Origin("api-gateway", "POST /orders/{orderId}/cancel", _RESULTS),
    Origin("payment-worker", "timer answers", ("payment.authorized", "payment.failed", "payment.voided")),
    Origin("order-service", "timer nudge", ("order.created", *_RESULTS)),
    Origin("order-service", "timer repeat_aborts", ("order.aborted",)),
)

CONSUMER_GROUPS: tuple[str, ...] = tuple(dict.fromkeys(reaction.service for reaction in REACTIONS))
"""The services that consume events. Each is a consumer group with its name."""


def consumed_by(service: str) -> tuple[str, ...]:
    """Return the types of the events that a service consumes."""
    return tuple(reaction.event for reaction in REACTIONS if reaction.service == service)


def topics_of(service: str) -> tuple[str, ...]:
    """Return the topics that a service consumes."""
    return tuple(map(topic_of, consumed_by(service)))


def answers_of(service: str) -> tuple[str, ...]:
    """Return the types of the events with which a service may answer the events that it consumes."""
    emits = (event for reaction in REACTIONS if reaction.service == service for event in reaction.emits)
    return tuple(dict.fromkeys(emits))


def emitters_of(event: str) -> tuple[str, ...]:
    """Return the services that emit an event, in alphabetical order."""
    causes: tuple[Reaction | Origin, ...] = (*REACTIONS, *ORIGINS)
    return tuple(sorted({cause.service for cause in causes if event in cause.emits}))


def consumers_of(event: str) -> tuple[str, ...]:
    """Return the services that consume an event."""
    return tuple(reaction.service for reaction in REACTIONS if reaction.event == event)
