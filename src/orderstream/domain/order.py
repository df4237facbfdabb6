"""The state of an order: facts merge by maximum, and the status is derived from the facts (P4, P6, P7).

Merging is commutative, associative and idempotent. Duplicates and reordering therefore never change the final state.
"""

from datetime import datetime
from decimal import Decimal
from typing import Literal, assert_never

from msgspec import Struct

Status = Literal["PROCESSING", "PAID", "CONFIRMED", "FAILED", "CANCELLED"]
PaymentFact = Literal["none", "authorized", "failed", "voided"]
StockFact = Literal["none", "reserved", "failed", "released"]
FailureReason = Literal["PAYMENT_DECLINED", "PROVIDER_UNAVAILABLE", "OUT_OF_STOCK", "UNKNOWN_SKU", "TIMED_OUT"]
"""The reasons that this version gives."""
AnyReason = str
"""A reason that is passed on, because a newer version may give others. Code may only depend on the known reasons."""

PAYMENT_RANK: dict[PaymentFact, int] = {"none": 0, "authorized": 1, "failed": 2, "voided": 3}
STOCK_RANK: dict[StockFact, int] = {"none": 0, "reserved": 1, "failed": 2, "released": 3}
UNKNOWN_RANK = 100
"""Rank of a fact that a newer version has written. It is stronger than every fact of this version."""


class Facts(Struct, frozen=True):
    """What an order knows of its payment and stock, with the time of each result."""

    payment: PaymentFact = "none"
    stock: StockFact = "none"
    payment_at: datetime | None = None
    stock_at: datetime | None = None


class FactUpdate(Struct, frozen=True):
    """The facts that one event states, or several events folded into one, each with the reason for a failure."""

    facts: Facts
    payment_reason: AnyReason | None = None
    stock_reason: AnyReason | None = None

    @property
    def reason(self) -> AnyReason | None:
        """The failure reason of an order that this update fails. Stock's comes first, because it is decided last."""
        return self.stock_reason or self.payment_reason


class OrderState(Struct, frozen=True):
    """The part of an order that events change."""

    status: Status
    facts: Facts
    failure_reason: AnyReason | None = None
    version: int = 1


class Order(Struct, frozen=True):
    """An order without its lines. `aborted_at` is the time of its first abort. Repeated aborts carry the same time."""

    order_id: str
    user_id: str
    amount: Decimal
    currency: str
    created_at: datetime
    updated_at: datetime
    aborted_at: datetime | None
    state: OrderState

    def with_state(self, state: OrderState, now: datetime, *, abort: bool) -> "Order":
        """Return the order in a new state, changed at `now`. The first abort sets `aborted_at`.

        If the database's clock stepped back, the change gets the time of the last change.
        """
        now = max(now, self.updated_at)
        aborted_at = self.aborted_at or (now if abort else None)
        if state is self.state and aborted_at == self.aborted_at:
            return self
        return Order(self.order_id, self.user_id, self.amount, self.currency, self.created_at, now, aborted_at, state)


def settled(status: Status) -> bool:
    """Say whether this status is final. Only an accepted cancel still changes a CONFIRMED order."""
    return status not in ("PROCESSING", "PAID")


def merge(left: Facts, right: Facts) -> Facts:
    """Return the stronger of each fact with its time. If both are equal, return the earlier time, or the only one."""
    payment, payment_at = left.payment, left.payment_at
    ranks = PAYMENT_RANK.get(right.payment, UNKNOWN_RANK), PAYMENT_RANK.get(payment, UNKNOWN_RANK)
    if _stronger(ranks[0], right.payment_at, ranks[1], payment_at):
        payment, payment_at = right.payment, right.payment_at
    stock, stock_at = left.stock, left.stock_at
    ranks = STOCK_RANK.get(right.stock, UNKNOWN_RANK), STOCK_RANK.get(stock, UNKNOWN_RANK)
    if _stronger(ranks[0], right.stock_at, ranks[1], stock_at):
        stock, stock_at = right.stock, right.stock_at
    return Facts(payment, stock, payment_at, stock_at)


def _stronger(rank: int, at: datetime | None, other_rank: int, other_at: datetime | None) -> bool:
    if rank != other_rank:
        return rank > other_rank
    return at is not None and (other_at is None or at < other_at)


def fold(left: FactUpdate, right: FactUpdate) -> FactUpdate:
    """Fold two updates of one order into one. The reason of the stronger fact is kept."""
    facts = merge(left.facts, right.facts)
    return FactUpdate(
        facts,
        _reason(facts.payment, (left.facts.payment, left.payment_reason), (right.facts.payment, right.payment_reason)),
        _reason(facts.stock, (left.facts.stock, left.stock_reason), (right.facts.stock, right.stock_reason)),
    )


def _reason(winner: str, *stated: tuple[str, AnyReason | None]) -> AnyReason | None:
    """Return the reason of the winning fact. If there are several, always return the same one."""
    return max((reason for state, reason in stated if state == winner and reason), default=None)


def derive(payment: PaymentFact, stock: StockFact) -> Status:
    """Return the status of an order that was not cancelled and did not time out: the table of promise P4."""
    if stock in ("failed", "released"):
        return "FAILED"
    match payment:
        case "none":
            return "PROCESSING"
        case "authorized":
            return "CONFIRMED" if stock == "reserved" else "PAID"
        case "failed" | "voided":
            return "FAILED"
        case _:
            assert_never(payment)


def apply(order: OrderState, update: FactUpdate) -> OrderState:
    """Return the order after the update: facts always merge, a settled status stays.

    If a newer version wrote a fact, the status stays, too: that version derives it. The version number grows by one if
    the status or a fact changes. Otherwise the same object is returned.
    """
    facts = merge(order.facts, update.facts)
    status, reason = order.status, order.failure_reason
    if not settled(status) and facts.payment in PAYMENT_RANK and facts.stock in STOCK_RANK:
        status = derive(facts.payment, facts.stock)
        if status == "FAILED":
            reason = update.reason
    if status == order.status and facts == order.facts:
        return order
    return OrderState(status, facts, reason, order.version + 1)


def cancel(order: OrderState) -> OrderState | None:
    """Return the cancelled order, the same object if it was cancelled before, or None if it cannot be cancelled.

    A FAILED order cannot be cancelled, nor an order in a status of a newer version.
    """
    if order.status == "CANCELLED":
        return order
    if order.status not in ("PROCESSING", "PAID", "CONFIRMED"):
        return None
    return OrderState("CANCELLED", order.facts, None, order.version + 1)


def time_out(order: OrderState) -> OrderState:
    """Return an open order as FAILED, because its deadline has passed."""
    return OrderState("FAILED", order.facts, "TIMED_OUT", order.version + 1)


def may_hold_money_or_stock(facts: Facts) -> bool:
    """Say whether these facts leave something to undo for an order that ended FAILED or CANCELLED (P5).

    This rule is looser than *compensated*, which the watchdog checks (decision 0022). If the event of a reservation was
    lost, the facts do not show the reservation. The watchdog repeats the abort until the stock is released.
    """
    return facts.payment not in ("failed", "voided") or facts.stock == "reserved"


def aborts(before: OrderState, after: OrderState, update: FactUpdate) -> bool:
    """Say whether `order.aborted` must be emitted after `update` turned `before` into `after`.

    Yes if the update set FAILED and there may be something to undo. Yes again if a step that was still under way ends
    for an aborted order that may hold money or stock. Never in answer to payment.voided, inventory.released or
    payment.failed: they answer an abort themselves, and the event graph must have no cycle.
    """
    if after.status not in ("FAILED", "CANCELLED"):
        return False
    if before.status != after.status:
        return after.facts.payment != "failed" or after.facts.stock != "none"
    step_under_way = update.facts.payment == "authorized" or update.facts.stock in ("reserved", "failed")
    return step_under_way and may_hold_money_or_stock(after.facts)
