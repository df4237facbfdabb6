"""Every cell of the table of payment-worker, on PostgreSQL (P2, P5, P7)."""

from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest

from orderstream.domain.events import PaymentAuthorized, PaymentFailed, PaymentVoided
from orderstream.domain.order import FailureReason
from orderstream.domain.payment import Authorized, Declined, NothingToVoid, PaymentState, Voided
from orderstream.postgres.connect import Connection, connect
from orderstream.telemetry import metrics
from tests.integration.decisions.orders import (
    AMOUNT,
    aborted,
    created,
    emitted,
    items_of,
    place,
    received,
    rejections,
    row,
    types,
)
from tests.integration.decisions.payments import decide, make_due, outbox_of, payment_in_state, payment_of
from tests.support.payments import (
    KEY_LIFETIME_SECONDS,
    MAX_ATTEMPTS,
    Answer,
    ScriptedProvider,
    payment_worker,
)

# order.created


def test_order_created_without_a_payment_authorizes_the_payment(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())
    (event,) = emitted(decide(payment_worker(provider), connection, created(order_id)))
    assert event.payload == PaymentAuthorized(
        order_id=order_id, items=items_of({"SKU-1": 1}), amount=AMOUNT, currency="USD"
    )
    assert provider.charge_values() == [(order_id, AMOUNT, "USD")]
    assert payment_of(connection, order_id) == ("AUTHORIZED", None, 1)
    assert row(connection, "SELECT decided_at, amount FROM payments") == (event.occurred_at, AMOUNT)


def test_an_unknown_order_is_rejected_and_never_charged(connection: Connection) -> None:
    known, unknown, provider = place(connection), str(uuid4()), ScriptedProvider(Authorized())
    batch_result = decide(payment_worker(provider), connection, created(unknown), created(known))
    assert rejections(batch_result) == [(unknown, "UNKNOWN_ORDER")]
    assert types(batch_result) == ["payment.authorized"]
    assert [charge.order_id for charge in provider.charges] == [known]


def test_the_charge_is_the_accepted_amount(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())
    connection.execute("UPDATE orders SET amount = 7.00, currency = 'EUR' WHERE id = %s", (order_id,))
    decide(payment_worker(provider), connection, created(order_id))
    assert [(charge.amount, charge.currency) for charge in provider.charges] == [(Decimal("7.00"), "EUR")]


def test_an_order_older_than_half_the_key_lifetime_is_voided_and_not_authorized(quiet: Connection) -> None:
    new, pending, provider = (
        place(quiet),
        payment_in_state(quiet, "PENDING"),
        ScriptedProvider(Authorized(), NothingToVoid()),
    )
    quiet.execute("UPDATE orders SET created_at = now() - %s * interval '1 s'", (KEY_LIFETIME_SECONDS / 2 + 60,))
    worker = payment_worker(provider)
    assert types(decide(worker, quiet, created(new))) == []
    worker.run_timers(quiet)
    make_due(quiet)
    worker.run_timers(quiet)
    assert provider.charges == []
    for order_id in (new, pending):
        assert payment_of(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")
    assert {body["type"] for body in outbox_of(quiet)} == {"payment.failed"}


def test_order_created_without_a_payment_records_a_decline_of_the_provider(connection: Connection) -> None:
    order_id = place(connection)
    (event,) = emitted(decide(payment_worker(ScriptedProvider(Declined())), connection, created(order_id)))
    assert event.payload == PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED")
    assert payment_of(connection, order_id) == ("FAILED", "PAYMENT_DECLINED", 1)


def test_order_created_without_an_answer_of_the_provider_leaves_the_payment_pending(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(payment_worker(ScriptedProvider()), connection, created(order_id))) == []
    assert payment_of(connection, order_id) == ("PENDING", None, 1)
    assert row(connection, "SELECT next_attempt_at > now(), pending_since FROM payments") == (True, None)


def test_order_created_for_a_pending_payment_makes_no_call_and_emits_nothing(connection: Connection) -> None:
    order_id, provider = payment_in_state(connection, "PENDING"), ScriptedProvider(Authorized())
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert provider.charges == []
    assert payment_of(connection, order_id) == ("PENDING", None, 1)


@pytest.mark.parametrize("answer", [Authorized(), Declined()])
def test_a_second_order_created_repeats_the_recorded_event(connection: Connection, answer: Answer) -> None:
    order_id, provider = place(connection), ScriptedProvider(answer)
    first = decide(payment_worker(provider), connection, created(order_id))
    provider.answer = Declined() if answer == Authorized() else Authorized()
    again = decide(payment_worker(provider), connection, created(order_id), created(order_id))
    assert emitted(again) == emitted(first) * 2
    assert len(provider.charges) == 1


def test_order_created_for_a_payment_being_voided_emits_nothing(connection: Connection) -> None:
    order_id, provider = payment_in_state(connection, "VOIDING", "TIMED_OUT"), ScriptedProvider(Authorized())
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert (provider.charges, payment_of(connection, order_id)[0]) == ([], "VOIDING")


def test_order_created_for_a_voided_payment_repeats_payment_voided(connection: Connection) -> None:
    order_id, provider = payment_in_state(connection, "VOIDED", "TIMED_OUT"), ScriptedProvider(Authorized())
    (event,) = emitted(decide(payment_worker(provider), connection, created(order_id)))
    assert event.payload == PaymentVoided(order_id=order_id, reason="TIMED_OUT")
    assert row(connection, "SELECT decided_at FROM payments") == (event.occurred_at,)
    assert provider.charges == []


# order.aborted


def test_an_abort_without_a_payment_inserts_a_tombstone_that_is_voided_at_once(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id, "TIMED_OUT"))) == []
    assert payment_of(connection, order_id) == ("VOIDING", "TIMED_OUT", 0)
    assert row(connection, "SELECT next_attempt_at <= now() FROM payments") == (True,)


@pytest.mark.parametrize("state", ["PENDING", "AUTHORIZED"])
@pytest.mark.parametrize("reason", ["OUT_OF_STOCK", None])
def test_an_abort_voids_an_open_payment_at_once(
    connection: Connection, state: PaymentState, reason: FailureReason | None
) -> None:
    order_id = payment_in_state(connection, state, attempts=2)
    assert types(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id, reason))) == []
    assert payment_of(connection, order_id) == ("VOIDING", reason, 0)
    assert row(connection, "SELECT next_attempt_at <= now() FROM payments") == (True,)


def test_an_abort_of_a_declined_payment_repeats_payment_failed(connection: Connection) -> None:
    order_id = payment_in_state(connection, "FAILED", "PAYMENT_DECLINED")
    (event,) = emitted(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id)))
    assert event.payload == PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED")
    assert payment_of(connection, order_id)[0] == "FAILED"


def test_a_second_abort_of_a_payment_being_voided_emits_nothing(connection: Connection) -> None:
    order_id = payment_in_state(connection, "VOIDING", "TIMED_OUT", attempts=4)
    assert types(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id))) == []
    assert payment_of(connection, order_id) == ("VOIDING", "TIMED_OUT", 4)


def test_an_abort_of_a_voided_payment_repeats_payment_voided(connection: Connection) -> None:
    order_id = payment_in_state(connection, "VOIDED", "TIMED_OUT")
    first = decide(payment_worker(ScriptedProvider()), connection, aborted(order_id))
    assert types(first) == ["payment.voided"]
    assert emitted(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id))) == emitted(first)


@pytest.mark.parametrize("abort_first", [True, False])
def test_order_created_with_an_abort_in_its_batch_makes_no_call_to_the_provider(
    connection: Connection, abort_first: bool
) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())
    events = [created(order_id), aborted(order_id)]
    assert types(decide(payment_worker(provider), connection, *(reversed(events) if abort_first else events))) == []
    assert (provider.charges, payment_of(connection, order_id)[0]) == ([], "VOIDING")


# Answers that arrive late


@pytest.mark.parametrize("state", ["VOIDED", "FAILED", "VOIDING"])
def test_an_authorization_that_arrives_after_its_payment_ended_is_voided(
    connection: Connection, state: PaymentState
) -> None:
    order_id, worker = place(connection), payment_worker(ScriptedProvider(Authorized()))
    batch = received([created(order_id)])
    prepared = worker.handler.prepare(connection, batch)
    connection.execute(
        "INSERT INTO payments (order_id, state, reason, next_attempt_at)"
        " VALUES (%s, %s, 'TIMED_OUT', CASE WHEN %s THEN now() END)",
        (order_id, state, state == "VOIDING"),
    )
    with connection.transaction():
        assert types(worker.handler.decide(connection, batch, prepared)) == []
    assert payment_of(connection, order_id)[:2] == ("VOIDING", "TIMED_OUT")


def test_an_authorization_that_another_process_has_recorded_is_repeated(connection: Connection) -> None:
    order_id, worker = place(connection), payment_worker(ScriptedProvider(Authorized()))
    batch = received([created(order_id)])
    prepared = worker.handler.prepare(connection, batch)
    first = decide(payment_worker(ScriptedProvider(Authorized())), connection, created(order_id))
    with connection.transaction():
        assert emitted(worker.handler.decide(connection, batch, prepared)) == emitted(first)
    assert payment_of(connection, order_id)[0] == "AUTHORIZED"


def test_each_record_of_a_mixed_batch_gets_its_own_answer(connection: Connection) -> None:
    fresh, old = place(connection), payment_in_state(connection, "VOIDED", "TIMED_OUT")
    undone, gone = payment_in_state(connection, "AUTHORIZED"), place(connection)
    batch_result = decide(
        payment_worker(ScriptedProvider(Authorized())),
        connection,
        created(fresh),
        created(old),
        aborted(undone),
        aborted(gone),
    )
    assert [(event.correlation_id, event.type) for event in emitted(batch_result)] == [
        (fresh, "payment.authorized"),
        (old, "payment.voided"),
    ]
    assert [payment_of(connection, order_id)[0] for order_id in (undone, gone)] == ["VOIDING", "VOIDING"]


# The timer


def test_the_timer_does_nothing_before_an_attempt_is_due(quiet: Connection) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(Authorized())
    quiet.execute("UPDATE payments SET next_attempt_at = now() + interval '1 hour'")
    assert not payment_worker(provider).run_timers(quiet)
    assert (provider.charges, payment_of(quiet, order_id), outbox_of(quiet)) == ([], ("PENDING", None, 1), [])


@pytest.mark.parametrize(
    ("answer", "state", "reason", "event"),
    [
        (Authorized(), "AUTHORIZED", None, "payment.authorized"),
        (Declined(), "FAILED", "PAYMENT_DECLINED", "payment.failed"),
    ],
)
def test_the_timer_retries_a_pending_payment(
    quiet: Connection, answer: Answer, state: PaymentState, reason: FailureReason | None, event: str
) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(answer)
    payment_worker(provider).run_timers(quiet)
    assert provider.charge_values() == [(order_id, AMOUNT, "USD")]
    assert payment_of(quiet, order_id) == (state, reason, 2)
    (body,) = outbox_of(quiet)
    assert (body["type"], body["correlationId"]) == (event, order_id)


def test_an_answer_that_cannot_be_recorded_does_not_stop_the_others(quiet: Connection) -> None:
    ids = sorted(payment_in_state(quiet, "PENDING") for _ in range(5))
    quiet.execute(
        f"ALTER TABLE payments ADD CONSTRAINT refused CHECK (order_id <> '{ids[2]}' OR attempts < 2)".encode()
    )
    worker = payment_worker(ScriptedProvider(Authorized()))
    with pytest.raises(psycopg.errors.CheckViolation):
        worker.run_timers(quiet)
    assert [payment_of(quiet, order_id)[0] for order_id in ids] == [
        "PENDING" if order_id == ids[2] else "AUTHORIZED" for order_id in ids
    ]
    assert not worker.attempts.has_answers()
    quiet.execute("ALTER TABLE payments DROP CONSTRAINT refused")
    make_due(quiet)
    worker.run_timers(quiet)
    assert payment_of(quiet, ids[2])[0] == "AUTHORIZED"
    assert len(outbox_of(quiet)) == len(ids)


def test_the_event_of_the_timer_and_a_later_repeat_are_equal(quiet: Connection) -> None:
    order_id, worker = payment_in_state(quiet, "PENDING"), payment_worker(ScriptedProvider(Authorized()))
    worker.run_timers(quiet)
    (event,) = emitted(decide(worker, quiet, created(order_id)))
    (body,) = outbox_of(quiet)
    assert body["id"] == str(event.id)
    assert body["occurredAt"] == event.occurred_at.isoformat().replace("+00:00", "Z")
    assert body["payload"]["items"] == [{"sku": "SKU-1", "qty": 1, "price": "129.00"}]


RETRIED_SOON = "SELECT next_attempt_at > %s AND next_attempt_at <= now() + interval '30 s' FROM payments"
"""Whether the next attempt is later than a time before the last one, and soon. It may already be due."""


def test_a_payment_that_stays_unanswered_is_retried_with_backoff_then_voided_and_failed(quiet: Connection) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(None, NothingToVoid())
    worker = payment_worker(provider)
    for attempts in range(2, MAX_ATTEMPTS):
        make_due(quiet)
        (before,) = row(quiet, "SELECT now()")
        worker.run_timers(quiet)
        assert payment_of(quiet, order_id) == ("PENDING", None, attempts)
        assert row(quiet, RETRIED_SOON, before) == (True,)
    make_due(quiet)
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id) == ("VOIDING", "PROVIDER_UNAVAILABLE", 0)
    assert outbox_of(quiet) == []
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")
    (body,) = outbox_of(quiet)
    assert (body["type"], body["payload"]["reason"]) == ("payment.failed", "PROVIDER_UNAVAILABLE")
    assert provider.voided == [order_id]


@pytest.mark.parametrize("answer", [Voided(), NothingToVoid()])
@pytest.mark.parametrize("reason", ["OUT_OF_STOCK", None])
def test_the_timer_voids_a_payment_in_the_state_voiding(
    quiet: Connection, answer: Voided | NothingToVoid, reason: FailureReason | None
) -> None:
    order_id, provider = payment_in_state(quiet, "VOIDING", reason), ScriptedProvider(void_answer=answer)
    payment_worker(provider).run_timers(quiet)
    assert (provider.voided, provider.charges) == ([order_id], [])
    assert payment_of(quiet, order_id)[:2] == ("VOIDED", reason)
    (body,) = outbox_of(quiet)
    assert (body["type"], body["payload"]["reason"]) == ("payment.voided", reason)


def test_a_void_without_an_answer_is_retried_without_a_limit(quiet: Connection) -> None:
    order_id, provider = payment_in_state(quiet, "VOIDING", "TIMED_OUT", attempts=0), ScriptedProvider()
    worker = payment_worker(provider)
    for attempts in range(1, 3 * MAX_ATTEMPTS):
        make_due(quiet)
        (before,) = row(quiet, "SELECT now()")
        worker.run_timers(quiet)
        assert payment_of(quiet, order_id) == ("VOIDING", "TIMED_OUT", attempts)
        assert row(quiet, RETRIED_SOON, before) == (True,)
    assert outbox_of(quiet) == []


def _abort_elsewhere(postgres_url: str, order_id: str) -> None:
    with connect(postgres_url, "another") as another:
        decide(payment_worker(ScriptedProvider()), another, aborted(order_id))


def test_an_abort_during_an_attempt_is_kept(quiet: Connection, postgres_url: str) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(Authorized(), Voided())
    worker = payment_worker(provider)

    async def abort_elsewhere() -> None:
        _abort_elsewhere(postgres_url, order_id)

    provider.meanwhile = abort_elsewhere
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id)[:2] == ("VOIDING", "OUT_OF_STOCK")
    assert outbox_of(quiet) == []
    provider.meanwhile = ScriptedProvider().meanwhile
    worker.run_timers(quiet)
    assert [body["type"] for body in outbox_of(quiet)] == ["payment.voided"]


def test_an_attempt_that_is_authorized_after_the_void_is_voided_again(quiet: Connection, postgres_url: str) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(Authorized(), Voided())
    worker = payment_worker(provider)

    async def void_elsewhere() -> None:
        _abort_elsewhere(postgres_url, order_id)
        with connect(postgres_url, "another") as another:
            payment_worker(ScriptedProvider(void_answer=Voided())).run_timers(another)

    provider.meanwhile = void_elsewhere
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id)[:2] == ("VOIDING", "OUT_OF_STOCK")
    provider.meanwhile = ScriptedProvider().meanwhile
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id)[:2] == ("VOIDED", "OUT_OF_STOCK")
    first, second = outbox_of(quiet)
    assert first["type"] == "payment.voided"
    assert first == second


def test_the_age_of_the_oldest_open_void_is_shown(quiet: Connection) -> None:
    payment_in_state(quiet, "VOIDED")
    measure = payment_worker(ScriptedProvider()).attempts.measure
    assert measure(quiet) is False
    assert metrics.VOIDING_OLDEST_SECONDS._value.get() == 0
    payment_in_state(quiet, "VOIDING")
    quiet.execute("UPDATE payments SET decided_at = now() - interval '1 h' WHERE state = 'VOIDING'")
    payment_worker(ScriptedProvider()).attempts.measure(quiet)
    assert 3_600 <= metrics.VOIDING_OLDEST_SECONDS._value.get() < 3_700


def test_an_error_of_an_adapter_counts_as_no_answer(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())

    async def defect() -> None:
        raise ZeroDivisionError

    provider.meanwhile = defect
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert payment_of(connection, order_id)[0] == "PENDING"
