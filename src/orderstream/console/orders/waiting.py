"""Says what an order waits for now, since when, until when, and what happens then. All functions are pure.

The rules are those of the services: the schedule of the payments, the watchdog, and the outbox.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from orderstream.console.orders.stored import OutboxEvent, PaymentRow, Stored
from orderstream.console.orders.waiting_kind import Kind, waiting_kind
from orderstream.domain.payment import is_known
from orderstream.order_service.watchdog import WatchdogSchedule
from orderstream.settings import Settings

OVERDUE_AFTER = timedelta(seconds=5)
"""An action that is later than this is overdue. The timers of the services run every second or more often."""


class Rules(Struct, frozen=True):
    """The limits that decide when an order stops waiting. Times are in seconds."""

    payment_attempts_max: int
    payment_pending_limit: float
    payment_oldest: float
    deadline: float
    deadline_nudges: int

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """Return the rules of the services that run with these settings."""
        schedule = WatchdogSchedule()
        return cls(
            settings.payment_max_attempts,
            settings.payment_pending_limit_minutes * 60,
            settings.payment_key_lifetime_hours * 3_600 / 2,
            schedule.deadline_seconds,
            schedule.deadline_nudges,
        )


class Live(Struct, frozen=True):
    """What the console has just measured. `lag` is the number of records that a service has not taken, by event type.

    `breaker_is_open` is None if the console has no metrics of payment-worker.
    """

    breaker_is_open: bool | None = None
    lag: Mapping[tuple[str, str], int] = {}


class WaitingFor(Struct, frozen=True, kw_only=True, rename="camel"):
    """What an order waits for. `sentence` is the whole statement in plain words, and `then` is its second half.

    `service` acts next, at the time `until` or before. `untilIs` says what that time is. If it has passed by more than
    some seconds, `isOverdue` is true and `hint` says what to check.
    """

    kind: Kind
    sentence: str
    then: str
    service: str
    since: datetime
    until: datetime | None = None
    until_is: Literal["next_attempt", "next_check", "deadline"] | None = None
    is_overdue: bool = False
    hint: str | None = None
    event: str | None = None
    """The type of the event that the order waits for, or that waits."""
    lag: int | None = None
    """Records before it in Kafka, at most, if the console knows it."""
    attempts: int | None = None
    attempts_max: int | None = None
    deadline_at: datetime | None = None
    """When the order fails if it is still open and was nudged often enough."""
    missing: tuple[Literal["payment", "stock"], ...] = ()
    """What is not compensated yet."""


def waiting_for(  # noqa: PLR0911 - a return for each kind
    stored: Stored, rules: Rules, live: Live
) -> WaitingFor | None:
    """Return what an order waits for, or None if it is settled, compensated and published.

    `waiting_kind` decides, as for the list of orders, so that both agree.
    """
    order, payment = stored.order, stored.payment
    kind = waiting_kind(
        order.status,
        is_compensating=not order.is_open and not order.is_compensated,
        has_event=bool(stored.outbox),
        payment_state=payment.state if payment else None,
        is_pending=payment is not None and payment.pending_since is not None,
        attempts=payment.attempts if payment else None,
        has_reservation=stored.reservation is not None,
    )
    match kind:
        case None:
            return None
        case "outbox":
            state = "The order goes on when its next event is in Kafka." if order.is_open else "The order is settled."
            return _outbox(stored, stored.outbox[0], state)
        case "compensation":
            return _compensation(stored, live)
        case "payment_call" | "payment_retry" | "provider_pending":
            assert payment is not None
            return _pending(stored, payment, rules, live)
        case "void":
            assert payment is not None
            return _void_of_open(stored, payment, live)
        case "kafka" | "stock" | "order":
            return _in_kafka(stored, kind, rules, live)
        case "newer_version":
            return _newer(stored)
        case _:
            assert_never(kind)


def _pending(stored: Stored, payment: PaymentRow, rules: Rules, live: Live) -> WaitingFor:
    """Return the wait for a payment whose outcome is open."""
    order = stored.order
    too_old = order.created_at + timedelta(seconds=rules.payment_oldest)
    if payment.pending_since is not None:
        limit = min(payment.pending_since + timedelta(seconds=rules.payment_pending_limit), too_old)
        then = "payment-worker voids the payment, and the order fails with PROVIDER_UNAVAILABLE."
        waiting = WaitingFor(
            kind="provider_pending",
            sentence="The customer or the bank has not decided about the payment yet. Without a decision by the limit, "
            + then,
            then=_begin(then),
            service="payment-worker",
            since=payment.pending_since,
            deadline_at=limit,
            attempts_max=rules.payment_attempts_max,
        )
        return _with_attempt(waiting, stored, payment, live)
    last = payment.attempts + 1 >= rules.payment_attempts_max
    then = "payment-worker voids the payment, and the order fails." if last else "payment-worker calls again."
    if payment.attempts:
        what = (
            f"The payment provider has not answered {payment.attempts} of at most {rules.payment_attempts_max}"
            f" {_plural(rules.payment_attempts_max, 'attempt')}. If the next attempt has no answer either, "
        )
    else:
        what = "The first call to the payment provider has no recorded answer yet. If no answer comes in time, "
    waiting = WaitingFor(
        kind="payment_retry" if payment.attempts else "payment_call",
        sentence=what + then,
        then=_begin(then),
        service="payment-worker",
        since=payment.decided_at,
        deadline_at=too_old,
        attempts_max=rules.payment_attempts_max,
    )
    return _with_attempt(waiting, stored, payment, live)


def _void_of_open(stored: Stored, payment: PaymentRow, live: Live) -> WaitingFor:
    """Return the wait for the void of a payment whose outcome stayed unknown."""
    then = "the order fails with PROVIDER_UNAVAILABLE."
    waiting = WaitingFor(
        kind="void",
        sentence="It is unknown whether the customer was charged, so payment-worker voids the payment. When the void "
        "is certain, " + then,
        then=_begin(then),
        service="payment-worker",
        since=payment.decided_at,
    )
    return _with_attempt(waiting, stored, payment, live)


def _in_kafka(stored: Stored, kind: Kind, rules: Rules, live: Live) -> WaitingFor:
    """Return the wait of an open order for the service that takes its last event from Kafka."""
    order, payment, reservation = stored.order, stored.payment, stored.reservation
    if payment is None:
        service, event, since = "payment-worker", "order.created", order.created_at
        what = "The payment is not decided yet"
    elif kind == "stock":
        service, event, since = "inventory-worker", "payment.authorized", payment.decided_at
        what = "The payment is authorized, and the stock is not reserved yet"
    else:
        service, since = "order-service", payment.decided_at
        event = f"payment.{payment.state.lower()}"
        if reservation is not None:
            event, since = f"inventory.{reservation.state.lower():.50}", max(since, reservation.decided_at)
        what = "Payment and stock are decided" if reservation else "The payment is decided"
    lag = live.lag.get((service, event))
    ahead = f", which has {lag:,} {_plural(lag, 'record')} to take" if lag else ""
    deadline_at = order.created_at + timedelta(seconds=rules.deadline)
    then = "the watchdog sends order.created again, and every service repeats its result."
    if order.nudges >= rules.deadline_nudges and order.next_check_at >= deadline_at:
        then = "the order fails with TIMED_OUT, unless one of its events still waits in Kafka."
    waiting = WaitingFor(
        kind=kind,
        sentence=f"{what}: {event} waits in Kafka for {service}{ahead}. At the next check, {then}",
        then=_begin(then),
        service=service,
        since=max(since, order.nudged_at or since),
        event=event,
        lag=lag,
        deadline_at=deadline_at,
    )
    return _with_check(waiting, stored)


def _outbox(stored: Stored, oldest: OutboxEvent, state: str) -> WaitingFor:
    event = oldest.topic.rpartition(".v")[0] or oldest.topic
    then = "the relay publishes it as soon as Kafka acknowledges records."
    is_late = stored.order.now - oldest.created_at > OVERDUE_AFTER
    return WaitingFor(
        kind="outbox",
        sentence=f"{event:.100} waits in the outbox, and {then} {state}",
        then=_begin(then),
        service="outbox-relay",
        since=oldest.created_at,
        event=event,
        is_overdue=is_late,
        hint="Check that outbox-relay runs and that Kafka answers." if is_late else None,
    )


def _compensation(stored: Stored, live: Live) -> WaitingFor:
    """Return the wait of an aborted order that may still hold money or stock."""
    order, payment = stored.order, stored.payment
    assert order.aborted_at is not None
    missing: list[Literal["payment", "stock"]] = []
    if order.payment not in ("failed", "voided"):
        missing.append("payment")
    if order.stock != "released":
        missing.append("stock")
    if payment is not None and payment.state == "VOIDING":
        then = "payment-worker repeats the void until the provider confirms it."
        tried = f" {payment.attempts} {_plural(payment.attempts, 'void')} had no answer." if payment.attempts else ""
        waiting = WaitingFor(
            kind="compensation",
            sentence=f"The order is {order.status}, and payment-worker voids its payment.{tried} {_begin(then)}",
            then=_begin(then),
            service="payment-worker",
            since=payment.decided_at,
            missing=tuple(missing),
        )
        return _with_attempt(waiting, stored, payment, live)
    service, event, what = _compensation_step(stored, missing)
    then = "the watchdog sends order.aborted again, and every service repeats its result."
    waiting = WaitingFor(
        kind="compensation",
        sentence=f"The order is {order.status}: {what}. At the next check, {then}",
        then=_begin(then),
        service=service,
        since=max(order.aborted_at, order.nudged_at or order.aborted_at),
        event=event,
        lag=live.lag.get((service, event)),
        missing=tuple(missing),
    )
    return _with_check(waiting, stored)


def _compensation_step(stored: Stored, missing: list[Literal["payment", "stock"]]) -> tuple[str, str, str]:
    """Return the service that acts next, the event that it has to take, and the step in words."""
    if stored.outbox:
        event = stored.outbox[0].topic.rpartition(".v")[0]
        return "outbox-relay", event, f"{event:.100} waits in the outbox for Kafka"
    payment, reservation = stored.payment, stored.reservation
    if "payment" in missing and (payment is None or payment.state not in ("FAILED", "VOIDED")):
        return "payment-worker", "order.aborted", "payment-worker has not taken order.aborted yet"
    if "stock" in missing and (reservation is None or reservation.state != "RELEASED"):
        return "inventory-worker", "order.aborted", "inventory-worker has not released the stock yet"
    if "stock" in missing:
        return "order-service", "inventory.released", "order-service has not taken inventory.released yet"
    assert payment is not None
    event = f"payment.{payment.state.lower()}"
    return "order-service", event, f"order-service has not taken {event} yet"


def _newer(stored: Stored) -> WaitingFor:
    payment = stored.payment
    what = f"the status {stored.order.status:.50}"
    if payment is not None and not is_known(payment.state):
        what = f"the payment state {payment.state:.50}"
    return WaitingFor(
        kind="newer_version",
        sentence=f"A newer version of OrderStream wrote {what}. This console does not know what the order waits for.",
        then="That version goes on with the order.",
        service="unknown",
        since=stored.order.updated_at,
    )


def _with_check(waiting: WaitingFor, stored: Stored) -> WaitingFor:
    """Add the watchdog's next check."""
    until = stored.order.next_check_at
    is_late = stored.order.now - until > OVERDUE_AFTER
    hint = "The watchdog is late. Check that order-service runs and that Kafka answers." if is_late else None
    return replace(waiting, until=until, until_is="next_check", is_overdue=is_late, hint=hint)


def _with_attempt(waiting: WaitingFor, stored: Stored, payment: PaymentRow, live: Live) -> WaitingFor:
    """Add the next attempt of payment-worker."""
    until = payment.next_attempt_at
    is_late = until is not None and stored.order.now - until > OVERDUE_AFTER
    hint = "The attempt is late. Check that payment-worker runs and has room for calls." if is_late else None
    if live.breaker_is_open:
        hint = "The breaker is open: payment-worker only probes the provider."
    return replace(
        waiting, until=until, until_is="next_attempt", attempts=payment.attempts, is_overdue=is_late, hint=hint
    )


def _begin(text: str) -> str:
    """Return a half sentence as a sentence. Names of services keep their small letter."""
    return text[0].upper() + text[1:] if text.startswith("the ") else text


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else noun + "s"
