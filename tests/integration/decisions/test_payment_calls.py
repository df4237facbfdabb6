"""Calls that outlast their batch, pending payments, refused calls, and the room for calls, on PostgreSQL (P2, P5)."""

import asyncio
import math
import threading
import time

import pytest

from orderstream.domain.payment import Authorized, NothingToVoid, PaymentState, Pending, Voided
from orderstream.payment_worker.attempts import NO_ROOM_SECONDS
from orderstream.payment_worker.providers.protocol import CallContext, ProviderRefusedError
from orderstream.postgres.connect import Connection
from tests.integration.decisions.orders import (
    aborted,
    created,
    place,
    received,
    row,
    types,
)
from tests.integration.decisions.payments import decide, make_due, outbox_of, payment_in_state, payment_of
from tests.support.payments import (
    MAX_ATTEMPTS,
    PENDING_LIMIT_SECONDS,
    Payments,
    ScriptedProvider,
    payment_worker,
)
from tests.support.waiting import wait_until


def test_a_call_that_outlasts_its_batch_goes_on_and_its_answer_is_recorded(connection: Connection) -> None:
    order_ids, gate = [place(connection) for _ in range(10)], threading.Event()
    provider = ScriptedProvider(Authorized())
    provider.meanwhile = lambda: _passed(gate)
    worker = payment_worker(provider, inline_seconds=0.05)
    try:
        assert types(decide(worker, connection, *map(created, order_ids))) == []
        assert {payment_of(connection, order_id) for order_id in order_ids} == {("PENDING", None, 0)}
        assert row(connection, "SELECT min(next_attempt_at) > now() + interval '10 s' FROM payments") == (True,)
        assert not worker.attempts.has_answers()
    finally:
        gate.set()
    worker.run_timers(connection)
    assert {payment_of(connection, order_id) for order_id in order_ids} == {("AUTHORIZED", None, 1)}
    assert [body["type"] for body in outbox_of(connection)] == ["payment.authorized"] * 10
    assert len(provider.charges) == 10
    worker.run_timers(connection)
    assert len(outbox_of(connection)) == 10


def test_a_batch_that_is_repeated_uses_the_calls_that_it_has_begun(connection: Connection) -> None:
    """The transaction of the first try is rolled back. The second try must not ask the provider again."""
    running, answered, gate = place(connection), place(connection), threading.Event()
    provider = ScriptedProvider(Authorized())
    worker = payment_worker(provider, inline_seconds=0.05)
    worker.handler.prepare(connection, received([created(answered)]))
    wait_until(lambda: not any(worker.calls.state().in_flight.values()), 20, "the first call has ended")
    provider.meanwhile = lambda: _passed(gate)
    try:
        worker.handler.prepare(connection, received([created(running)]))
        assert not worker.attempts.has_answers(), "answers wait for the rows of their orders"
        batch_result = decide(worker, connection, created(running), created(answered))
    finally:
        gate.set()
    assert types(batch_result) == ["payment.authorized"]
    worker.run_timers(connection)
    assert {payment_of(connection, order_id)[0] for order_id in (running, answered)} == {"AUTHORIZED"}
    assert len(provider.charges) == 2


async def _passed(gate: threading.Event) -> None:
    assert await asyncio.to_thread(gate.wait, 20)


def test_a_payment_for_which_the_customer_must_act_is_pending_and_spends_no_attempt(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(payment_worker(ScriptedProvider(Pending())), connection, created(order_id))) == []
    assert payment_of(connection, order_id) == ("PENDING", None, 0)
    columns = "next_attempt_at > pending_since, pending_since = decided_at"
    assert row(connection, f"SELECT {columns} FROM payments") == (True, True)  # noqa: S608 - our words


def test_a_payment_may_be_pending_for_longer_than_its_attempts_without_an_answer(quiet: Connection) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(Pending())
    worker = payment_worker(provider)
    for _ in range(3 * MAX_ATTEMPTS):
        make_due(quiet)
        worker.run_timers(quiet)
        assert payment_of(quiet, order_id) == ("PENDING", None, 0)
    (since,) = row(quiet, "SELECT pending_since FROM payments")
    assert since is not None
    provider.answer = Authorized()
    make_due(quiet)
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id) == ("AUTHORIZED", None, 1)
    assert row(quiet, "SELECT pending_since FROM payments") == (since,)


@pytest.mark.parametrize(("pending_seconds", "shortest", "longest"), [(0, 1, 2), (10, 2.5, 5), (600, 10, 20)])
def test_a_pending_payment_is_checked_in_a_slower_rhythm(
    quiet: Connection, pending_seconds: float, shortest: float, longest: float
) -> None:
    payment_in_state(quiet, "PENDING")
    (before,) = row(quiet, "SELECT now()")
    quiet.execute("UPDATE payments SET pending_since = now() - %s * interval '1 s'", (pending_seconds,))
    payment_worker(ScriptedProvider(Pending())).run_timers(quiet)
    since = "SELECT extract(epoch FROM next_attempt_at - %s)::float8, extract(epoch FROM now() - %s)::float8"
    delay, passed = row(quiet, f"{since} FROM payments", before, before)
    # The check began within the time that has passed. Meanwhile the payment was pending for longer.
    assert shortest <= delay <= longest + 1 + 2 * passed


def test_a_payment_that_is_pending_beyond_its_limit_is_voided(quiet: Connection) -> None:
    order_id, provider = payment_in_state(quiet, "PENDING"), ScriptedProvider(Pending(), NothingToVoid())
    quiet.execute("UPDATE payments SET pending_since = now() - %s * interval '1 s'", (PENDING_LIMIT_SECONDS + 1,))
    worker = payment_worker(provider)
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id) == ("VOIDING", "PROVIDER_UNAVAILABLE", 0)
    worker.run_timers(quiet)
    assert payment_of(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")


def test_the_webhook_brings_forward_only_payments_that_are_pending(quiet: Connection) -> None:
    pending, unanswered, voiding = (payment_in_state(quiet, state) for state in ("PENDING", "PENDING", "VOIDING"))
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
    assert [charge.order_id for charge in provider.charges] == [pending]
    assert provider.voided == []
    assert payment_of(quiet, pending)[0] == "AUTHORIZED"


@pytest.mark.parametrize("state", ["PENDING", "VOIDING"])
def test_a_call_that_the_provider_refuses_is_no_attempt_and_is_retried_when_the_provider_allows(
    quiet: Connection, state: PaymentState
) -> None:
    order_id, provider = payment_in_state(quiet, state, attempts=MAX_ATTEMPTS - 1), ScriptedProvider()

    async def refuse() -> None:
        raise ProviderRefusedError("429", retry_after_seconds=60)

    provider.meanwhile = refuse
    payment_worker(provider).run_timers(quiet)
    assert payment_of(quiet, order_id) == (state, None, MAX_ATTEMPTS - 1)
    assert row(quiet, "SELECT next_attempt_at > now() + interval '40 s' FROM payments") == (True,)


def test_a_first_call_that_the_provider_refuses_is_no_attempt(connection: Connection) -> None:
    order_id, provider = place(connection), ScriptedProvider()

    async def refuse() -> None:
        raise ProviderRefusedError("503", retry_after_seconds=60)

    provider.meanwhile = refuse
    assert types(decide(payment_worker(provider), connection, created(order_id))) == []
    assert payment_of(connection, order_id) == ("PENDING", None, 0)
    assert row(connection, "SELECT next_attempt_at > now() + interval '40 s' FROM payments") == (True,)


def test_no_more_payments_are_claimed_than_there_is_room_for(quiet: Connection) -> None:
    ids, gate = [payment_in_state(quiet, "PENDING") for _ in range(30)], threading.Event()
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
    assert sorted(charge.order_id for charge in provider.charges) == sorted(ids)


def test_healthy_voids_are_done_while_more_voids_hang_than_there_is_room_for(quiet: Connection) -> None:
    """Hanging voids take their share of the calls, however many there are and however long they have been due."""
    hanging = {payment_in_state(quiet, "VOIDING", attempts=0) for _ in range(60)}

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
    healthy = [payment_in_state(quiet, "VOIDING", attempts=0) for _ in range(10)]
    wait_until(
        lambda: rounds() and all(payment_of(quiet, order_id)[0] == "VOIDED" for order_id in healthy),
        60,
        "the healthy voids are done",
    )
    assert worker.calls.room("new") > 0, "new orders keep their room"


def test_one_run_of_the_payment_timer_claims_at_most_the_limit(
    quiet: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.payment_worker.attempts.CLAIM_ROWS", 3)
    ids, provider = {payment_in_state(quiet, "PENDING") for _ in range(5)}, ScriptedProvider(Authorized())
    worker = payment_worker(provider)
    assert worker.run_timers(quiet)
    assert len(provider.charges) == 3
    assert not worker.run_timers(quiet)
    assert sorted(charge.order_id for charge in provider.charges) == sorted(ids)


def test_the_answers_of_one_transaction_are_limited(quiet: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.payment_worker.attempts.ANSWERS_MAX", 3)
    ids, worker = [payment_in_state(quiet, "PENDING") for _ in range(7)], payment_worker(ScriptedProvider(Authorized()))
    worker.attempts.begin(quiet)
    wait_until(lambda: len(worker.calls.ended(100)) == len(ids), 20, "all calls have ended")
    recorded = []
    for _ in range(3):
        more = worker.attempts.record(quiet)
        recorded.append((more, len(outbox_of(quiet))))
    assert recorded == [(True, 3), (True, 6), (False, 7)]


def test_an_attempt_under_way_is_not_repeated_by_a_second_worker(quiet: Connection) -> None:
    order_id, gate = payment_in_state(quiet, "PENDING"), threading.Event()
    provider, idle = ScriptedProvider(Authorized()), ScriptedProvider(Authorized())
    provider.meanwhile = lambda: _passed(gate)
    worker = payment_worker(provider)
    try:
        worker.attempts.begin(quiet)
        wait_until(lambda: provider.charges, 10, "the attempt is under way")
        payment_worker(idle).run_timers(quiet)
    finally:
        gate.set()
    worker.run_timers(quiet)
    assert idle.charges == []
    assert payment_of(quiet, order_id)[0] == "AUTHORIZED"


def _sleep_seconds(worker: Payments) -> float:
    """Return the time for which the timer of the attempts may sleep."""
    return worker.attempts.due.at - time.monotonic()


def test_the_timer_sleeps_until_the_next_attempt_that_the_worker_has_recorded(quiet: Connection) -> None:
    worker = payment_worker(ScriptedProvider(Authorized()))
    decide(worker, quiet, created(place(quiet)))
    assert _sleep_seconds(worker) == math.inf, "a payment that is decided at once needs no attempt"
    unanswered = payment_worker(ScriptedProvider())
    decide(unanswered, quiet, created(place(quiet)))
    assert unanswered.wake.is_set()
    assert _sleep_seconds(unanswered) <= 0.2
    make_due(quiet)
    unanswered.attempts.begin(quiet)
    assert _sleep_seconds(unanswered) == math.inf
    wait_until(unanswered.attempts.has_answers, 20, "the second attempt has ended")
    unanswered.attempts.record(quiet)
    assert _sleep_seconds(unanswered) <= 0.4, "the third attempt is due after the doubled wait"


@pytest.mark.parametrize("state", ["AUTHORIZED", "PENDING"])
def test_the_timer_wakes_up_for_a_void_that_the_worker_has_begun(quiet: Connection, state: PaymentState) -> None:
    order_id = payment_in_state(quiet, state)
    worker = payment_worker(ScriptedProvider())
    decide(worker, quiet, aborted(order_id))
    assert payment_of(quiet, order_id)[0] == "VOIDING"
    assert worker.wake.is_set()
    assert _sleep_seconds(worker) <= 0


def test_attempts_without_room_are_looked_for_again_soon(quiet: Connection) -> None:
    gate, provider = threading.Event(), ScriptedProvider(Authorized())
    provider.meanwhile = lambda: _passed(gate)
    worker = payment_worker(provider, concurrency=20)
    for _ in range(worker.calls.room("retry") + 1):
        payment_in_state(quiet, "PENDING")
    try:
        worker.attempts.begin(quiet)
        assert _sleep_seconds(worker) <= NO_ROOM_SECONDS, "more may be due than the claimed ones"
        worker.attempts.begin(quiet)
        assert _sleep_seconds(worker) <= NO_ROOM_SECONDS, "there is no room"
    finally:
        gate.set()
