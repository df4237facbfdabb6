"""Every course that an order can take, as its payment and stock events (P7).

A test plays the events of a scenario into `domain.order` in some order, in some batches, with duplicates. If a cancel
or the deadline closes the order, the events that answer the abort come after the close. All others come at any time.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from orderstream.domain.events import (
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    Item,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    StockLine,
    build,
)
from orderstream.domain.order import (
    Facts,
    FactUpdate,
    FailureReason,
    OrderState,
    PaymentFact,
    Status,
    StockFact,
    apply,
    fold,
    settled,
)

ORDER_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
ACCEPTED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEW = OrderState("PROCESSING", Facts())
LINES = (StockLine(sku="SKU-1", qty=1),)

Close = Literal["cancel", "deadline"]
Step = Event[Payload] | Close


class Scenario(Struct, frozen=True, kw_only=True):
    """`events` come at any time, `answers` only after the close. The other fields are the final state of the order."""

    name: str
    events: tuple[Event[Payload], ...] = ()
    close: Close | None = None
    answers: tuple[Event[Payload], ...] = ()
    status: Status
    payment: PaymentFact
    stock: StockFact
    reason: FailureReason | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in one possible order."""
        return (*self.events, *((self.close,) if self.close else ()), *self.answers)

    def possible(self, sequence: Sequence[Step]) -> bool:
        """Say whether no answer stands before the close that it answers."""
        return not self.close or not any(step in self.answers for step in sequence[: sequence.index(self.close)])


def _event(payload: Payload, milliseconds: int) -> Event[Payload]:
    return build(payload, ACCEPTED_AT + timedelta(milliseconds=milliseconds))


AUTHORIZED = _event(
    PaymentAuthorized(
        order_id=ORDER_ID,
        items=(Item(sku="SKU-1", qty=1, price=Decimal("129.00")),),
        amount=Decimal("129.00"),
        currency="USD",
    ),
    1,
)
RESERVED = _event(InventoryReserved(order_id=ORDER_ID, items=LINES), 2)


def declined(reason: FailureReason = "PAYMENT_DECLINED") -> Event[Payload]:
    """Return the payment.failed of `reason`."""
    return _event(PaymentFailed(order_id=ORDER_ID, reason=reason), 1)


def refused(reason: Literal["OUT_OF_STOCK", "UNKNOWN_SKU"]) -> Event[Payload]:
    """Return the inventory.failed of `reason`."""
    return _event(InventoryFailed(order_id=ORDER_ID, reason=reason, skus=("SKU-1",)), 2)


def voided(reason: FailureReason | None) -> Event[Payload]:
    """Return the payment.voided that answers an abort of `reason`."""
    return _event(PaymentVoided(order_id=ORDER_ID, reason=reason), 3)


def released(reason: FailureReason | None, lines: tuple[StockLine, ...] = ()) -> Event[Payload]:
    """Return the inventory.released that answers an abort of `reason`."""
    return _event(InventoryReleased(order_id=ORDER_ID, items=lines, reason=reason), 4)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(name="happy", events=(AUTHORIZED, RESERVED), status="CONFIRMED", payment="authorized", stock="reserved"),
    Scenario(
        name="declined",
        events=(declined(),),
        status="FAILED",
        payment="failed",
        stock="none",
        reason="PAYMENT_DECLINED",
    ),
    Scenario(
        name="provider-unavailable",
        events=(declined("PROVIDER_UNAVAILABLE"),),
        status="FAILED",
        payment="failed",
        stock="none",
        reason="PROVIDER_UNAVAILABLE",
    ),
    Scenario(
        name="out-of-stock",
        events=(AUTHORIZED, refused("OUT_OF_STOCK"), voided("OUT_OF_STOCK"), released("OUT_OF_STOCK")),
        status="FAILED",
        payment="voided",
        stock="released",
        reason="OUT_OF_STOCK",
    ),
    Scenario(
        name="unknown-sku",
        events=(AUTHORIZED, refused("UNKNOWN_SKU"), voided("UNKNOWN_SKU"), released("UNKNOWN_SKU")),
        status="FAILED",
        payment="voided",
        stock="released",
        reason="UNKNOWN_SKU",
    ),
    Scenario(
        name="cancel-at-once",
        close="cancel",
        answers=(voided(None), released(None)),
        status="CANCELLED",
        payment="voided",
        stock="released",
    ),
    Scenario(
        name="cancel-before-or-after-confirm",
        events=(AUTHORIZED, RESERVED),
        close="cancel",
        answers=(voided(None), released(None, LINES)),
        status="CANCELLED",
        payment="voided",
        stock="released",
    ),
    Scenario(
        name="cancel-then-declined",
        close="cancel",
        answers=(declined(), released(None)),
        status="CANCELLED",
        payment="failed",
        stock="released",
    ),
    Scenario(
        name="cancel-then-out-of-stock",
        events=(AUTHORIZED,),
        close="cancel",
        answers=(refused("OUT_OF_STOCK"), voided(None), released(None)),
        status="CANCELLED",
        payment="voided",
        stock="released",
    ),
    Scenario(
        name="deadline-without-an-answer",
        close="deadline",
        answers=(voided("TIMED_OUT"), released("TIMED_OUT")),
        status="FAILED",
        payment="voided",
        stock="released",
        reason="TIMED_OUT",
    ),
    Scenario(
        name="deadline-between-payment-and-stock",
        events=(AUTHORIZED,),
        close="deadline",
        answers=(RESERVED, voided("TIMED_OUT"), released("TIMED_OUT", LINES)),
        status="FAILED",
        payment="voided",
        stock="released",
        reason="TIMED_OUT",
    ),
    Scenario(
        name="deadline-then-declined",
        close="deadline",
        answers=(declined(), released("TIMED_OUT")),
        status="FAILED",
        payment="failed",
        stock="released",
        reason="TIMED_OUT",
    ),
)


def update_of(event: Event[Payload]) -> FactUpdate:
    """Return the update of the payment or reservation that an event states."""
    at = event.occurred_at
    match event.payload:
        case PaymentAuthorized():
            return FactUpdate(Facts(payment="authorized", payment_at=at))
        case PaymentFailed(reason=reason):
            return FactUpdate(Facts(payment="failed", payment_at=at), payment_reason=reason)
        case PaymentVoided(reason=reason):
            return FactUpdate(Facts(payment="voided", payment_at=at), payment_reason=reason)
        case InventoryReserved():
            return FactUpdate(Facts(stock="reserved", stock_at=at))
        case InventoryFailed(reason=reason):
            return FactUpdate(Facts(stock="failed", stock_at=at), stock_reason=reason)
        case InventoryReleased(reason=reason):
            return FactUpdate(Facts(stock="released", stock_at=at), stock_reason=reason)
        case _:
            raise TypeError(f"{event.type} says nothing of an order's facts")


def close(order: OrderState, how: Close) -> OrderState:
    """Return the order after a cancel or the deadline. It stays if it has settled before."""
    if how == "cancel" and order.status != "FAILED":
        return replace(order, status="CANCELLED", failure_reason=None, version=order.version + 1)
    if how == "deadline" and not settled(order.status):
        return replace(order, status="FAILED", failure_reason="TIMED_OUT", version=order.version + 1)
    return order


def play(batches: Iterable[Sequence[Step]], order: OrderState = NEW) -> OrderState:
    """Return the order after all batches. Within a batch, the events before a close are folded and then applied."""
    for batch in batches:
        pending: FactUpdate | None = None
        for step in batch:
            if isinstance(step, Event):
                pending = fold(pending, update_of(step)) if pending else update_of(step)
                continue
            order = close(apply(order, pending) if pending else order, step)
            pending = None
        order = apply(order, pending) if pending else order
    return order


def orderings(steps: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
    """Yield every distinct order of `steps`. Equal steps count as the same."""
    for order in _orderings([steps.index(step) for step in steps]):
        yield tuple(steps[index] for index in order)


def _orderings(indices: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if not indices:
        yield ()
    for index in sorted(set(indices)):
        others = list(indices)
        others.remove(index)
        for rest in _orderings(others):
            yield (index, *rest)


def cuts(sequence: Sequence[Step], where: int) -> Iterator[Sequence[Step]]:
    """Cut `sequence` into batches; bit n of `where` says that a batch ends after step n."""
    start = 0
    for index in range(len(sequence)):
        if where >> index & 1 or index == len(sequence) - 1:
            yield sequence[start : index + 1]
            start = index + 1
