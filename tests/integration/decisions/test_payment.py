"""Every cell of the table of payment-worker, on PostgreSQL (P2, P5, P7)."""

import asyncio
import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from orderstream.domain.events import Event, Payload, PaymentAuthorized, PaymentFailed, PaymentVoided
from orderstream.domain.order import FailureReason
from orderstream.domain.payment import Authorized, Declined, NothingToVoid, PaymentState, Pending, Voided
from orderstream.payment_worker.providers.protocol import CallContext, ProviderRefusedError
from orderstream.postgres.connect import Connection, connect
from orderstream.telemetry import metrics
from orderstream.worker.handler import BatchResult
from tests.integration.decisions import orders
from tests.integration.decisions.orders import (
    AMOUNT,
    TRACEPARENT,
    aborted,
    created,
    emitted,
    items_of,
    place,
    received,
    record,
    rejections,
    row,
    types,
)
from tests.support.contracts import assert_event
from tests.support.payments import (
    KEY_LIFETIME_SECONDS,
    MAX_ATTEMPTS,
    PENDING_LIMIT_SECONDS,
    Answer,
    Payments,
    ScriptedProvider,
    payment_worker,
)
from tests.support.waiting import wait_until


def decide(worker: Payments, connection: Connection, *events: Event[Payload]) -> BatchResult:
    """Record the aborts of events, then decide the batch with the worker's handler."""
    record(connection, *events)
    return orders.decide(worker.handler, connection, *events)


def _make_due(connection: Connection) -> None:
    connection.execute(
        "UPDATE payments SET next_attempt_at = now() - interval '1 ms' WHERE next_attempt_at IS NOT NULL"
    )


def _payment(connection: Connection, order_id: str) -> tuple[PaymentState, FailureReason | None, int]:
    state, reason, attempts = row(
        connection, "SELECT state, reason, attempts FROM payments WHERE order_id = %s", order_id
    )
    return state, reason, attempts


def _outbox(connection: Connection) -> list[dict[str, Any]]:
    """Return the events in the outbox. Each must keep its contract and continue the trace of the order."""
    rows = connection.execute("SELECT topic, order_id, event_id, value, traceparent FROM outbox ORDER BY id").fetchall()
    for name, order_id, event_id, value, traceparent in rows:
        body = assert_event(name, order_id.encode(), value.encode())
        assert (body["id"], traceparent) == (str(event_id), TRACEPARENT)
    return [json.loads(value) for _, _, _, value, _ in rows]


def _in_state(
    connection: Connection, state: PaymentState, reason: FailureReason | None = None, attempts: int = 1
) -> str:
    """Place an order whose payment is in the given state."""
    order_id = place(connection)
    connection.execute(
        "INSERT INTO payments (order_id, state, amount, reason, attempts, traceparent, next_attempt_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, CASE WHEN %s THEN now() - interval '1 ms' END)",
        (order_id, state, AMOUNT, reason, attempts, TRACEPARENT, state in ("PENDING", "VOIDING")),
    )
    return order_id


# order.created


def test_order_created_without_a_payment_authorizes_the_payment(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())
    (event,) = emitted(decide(payment_worker(provider), connection, created(order_id)))
    assert event.payload == PaymentAuthorized(
        order_id=order_id, items=items_of({"SKU-1": 1}), amount=AMOUNT, currency="USD"
    )
    assert provider.charges_asked() == [(order_id, AMOUNT, "USD")]
    assert _payment(connection, order_id) == ("AUTHORIZED", None, 1)
    assert row(connection, "SELECT decided_at, amount FROM payments") == (event.occurred_at, AMOUNT)


def test_an_unknown_order_is_rejected_and_never_charged(connection: Connection) -> None:
    known, unknown, provider = place(connection), str(uuid4()), ScriptedProvider(Authorized())
    batch_result = decide(payment_worker(provider), connection, created(unknown), created(known))
    assert rejections(batch_result) == [(unknown, "UNKNOWN_ORDER")]
    assert types(batch_result) == ["payment.authorized"]
    assert [charge.order_id for charge in provider.asked] == [known]


def test_the_charge_is_the_accepted_amount(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())
    connection.execute("UPDATE orders SET amount = 7.00, currency = 'EUR' WHERE id = %s", (order_id,))
    decide(payment_worker(provider), connection, created(order_id))
    assert [(charge.amount, charge.currency) for charge in provider.asked] == [(Decimal("7.00"), "EUR")]


def test_an_order_older_than_half_the_key_lifetime_is_voided_and_not_authorized(quiet: Connection) -> None:
    new, pending, provider = place(quiet), _in_state(quiet, "PENDING"), ScriptedProvider(Authorized(), NothingToVoid())
    quiet.execute("UPDATE orders SET created_at = now() - %s * interval '1 s'", (KEY_LIFETIME_SECONDS / 2 + 60,))
    worker = payment_worker(provider)
    assert types(decide(worker, quiet, created(new))) == []
    worker.run_timers(quiet)
    _make_due(quiet)
    worker.run_timers(quiet)
    assert provider.asked == []
    for order_id in (new, pending):
        assert _payment(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")
    assert {body["type"] for body in _outbox(quiet)} == {"payment.failed"}


def test_order_created_without_a_payment_records_a_decline_of_the_provider(connection: Connection) -> None:
    order_id = place(connection)
    (event,) = emitted(decide(payment_worker(ScriptedProvider(Declined())), connection, created(order_id)))
    assert event.payload == PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED")
    assert _payment(connection, order_id) == ("FAILED", "PAYMENT_DECLINED", 1)


def test_order_created_without_an_answer_of_the_provider_leaves_the_payment_pending(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(payment_worker(ScriptedProvider()), connection, created(order_id))) == []
    assert _payment(connection, order_id) == ("PENDING", None, 1)
    assert row(connection, "SELECT next_attempt_at > now(), pending_since FROM payments") == (True, None)


def test_a_payment_for_which_the_customer_must_act_is_pending_and_spends_no_attempt(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(payment_worker(ScriptedProvider(Pending())), connection, created(order_id))) == []
    assert _payment(connection, order_id) == ("PENDING", None, 0)
    assert row(connection, "SELECT next_attempt_at > now(), pending_since = decided_at FROM payments") == (True, True)


def test_a_call_that_outlasts_its_batch_goes_on_and_its_answer_is_recorded(connection: Connection) -> None:
    order_ids, gate = [place(connection) for _ in range(10)], threading.Event()
    provider = ScriptedProvider(Authorized())
    provider.meanwhile = lambda: _passed(gate)
    worker = payment_worker(provider, inline_seconds=0.05)
    try:
        assert types(decide(worker, connection, *map(created, order_ids))) == []
        assert {_payment(connection, order_id) for order_id in order_ids} == {("PENDING", None, 0)}
        assert row(connection, "SELECT min(next_attempt_at) > now() + interval '10 s' FROM payments") == (True,)
        assert not worker.attempts.has_answers()
    finally:
        gate.set()
    worker.run_timers(connection)
    assert {_payment(connection, order_id) for order_id in order_ids} == {("AUTHORIZED", None, 1)}
    assert [body["type"] for body in _outbox(connection)] == ["payment.authorized"] * 10
    assert len(provider.asked) == 10
    worker.run_timers(connection)
    assert len(_outbox(connection)) == 10


def test_a_batch_that_is_repeated_uses_the_calls_that_it_has_begun(connection: Connection) -> None:
    """The transaction of the first try is rolled back. The second try must not ask the provider again."""
    running, answered, gate = place(connection), place(connection), threading.Event()
    provider = ScriptedProvider(Authorized())
    worker = payment_worker(provider, inline_seconds=0.05)
    worker.handler.prepare(connection, received([created(answered)]))
    provider.meanwhile = lambda: _passed(gate)
    try:
        worker.handler.prepare(connection, received([created(running)]))
        assert not worker.attempts.has_answers(), "answers wait for the rows of their orders"
        batch_result = decide(worker, connection, created(running), created(answered))
    finally:
        gate.set()
    assert types(batch_result) == ["payment.authorized"]
    worker.run_timers(connection)
    assert {_payment(connection, order_id)[0] for order_id in (running, answered)} == {"AUTHORIZED"}
    assert len(provider.asked) == 2


async def _passed(gate: threading.Event) -> None:
    assert await asyncio.to_thread(gate.wait, 20)


def test_order_created_for_a_pending_payment_makes_no_call_and_emits_nothing(connection: Connection) -> None:
    order_id, provider = _in_state(connection, "PENDING"), ScriptedProvider(Authorized())
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert provider.asked == []
    assert _payment(connection, order_id) == ("PENDING", None, 1)


@pytest.mark.parametrize("answer", [Authorized(), Declined()])
def test_a_second_order_created_repeats_the_recorded_event(connection: Connection, answer: Answer) -> None:
    order_id, provider = place(connection), ScriptedProvider(answer)
    first = decide(payment_worker(provider), connection, created(order_id))
    provider.answer = Declined() if answer == Authorized() else Authorized()
    again = decide(payment_worker(provider), connection, created(order_id), created(order_id))
    assert emitted(again) == emitted(first) * 2
    assert len(provider.asked) == 1


def test_order_created_for_a_payment_being_voided_emits_nothing(connection: Connection) -> None:
    order_id, provider = _in_state(connection, "VOIDING", "TIMED_OUT"), ScriptedProvider(Authorized())
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert (provider.asked, _payment(connection, order_id)[0]) == ([], "VOIDING")


def test_order_created_for_a_voided_payment_repeats_payment_voided(connection: Connection) -> None:
    order_id, provider = _in_state(connection, "VOIDED", "TIMED_OUT"), ScriptedProvider(Authorized())
    (event,) = emitted(decide(payment_worker(provider), connection, created(order_id)))
    assert event.payload == PaymentVoided(order_id=order_id, reason="TIMED_OUT")
    assert row(connection, "SELECT decided_at FROM payments") == (event.occurred_at,)
    assert provider.asked == []


# order.aborted


def test_an_abort_without_a_payment_inserts_a_tombstone_that_is_voided_at_once(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id, "TIMED_OUT"))) == []
    assert _payment(connection, order_id) == ("VOIDING", "TIMED_OUT", 0)
    assert row(connection, "SELECT next_attempt_at <= now() FROM payments") == (True,)


@pytest.mark.parametrize("state", ["PENDING", "AUTHORIZED"])
@pytest.mark.parametrize("reason", ["OUT_OF_STOCK", None])
def test_an_abort_voids_an_open_payment_at_once(
    connection: Connection, state: PaymentState, reason: FailureReason | None
) -> None:
    order_id = _in_state(connection, state, attempts=2)
    assert types(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id, reason))) == []
    assert _payment(connection, order_id) == ("VOIDING", reason, 0)
    assert row(connection, "SELECT next_attempt_at <= now() FROM payments") == (True,)


def test_an_abort_of_a_declined_payment_repeats_payment_failed(connection: Connection) -> None:
    order_id = _in_state(connection, "FAILED", "PAYMENT_DECLINED")
    (event,) = emitted(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id)))
    assert event.payload == PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED")
    assert _payment(connection, order_id)[0] == "FAILED"


def test_a_second_abort_of_a_payment_being_voided_emits_nothing(connection: Connection) -> None:
    order_id = _in_state(connection, "VOIDING", "TIMED_OUT", attempts=4)
    assert types(decide(payment_worker(ScriptedProvider()), connection, aborted(order_id))) == []
    assert _payment(connection, order_id) == ("VOIDING", "TIMED_OUT", 4)


def test_an_abort_of_a_voided_payment_repeats_payment_voided(connection: Connection) -> None:
    order_id = _in_state(connection, "VOIDED", "TIMED_OUT")
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
    assert (provider.asked, _payment(connection, order_id)[0]) == ([], "VOIDING")


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
    assert _payment(connection, order_id)[:2] == ("VOIDING", "TIMED_OUT")


def test_an_authorization_that_another_process_has_recorded_is_repeated(connection: Connection) -> None:
    order_id, worker = place(connection), payment_worker(ScriptedProvider(Authorized()))
    batch = received([created(order_id)])
    prepared = worker.handler.prepare(connection, batch)
    first = decide(payment_worker(ScriptedProvider(Authorized())), connection, created(order_id))
    with connection.transaction():
        assert emitted(worker.handler.decide(connection, batch, prepared)) == emitted(first)
    assert _payment(connection, order_id)[0] == "AUTHORIZED"


def test_each_record_of_a_mixed_batch_gets_its_own_answer(connection: Connection) -> None:
    fresh, old = place(connection), _in_state(connection, "VOIDED", "TIMED_OUT")
    undone, gone = _in_state(connection, "AUTHORIZED"), place(connection)
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
    assert [_payment(connection, order_id)[0] for order_id in (undone, gone)] == ["VOIDING", "VOIDING"]


# The timer


@pytest.fixture
def quiet(connection: Connection) -> Iterator[Connection]:
    """Fails the test if the handler publishes without the outbox."""
    yield connection
    _outbox(connection)


def test_the_timer_does_nothing_before_an_attempt_is_due(quiet: Connection) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(Authorized())
    quiet.execute("UPDATE payments SET next_attempt_at = now() + interval '1 hour'")
    assert not payment_worker(provider).run_timers(quiet)
    assert (provider.asked, _payment(quiet, order_id), _outbox(quiet)) == ([], ("PENDING", None, 1), [])


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
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(answer)
    payment_worker(provider).run_timers(quiet)
    assert provider.charges_asked() == [(order_id, AMOUNT, "USD")]
    assert _payment(quiet, order_id) == (state, reason, 2)
    (body,) = _outbox(quiet)
    assert (body["type"], body["correlationId"]) == (event, order_id)


def test_the_event_of_the_timer_and_a_later_repeat_are_equal(quiet: Connection) -> None:
    order_id, worker = _in_state(quiet, "PENDING"), payment_worker(ScriptedProvider(Authorized()))
    worker.run_timers(quiet)
    (event,) = emitted(decide(worker, quiet, created(order_id)))
    (body,) = _outbox(quiet)
    assert body["id"] == str(event.id)
    assert body["occurredAt"] == event.occurred_at.isoformat().replace("+00:00", "Z")
    assert body["payload"]["items"] == [{"sku": "SKU-1", "qty": 1, "price": "129.00"}]


def test_a_payment_that_stays_unanswered_is_retried_with_backoff_then_voided_and_failed(quiet: Connection) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(None, NothingToVoid())
    worker = payment_worker(provider)
    for attempts in range(2, MAX_ATTEMPTS):
        _make_due(quiet)
        worker.run_timers(quiet)
        assert _payment(quiet, order_id) == ("PENDING", None, attempts)
        assert row(quiet, "SELECT next_attempt_at BETWEEN now() AND now() + interval '30 s' FROM payments") == (True,)
    _make_due(quiet)
    worker.run_timers(quiet)
    assert _payment(quiet, order_id) == ("VOIDING", "PROVIDER_UNAVAILABLE", 0)
    assert _outbox(quiet) == []
    worker.run_timers(quiet)
    assert _payment(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")
    (body,) = _outbox(quiet)
    assert (body["type"], body["payload"]["reason"]) == ("payment.failed", "PROVIDER_UNAVAILABLE")
    assert provider.voided == [order_id]


def test_a_payment_may_be_pending_for_longer_than_its_attempts_without_an_answer(quiet: Connection) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(Pending())
    worker = payment_worker(provider)
    for _ in range(3 * MAX_ATTEMPTS):
        _make_due(quiet)
        worker.run_timers(quiet)
        assert _payment(quiet, order_id) == ("PENDING", None, 0)
    (since,) = row(quiet, "SELECT pending_since FROM payments")
    assert since is not None
    provider.answer = Authorized()
    _make_due(quiet)
    worker.run_timers(quiet)
    assert _payment(quiet, order_id) == ("AUTHORIZED", None, 1)
    assert row(quiet, "SELECT pending_since FROM payments") == (since,)


@pytest.mark.parametrize(("pending_seconds", "shortest", "longest"), [(0, 1, 2), (10, 2.5, 5), (600, 10, 20)])
def test_a_pending_payment_is_checked_in_a_slower_rhythm(
    quiet: Connection, pending_seconds: float, shortest: float, longest: float
) -> None:
    _in_state(quiet, "PENDING")
    quiet.execute("UPDATE payments SET pending_since = now() - %s * interval '1 s'", (pending_seconds,))
    payment_worker(ScriptedProvider(Pending())).run_timers(quiet)
    (delay,) = row(quiet, "SELECT extract(epoch FROM next_attempt_at - now())::float8 FROM payments")
    assert shortest - 1 <= delay <= longest + 1


def test_a_payment_that_is_pending_beyond_its_limit_is_voided(quiet: Connection) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(Pending(), NothingToVoid())
    quiet.execute("UPDATE payments SET pending_since = now() - %s * interval '1 s'", (PENDING_LIMIT_SECONDS + 1,))
    worker = payment_worker(provider)
    worker.run_timers(quiet)
    assert _payment(quiet, order_id) == ("VOIDING", "PROVIDER_UNAVAILABLE", 0)
    worker.run_timers(quiet)
    assert _payment(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")


def test_the_webhook_brings_forward_only_payments_that_are_pending(quiet: Connection) -> None:
    pending, unanswered, voiding = (_in_state(quiet, state) for state in ("PENDING", "PENDING", "VOIDING"))
    quiet.execute("UPDATE payments SET next_attempt_at = now() + interval '1 h'")
    quiet.execute("UPDATE payments SET pending_since = now() WHERE order_id = %s", (pending,))
    provider = ScriptedProvider(Authorized(), Voided())
    worker = payment_worker(provider)
    for key in (pending, unanswered, voiding, "no order"):
        worker.decided.add(key)
    assert worker.attempts.has_answers()
    worker.attempts.record(quiet)
    assert not worker.attempts.has_answers()
    worker.run_timers(quiet)
    assert [charge.order_id for charge in provider.asked] == [pending]
    assert provider.voided == []
    assert _payment(quiet, pending)[0] == "AUTHORIZED"


@pytest.mark.parametrize("state", ["PENDING", "VOIDING"])
def test_a_call_that_the_provider_refuses_is_no_attempt_and_is_retried_when_the_provider_allows(
    quiet: Connection, state: PaymentState
) -> None:
    order_id, provider = _in_state(quiet, state, attempts=MAX_ATTEMPTS - 1), ScriptedProvider()

    async def refuse() -> None:
        raise ProviderRefusedError("429", retry_after_seconds=60)

    provider.meanwhile = refuse
    payment_worker(provider).run_timers(quiet)
    assert _payment(quiet, order_id) == (state, None, MAX_ATTEMPTS - 1)
    assert row(quiet, "SELECT next_attempt_at > now() + interval '59 s' FROM payments") == (True,)


def test_a_first_call_that_the_provider_refuses_is_no_attempt(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider()

    async def refuse() -> None:
        raise ProviderRefusedError("503", retry_after_seconds=60)

    provider.meanwhile = refuse
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert _payment(connection, order_id) == ("PENDING", None, 0)
    assert row(connection, "SELECT next_attempt_at > now() + interval '59 s' FROM payments") == (True,)


@pytest.mark.parametrize("answer", [Voided(), NothingToVoid()])
@pytest.mark.parametrize("reason", ["OUT_OF_STOCK", None])
def test_the_timer_voids_a_payment_in_the_state_voiding(
    quiet: Connection, answer: Voided | NothingToVoid, reason: FailureReason | None
) -> None:
    order_id, provider = _in_state(quiet, "VOIDING", reason), ScriptedProvider(void_answer=answer)
    payment_worker(provider).run_timers(quiet)
    assert (provider.voided, provider.asked) == ([order_id], [])
    assert _payment(quiet, order_id)[:2] == ("VOIDED", reason)
    (body,) = _outbox(quiet)
    assert (body["type"], body["payload"]["reason"]) == ("payment.voided", reason)


def test_a_void_without_an_answer_is_retried_without_a_limit(quiet: Connection) -> None:
    order_id, provider = _in_state(quiet, "VOIDING", "TIMED_OUT", attempts=0), ScriptedProvider()
    worker = payment_worker(provider)
    for attempts in range(1, 3 * MAX_ATTEMPTS):
        _make_due(quiet)
        worker.run_timers(quiet)
        assert _payment(quiet, order_id) == ("VOIDING", "TIMED_OUT", attempts)
        assert row(quiet, "SELECT next_attempt_at BETWEEN now() AND now() + interval '30 s' FROM payments") == (True,)
    assert _outbox(quiet) == []


def _abort_elsewhere(postgres_url: str, order_id: str) -> None:
    with connect(postgres_url, "another") as another:
        decide(payment_worker(ScriptedProvider()), another, aborted(order_id))


def test_an_abort_during_an_attempt_is_kept(quiet: Connection, postgres_url: str) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(Authorized(), Voided())
    worker = payment_worker(provider)

    async def abort_elsewhere() -> None:
        _abort_elsewhere(postgres_url, order_id)

    provider.meanwhile = abort_elsewhere
    worker.run_timers(quiet)
    assert _payment(quiet, order_id)[:2] == ("VOIDING", "OUT_OF_STOCK")
    assert _outbox(quiet) == []
    provider.meanwhile = ScriptedProvider().meanwhile
    worker.run_timers(quiet)
    assert [body["type"] for body in _outbox(quiet)] == ["payment.voided"]


def test_an_attempt_that_is_authorized_after_the_void_is_voided_again(quiet: Connection, postgres_url: str) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), ScriptedProvider(Authorized(), Voided())
    worker = payment_worker(provider)

    async def void_elsewhere() -> None:
        _abort_elsewhere(postgres_url, order_id)
        with connect(postgres_url, "another") as another:
            payment_worker(ScriptedProvider(void_answer=Voided())).run_timers(another)

    provider.meanwhile = void_elsewhere
    worker.run_timers(quiet)
    assert _payment(quiet, order_id)[:2] == ("VOIDING", "OUT_OF_STOCK")
    provider.meanwhile = ScriptedProvider().meanwhile
    worker.run_timers(quiet)
    assert _payment(quiet, order_id)[:2] == ("VOIDED", "OUT_OF_STOCK")
    first, second = _outbox(quiet)
    assert first["type"] == "payment.voided"
    assert first == second


def test_the_age_of_the_oldest_open_void_is_shown(quiet: Connection) -> None:
    _in_state(quiet, "VOIDED")
    measure = payment_worker(ScriptedProvider()).attempts.measure
    assert measure(quiet) is False
    assert metrics.VOIDING_OLDEST_SECONDS._value.get() == 0
    _in_state(quiet, "VOIDING")
    quiet.execute("UPDATE payments SET decided_at = now() - interval '1 h' WHERE state = 'VOIDING'")
    payment_worker(ScriptedProvider()).attempts.measure(quiet)
    assert 3_600 <= metrics.VOIDING_OLDEST_SECONDS._value.get() < 3_700


def test_no_more_payments_are_claimed_than_there_is_room_for(quiet: Connection) -> None:
    ids, gate = [_in_state(quiet, "PENDING") for _ in range(30)], threading.Event()
    provider = ScriptedProvider(Authorized())
    provider.meanwhile = lambda: _passed(gate)
    worker = payment_worker(provider, concurrency=20)
    room = worker.calls.room("retry")
    assert 0 < room < len(ids)
    try:
        worker.attempts.begin(quiet)
        worker.attempts.begin(quiet)
        due = "SELECT count(*) FROM payments WHERE next_attempt_at <= now()"
        assert row(quiet, due) == (len(ids) - room,)
    finally:
        gate.set()
    wait_until(lambda: not worker.run_timers(quiet) and row(quiet, due) == (0,), 20, "all are attempted")
    assert sorted(charge.order_id for charge in provider.asked) == sorted(ids)


def test_healthy_voids_are_done_while_more_voids_hang_than_there_is_room_for(quiet: Connection) -> None:
    """Hanging voids take their share of the calls, however many there are and however long they have been due."""
    hanging = {_in_state(quiet, "VOIDING", attempts=0) for _ in range(60)}

    class Provider(ScriptedProvider):
        async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
            if order_id in hanging:
                await asyncio.sleep(3_600)
            return await super().void(order_id, call)

    worker = payment_worker(Provider(void_answer=Voided()), concurrency=20)

    def rounds() -> bool:
        worker.attempts.begin(quiet)
        worker.attempts.record(quiet)
        quiet.execute("UPDATE payments SET next_attempt_at = now() WHERE attempts > 0 AND state = 'VOIDING'")
        return True

    tried = "SELECT count(*) FROM payments WHERE attempts > 0"
    wait_until(lambda: rounds() and row(quiet, tried)[0] >= 30, 60, "the hanging voids take turns")
    healthy = [_in_state(quiet, "VOIDING", attempts=0) for _ in range(10)]
    wait_until(
        lambda: rounds() and all(_payment(quiet, order_id)[0] == "VOIDED" for order_id in healthy),
        60,
        "the healthy voids are done",
    )
    assert worker.calls.room("new") > 0, "new orders keep their room"


def test_one_run_of_the_payment_timer_claims_at_most_the_limit(
    quiet: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.payment_worker.attempts.CLAIM_ROWS", 3)
    ids, provider = {_in_state(quiet, "PENDING") for _ in range(5)}, ScriptedProvider(Authorized())
    worker = payment_worker(provider)
    assert worker.run_timers(quiet)
    assert len(provider.asked) == 3
    assert not worker.run_timers(quiet)
    assert sorted(charge.order_id for charge in provider.asked) == sorted(ids)


def test_the_answers_of_one_transaction_are_limited(quiet: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.payment_worker.attempts.ANSWERS_MAX", 3)
    ids, worker = [_in_state(quiet, "PENDING") for _ in range(7)], payment_worker(ScriptedProvider(Authorized()))
    worker.attempts.begin(quiet)
    wait_until(lambda: len(worker.calls.ended(100)) == len(ids), 20, "all calls have ended")
    recorded = []
    for _ in range(3):
        more = worker.attempts.record(quiet)
        recorded.append((more, len(_outbox(quiet))))
    assert recorded == [(True, 3), (True, 6), (False, 7)]


def test_an_attempt_under_way_is_not_repeated_by_a_second_worker(quiet: Connection) -> None:
    order_id, gate = _in_state(quiet, "PENDING"), threading.Event()
    provider, idle = ScriptedProvider(Authorized()), ScriptedProvider(Authorized())
    provider.meanwhile = lambda: _passed(gate)
    worker = payment_worker(provider)
    try:
        worker.attempts.begin(quiet)
        wait_until(lambda: provider.asked, 10, "the attempt is under way")
        payment_worker(idle).run_timers(quiet)
    finally:
        gate.set()
    worker.run_timers(quiet)
    assert idle.asked == []
    assert _payment(quiet, order_id)[0] == "AUTHORIZED"


def test_an_error_of_an_adapter_counts_as_no_answer(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider(Authorized())

    async def defect() -> None:
        raise ZeroDivisionError

    provider.meanwhile = defect
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert _payment(connection, order_id)[0] == "PENDING"
