"""What an order waits for, in every state of its order, payment, reservation and outbox."""

from datetime import timedelta
from itertools import product
from typing import get_args

import pytest

from orderstream.console.orders.stored import Stored
from orderstream.console.orders.waiting import Live, Rules, WaitingFor, waiting_for
from orderstream.console.orders.waiting_kind import Kind
from orderstream.settings import Settings
from tests.unit.console.orders.rows import CREATED, NOW, ago, order, outbox, payment, reservation, stored

RULES = Rules.of(Settings.model_validate({}))
ABORTED = {"aborted_at": ago(10)}
FAILED = {**ABORTED, "failure_reason": "OUT_OF_STOCK"}
UNDONE = {**FAILED, "payment": "voided", "stock": "released"}

CASES: dict[str, tuple[Stored, tuple[str, str, str | None] | None]] = {
    "in the outbox": (stored(None, None, None, outbox()), ("outbox", "outbox-relay", "order.created")),
    "no payment yet": (stored(), ("kafka", "payment-worker", "order.created")),
    "call runs": (stored(None, payment("PENDING")), ("payment_call", "payment-worker", None)),
    "call unanswered": (stored(None, payment("PENDING", attempts=2)), ("payment_retry", "payment-worker", None)),
    "bank decides": (
        stored(None, payment("PENDING", pending_since=ago(12))),
        ("provider_pending", "payment-worker", None),
    ),
    "outcome unknown": (
        stored(None, payment("VOIDING", reason="PROVIDER_UNAVAILABLE")),
        ("void", "payment-worker", None),
    ),
    "a nudge waits while the call runs": (
        stored(None, payment("PENDING"), None, outbox()),
        ("payment_call", "payment-worker", None),
    ),
    "authorized, event in the outbox": (
        stored(None, payment("AUTHORIZED"), None, outbox("payment.authorized.v1")),
        ("outbox", "outbox-relay", "payment.authorized"),
    ),
    "authorized": (stored(order("PAID"), payment("AUTHORIZED")), ("stock", "inventory-worker", "payment.authorized")),
    "reserved": (
        stored(order("PAID"), payment("AUTHORIZED"), reservation("RESERVED")),
        ("order", "order-service", "inventory.reserved"),
    ),
    "short": (
        stored(order("PAID"), payment("AUTHORIZED"), reservation("FAILED")),
        ("order", "order-service", "inventory.failed"),
    ),
    "declined": (stored(None, payment("FAILED")), ("order", "order-service", "payment.failed")),
    "voided": (stored(None, payment("VOIDED")), ("order", "order-service", "payment.voided")),
    "confirmed": (
        stored(
            order("CONFIRMED", payment="authorized", stock="reserved"), payment("AUTHORIZED"), reservation("RESERVED")
        ),
        None,
    ),
    "declined and settled": (
        stored(order("FAILED", payment="failed", failure_reason="PAYMENT_DECLINED"), payment("FAILED")),
        None,
    ),
    "compensated": (stored(order("FAILED", **UNDONE), payment("VOIDED"), reservation("RELEASED")), None),
    "settled, event in the outbox": (
        stored(order("FAILED", **UNDONE), payment("VOIDED"), reservation("RELEASED"), outbox("payment.voided.v1")),
        ("outbox", "outbox-relay", "payment.voided"),
    ),
    "abort in the outbox": (
        stored(order("CANCELLED", **ABORTED), payment("AUTHORIZED"), None, outbox("order.aborted.v1")),
        ("compensation", "outbox-relay", "order.aborted"),
    ),
    "abort not taken": (
        stored(order("CANCELLED", **ABORTED), payment("AUTHORIZED"), reservation("RESERVED")),
        ("compensation", "payment-worker", "order.aborted"),
    ),
    "cancelled without a payment": (
        stored(order("CANCELLED", **ABORTED)),
        ("compensation", "payment-worker", "order.aborted"),
    ),
    "being voided": (
        stored(order("FAILED", **FAILED), payment("VOIDING", attempts=1), reservation("RELEASED")),
        ("compensation", "payment-worker", None),
    ),
    "stock not released": (
        stored(order("FAILED", **FAILED, payment="voided"), payment("VOIDED"), reservation("RESERVED")),
        ("compensation", "inventory-worker", "order.aborted"),
    ),
    "release not merged": (
        stored(order("FAILED", **FAILED, payment="voided"), payment("VOIDED"), reservation("RELEASED")),
        ("compensation", "order-service", "inventory.released"),
    ),
    "void not merged": (
        stored(order("FAILED", **FAILED, stock="released"), payment("VOIDED"), reservation("RELEASED")),
        ("compensation", "order-service", "payment.voided"),
    ),
    "status of a newer version": (stored(order("ON_HOLD")), ("newer_version", "unknown", None)),
    "payment of a newer version": (stored(None, payment("REVIEW")), ("newer_version", "unknown", None)),
    "aborted, payment of a newer version": (
        stored(order("FAILED", **FAILED), payment("REVIEW")),
        ("newer_version", "unknown", None),
    ),
}


def waits(rows: Stored, live: Live | None = None) -> WaitingFor:
    found = waiting_for(rows, RULES, live or Live())
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_state_says_what_it_waits_for(case: str) -> None:
    rows, expected = CASES[case]
    found = waiting_for(rows, RULES, Live())
    assert (found and (found.kind, found.service, found.event)) == expected


def test_every_kind_is_tested() -> None:
    assert {expected[0] for _, expected in CASES.values() if expected} == set(get_args(Kind))


@pytest.mark.parametrize("pay", [None, "PENDING", "AUTHORIZED", "FAILED", "VOIDING", "VOIDED"])
@pytest.mark.parametrize("stock", [None, "RESERVED", "FAILED", "RELEASED"])
def test_an_order_waits_exactly_while_work_is_left(pay: str | None, stock: str | None) -> None:
    for status, aborted, fact, stock_fact, waiting in product(
        ("PROCESSING", "PAID", "CONFIRMED", "FAILED", "CANCELLED"),
        (None, ago(5)),
        ("none", "authorized", "failed", "voided"),
        ("none", "reserved", "failed", "released"),
        ((), (outbox(),)),
    ):
        row = order(status, aborted_at=aborted, payment=fact, stock=stock_fact)
        rows = stored(row, pay and payment(pay), stock and reservation(stock), *waiting)  # type: ignore[arg-type]
        found = waiting_for(rows, RULES, Live())
        compensated = aborted is None or (fact in ("failed", "voided") and stock_fact == "released")
        assert (found is None) == (status not in ("PROCESSING", "PAID") and compensated and not waiting)
        if found is not None:
            assert found.sentence.endswith(".")
            assert found.then.endswith(".")
            assert found.since <= NOW
            assert "None" not in found.sentence
            assert found.kind == "outbox" or found.until is not None


def test_an_order_in_kafka_is_checked_by_the_watchdog_until_its_deadline() -> None:
    found = waits(stored())
    assert (found.until, found.until_is) == (NOW + timedelta(seconds=10), "next_check")
    assert found.deadline_at == CREATED + timedelta(minutes=15)
    assert found.then.startswith("The watchdog sends order.created again")
    assert not found.is_overdue


def test_an_order_that_was_nudged_often_enough_fails_at_its_deadline() -> None:
    found = waits(stored(order(nudges=3, nudged_at=ago(5), next_check_at=CREATED + timedelta(minutes=15))))
    assert found.then.startswith("The order fails with TIMED_OUT")
    assert found.since == ago(5)


def test_the_last_attempt_ends_in_a_void() -> None:
    first = waits(stored(None, payment("PENDING", attempts=1)))
    assert first.then == "payment-worker calls again."
    assert (first.attempts, first.attempts_max) == (1, RULES.payment_attempts_max)
    last = waits(stored(None, payment("PENDING", attempts=RULES.payment_attempts_max - 1)))
    assert last.then == "payment-worker voids the payment, and the order fails."


def test_a_pending_payment_has_the_limit_of_the_settings() -> None:
    found = waits(stored(None, payment("PENDING", pending_since=ago(12))))
    assert found.deadline_at == ago(12) + timedelta(minutes=Settings.model_validate({}).payment_pending_limit_minutes)
    assert found.since == ago(12)


@pytest.mark.parametrize(
    "rows",
    [
        stored(order(next_check_at=ago(6))),
        stored(None, payment("PENDING", next_attempt_at=ago(6))),
        stored(None, None, None, outbox(seconds=6)),
        stored(order("FAILED", **FAILED, next_check_at=ago(6))),
    ],
    ids=["check", "attempt", "outbox", "compensation"],
)
def test_a_late_action_is_overdue_with_a_hint(rows: Stored) -> None:
    found = waits(rows)
    assert found.is_overdue
    assert found.hint is not None


def test_an_open_breaker_and_the_lag_are_said() -> None:
    found = waits(stored(None, payment("PENDING")), Live(breaker_is_open=True))
    assert found.hint == "The breaker is open: payment-worker only probes the provider."
    behind = waits(stored(), Live(lag={("payment-worker", "order.created"): 1_204}))
    assert behind.lag == 1_204
    assert "payment-worker, which has 1,204 records to take" in behind.sentence


def test_what_is_missing_of_a_compensation_is_named() -> None:
    assert waits(CASES["abort not taken"][0]).missing == ("payment", "stock")
    assert waits(CASES["release not merged"][0]).missing == ("stock",)
    assert waits(CASES["void not merged"][0]).missing == ("payment",)
