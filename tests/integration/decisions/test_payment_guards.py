"""How a payment is protected against a concurrent writer: locks, states, times and amounts (P2, P5, P7)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from orderstream.domain.payment import Authorized, Declined, PaymentState, Voided
from orderstream.postgres.connect import Connection, connect
from orderstream.telemetry import metrics
from tests.integration.decisions.orders import (
    AMOUNT,
    TRACEPARENT,
    abort,
    aborted,
    created,
    decide,
    place,
    received,
    row,
    types,
)
from tests.integration.decisions.payments import make_due, outbox_of, payment_in_state, payment_of
from tests.support.payments import Payments, ScriptedProvider, payment_worker


def _oldest_void(worker: Payments, connection: Connection) -> float:
    (measure,) = (timer.run for timer in worker.handler.timers if timer.name == "measure_voiding")
    measure(connection)
    return float(metrics.VOIDING_OLDEST_SECONDS._value.get())


def _columns(connection: Connection, columns: str, order_id: str) -> tuple[Any, ...]:
    return row(connection, f"SELECT {columns} FROM payments WHERE order_id = %s", order_id)  # noqa: S608 - our words


# The claim


def test_an_attempt_that_another_worker_holds_is_skipped_and_the_others_are_made(
    connection: Connection, postgres_url: str
) -> None:
    held, free = payment_in_state(connection, "PENDING"), payment_in_state(connection, "PENDING")
    provider = ScriptedProvider(Authorized())
    with connect(postgres_url, "another") as another, another.transaction():
        another.execute("SELECT FROM payments WHERE order_id = %s FOR UPDATE", (held,))
        payment_worker(provider).run_timers(connection)
        assert [charge.order_id for charge in provider.charges] == [free]


def test_an_attempt_whose_event_cannot_be_queued_is_not_recorded(connection: Connection) -> None:
    order_id, worker = payment_in_state(connection, "PENDING"), payment_worker(ScriptedProvider(Authorized()))
    connection.execute("ALTER TABLE outbox ADD CONSTRAINT refuses CHECK (FALSE)")
    with pytest.raises(psycopg.errors.CheckViolation):
        worker.run_timers(connection)
    assert payment_of(connection, order_id) == ("PENDING", None, 1)
    connection.execute("ALTER TABLE outbox DROP CONSTRAINT refuses")
    make_due(connection)
    worker.run_timers(connection)
    assert [body["type"] for body in outbox_of(connection)] == ["payment.authorized"]


# A payment that changes during an attempt


def _finds(connection: Connection, postgres_url: str, state: PaymentState) -> str:
    """Make an attempt that is authorized, while another connection puts the payment into `state`."""
    order_id, provider = payment_in_state(connection, "PENDING"), ScriptedProvider(Authorized())

    async def meanwhile() -> None:
        with connect(postgres_url, "another") as another:
            another.execute(
                "UPDATE payments SET state = %s, next_attempt_at = CASE WHEN %s THEN now() + interval '1 h' END,"
                " attempts = 5, decided_at = now() - interval '1 h' WHERE order_id = %s",
                (state, state == "VOIDING", order_id),
            )

    provider.meanwhile = meanwhile
    payment_worker(provider).run_timers(connection)
    return order_id


@pytest.mark.parametrize("state", ["AUTHORIZED", "VOIDING"])
def test_a_late_authorization_changes_no_payment_that_is_authorized_or_being_voided(
    connection: Connection, postgres_url: str, state: PaymentState
) -> None:
    order_id = _finds(connection, postgres_url, state)
    assert payment_of(connection, order_id) == (state, None, 5)
    assert outbox_of(connection) == []


@pytest.mark.parametrize("state", ["VOIDED", "FAILED"])
def test_a_late_authorization_of_an_ended_payment_is_voided_at_once(
    connection: Connection, postgres_url: str, state: PaymentState
) -> None:
    order_id = _finds(connection, postgres_url, state)
    assert payment_of(connection, order_id) == ("VOIDING", None, 0)
    assert _columns(connection, "next_attempt_at <= now(), decided_at > now() - interval '1 min'", order_id) == (
        True,
        True,
    )


def test_a_late_decline_of_an_ended_payment_voids_nothing(connection: Connection) -> None:
    order_id, worker = place(connection), payment_worker(ScriptedProvider(Declined()))
    batch = received([created(order_id)])
    prepared = worker.handler.prepare(connection, batch)
    connection.execute("INSERT INTO payments (order_id, state) VALUES (%s, 'VOIDED')", (order_id,))
    with connection.transaction():
        assert types(worker.handler.decide(connection, batch, prepared)) == ["payment.voided"]
    assert payment_of(connection, order_id)[0] == "VOIDED"


@pytest.mark.parametrize("state", ["PENDING", "AUTHORIZED"])
def test_a_late_authorization_does_not_change_a_pending_or_authorized_payment(
    connection: Connection, state: PaymentState
) -> None:
    order_id, worker = place(connection), payment_worker(ScriptedProvider(Authorized()))
    batch = received([created(order_id)])
    prepared = worker.handler.prepare(connection, batch)
    connection.execute(
        "INSERT INTO payments (order_id, state, next_attempt_at) VALUES (%s, %s, CASE WHEN %s THEN now() END)",
        (order_id, state, state == "PENDING"),
    )
    with connection.transaction():
        worker.handler.decide(connection, batch, prepared)
    assert payment_of(connection, order_id)[0] == state


@pytest.mark.parametrize("state", ["PENDING", "AUTHORIZED"])
def test_an_abort_voids_with_its_own_trace_its_time_and_the_amount(connection: Connection, state: PaymentState) -> None:
    order_id, worker = payment_in_state(connection, state), payment_worker(ScriptedProvider(void_answer=Voided()))
    connection.execute("UPDATE payments SET traceparent = NULL, decided_at = now() - interval '1 h'")
    abort(connection, order_id)
    decide(worker.handler, connection, aborted(order_id))
    assert _columns(connection, "state, attempts, traceparent", order_id) == ("VOIDING", 0, TRACEPARENT)
    assert _oldest_void(worker, connection) < 60
    worker.run_timers(connection)
    assert _columns(connection, "state, amount", order_id) == ("VOIDED", AMOUNT)


# Repeated events are equal


def test_a_payment_that_is_voided_repeatedly_emits_the_same_event(connection: Connection, postgres_url: str) -> None:
    order_id, provider = payment_in_state(connection, "VOIDING", "TIMED_OUT"), ScriptedProvider(void_answer=Voided())
    worker = payment_worker(provider)
    worker.run_timers(connection)
    for void_answer in (None, Voided(), Voided()):
        connection.execute(
            "UPDATE payments SET state = 'VOIDING', next_attempt_at = now() WHERE order_id = %s", (order_id,)
        )
        provider.void_answer = void_answer
        worker.run_timers(connection)
    events = outbox_of(connection)
    assert [event["type"] for event in events] == ["payment.voided"] * 3
    assert events[0] == events[1] == events[2]


def test_the_age_of_a_void_counts_from_its_first_attempt(connection: Connection) -> None:
    order_id, worker = payment_in_state(connection, "VOIDING", "TIMED_OUT"), payment_worker(ScriptedProvider())
    connection.execute("UPDATE payments SET decided_at = now() - interval '1 h'")
    pending = payment_in_state(connection, "PENDING")
    connection.execute("UPDATE payments SET decided_at = now() - interval '3 h' WHERE order_id = %s", (pending,))
    worker.run_timers(connection)
    assert payment_of(connection, order_id) == ("VOIDING", "TIMED_OUT", 2)
    assert 3_600 <= _oldest_void(worker, connection) < 3_700


# Two workers at once


def test_two_workers_that_handle_an_order_at_once_charge_it_once_and_emit_the_same_event(
    connection: Connection, postgres_url: str
) -> None:
    order_id = place(connection)
    both_have_asked = threading.Barrier(2, timeout=10)

    def decided(_replica: int) -> list[Any]:
        provider = ScriptedProvider(Authorized())

        async def wait_for_the_other() -> None:
            both_have_asked.wait()

        provider.meanwhile = wait_for_the_other
        with connect(postgres_url, "replica") as replica:
            return [
                outgoing.event for outgoing in decide(payment_worker(provider).handler, replica, created(order_id)).emit
            ]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(decided, range(2))
    assert first == second
    assert [event.type for event in first] == ["payment.authorized"]
    assert payment_of(connection, order_id) == ("AUTHORIZED", None, 1)
