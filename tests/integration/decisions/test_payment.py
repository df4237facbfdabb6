"""Every cell of the table of payment-worker, on PostgreSQL (P2, P5, P7)."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from orderstream.domain.events import Event, Payload, PaymentAuthorized, PaymentFailed, PaymentVoided
from orderstream.domain.order import FailureReason
from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, PaymentState, Pending, Voided
from orderstream.payment_worker.attempts import Attempts, Backoff
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.payment_worker.provider import PaymentProvider, ProviderUnavailableError, SimulatedProvider
from orderstream.payment_worker.provider_calls import ProviderCalls
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
from tests.support.samples import AT

MAX_ATTEMPTS = 3


def decide(handler: PaymentHandler, connection: Connection, *events: Event[Payload]) -> BatchResult:
    """Record the aborts of events, then decide the batch with the handler."""
    record(connection, *events)
    return orders.decide(handler, connection, *events)


KEY_LIFETIME_SECONDS = 3_600.0
Answer = Authorized | Declined | Pending | None


class Provider:
    """Answers as the test says. None is no answer. `asked` and `voided` record the calls."""

    def __init__(self, answer: Answer = None, void_answer: Voided | NothingToVoid | None = None) -> None:
        self.answer: Answer = answer
        self.void_answer: Voided | NothingToVoid | None = void_answer
        self.asked: list[Charge] = []
        self.voided: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def charges_asked(self) -> list[tuple[str, Decimal, str]]:
        """Return the order id, the amount and the currency of each charge, in the order of the calls."""
        return [(charge.order_id, charge.amount, charge.currency) for charge in self.asked]

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined | Pending:
        assert 0 < timeout_seconds <= 2
        self.asked.append(charge)
        self.meanwhile()
        if self.answer is None:
            raise ProviderUnavailableError("no answer")
        return self.answer

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        assert 0 < timeout_seconds <= 2
        self.voided.append(order_id)
        self.meanwhile()
        if self.void_answer is None:
            raise ProviderUnavailableError("no answer")
        return self.void_answer


def _handler(provider: PaymentProvider, budget_seconds: float = 2) -> PaymentHandler:
    provider_calls = ProviderCalls(4, budget_seconds)
    return PaymentHandler(
        provider,
        provider_calls,
        Attempts(provider, provider_calls, Backoff(MAX_ATTEMPTS, 0.2, 30), KEY_LIFETIME_SECONDS),
    )


def _run_timer(handler: PaymentHandler, connection: Connection) -> bool:
    return handler.timers[0].run(connection)


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
    order_id, provider = place(connection), Provider(Authorized())
    (event,) = emitted(decide(_handler(provider), connection, created(order_id)))
    assert event.payload == PaymentAuthorized(
        order_id=order_id, items=items_of({"SKU-1": 1}), amount=AMOUNT, currency="USD"
    )
    assert provider.charges_asked() == [(order_id, AMOUNT, "USD")]
    assert _payment(connection, order_id) == ("AUTHORIZED", None, 1)
    assert row(connection, "SELECT decided_at, amount FROM payments") == (event.occurred_at, AMOUNT)


def test_an_unknown_order_is_rejected_and_never_charged(connection: Connection) -> None:
    known, unknown, provider = place(connection), str(uuid4()), Provider(Authorized())
    batch_result = decide(_handler(provider), connection, created(unknown), created(known))
    assert rejections(batch_result) == [(unknown, "UNKNOWN_ORDER")]
    assert types(batch_result) == ["payment.authorized"]
    assert [charge.order_id for charge in provider.asked] == [known]


def test_the_charge_is_the_accepted_amount(connection: Connection) -> None:
    order_id, provider = place(connection), Provider(Authorized())
    connection.execute("UPDATE orders SET amount = 7.00, currency = 'EUR' WHERE id = %s", (order_id,))
    decide(_handler(provider), connection, created(order_id))
    assert [(charge.amount, charge.currency) for charge in provider.asked] == [(Decimal("7.00"), "EUR")]


def test_an_order_older_than_half_the_key_lifetime_is_voided_and_not_authorized(quiet: Connection) -> None:
    new, pending, provider = place(quiet), _in_state(quiet, "PENDING"), Provider(Authorized(), NothingToVoid())
    quiet.execute("UPDATE orders SET created_at = now() - %s * interval '1 s'", (KEY_LIFETIME_SECONDS / 2 + 60,))
    handler = _handler(provider)
    assert types(decide(handler, quiet, created(new))) == []
    _run_timer(handler, quiet)
    _make_due(quiet)
    _run_timer(handler, quiet)
    assert provider.asked == []
    for order_id in (new, pending):
        assert _payment(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")
    assert {body["type"] for body in _outbox(quiet)} == {"payment.failed"}


def test_order_created_without_a_payment_records_a_decline_of_the_provider(connection: Connection) -> None:
    order_id = place(connection)
    (event,) = emitted(decide(_handler(Provider(Declined())), connection, created(order_id)))
    assert event.payload == PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED")
    assert _payment(connection, order_id) == ("FAILED", "PAYMENT_DECLINED", 1)


@pytest.mark.parametrize("answer", [None, Pending()])
def test_order_created_without_an_answer_of_the_provider_leaves_the_payment_pending(
    connection: Connection, answer: Answer
) -> None:
    order_id = place(connection)
    assert types(decide(_handler(Provider(answer)), connection, created(order_id))) == []
    assert _payment(connection, order_id) == ("PENDING", None, 1)
    assert row(connection, "SELECT next_attempt_at > now() FROM payments") == (True,)


def test_a_call_slower_than_the_budget_is_retried_later(connection: Connection) -> None:
    order_ids, gate = [place(connection) for _ in range(10)], threading.Event()
    provider = Provider(Authorized())
    provider.meanwhile = lambda: _wait(gate)
    try:
        batch_result = decide(_handler(provider, 0.2), connection, *map(created, order_ids))
    finally:
        gate.set()
    assert types(batch_result) == []
    assert {_payment(connection, order_id)[0] for order_id in order_ids} == {"PENDING"}


def _wait(gate: threading.Event) -> None:
    assert gate.wait(20)


def test_order_created_for_a_pending_payment_makes_no_call_and_emits_nothing(connection: Connection) -> None:
    order_id, provider = _in_state(connection, "PENDING"), Provider(Authorized())
    assert types(decide(_handler(provider), connection, created(order_id))) == []
    assert provider.asked == []
    assert _payment(connection, order_id) == ("PENDING", None, 1)


@pytest.mark.parametrize("answer", [Authorized(), Declined()])
def test_a_second_order_created_repeats_the_recorded_event(connection: Connection, answer: Answer) -> None:
    order_id, provider = place(connection), Provider(answer)
    first = decide(_handler(provider), connection, created(order_id))
    provider.answer = Declined() if answer == Authorized() else Authorized()
    again = decide(_handler(provider), connection, created(order_id), created(order_id))
    assert emitted(again) == emitted(first) * 2
    assert len(provider.asked) == 1


def test_order_created_for_a_payment_being_voided_emits_nothing(connection: Connection) -> None:
    order_id, provider = _in_state(connection, "VOIDING", "TIMED_OUT"), Provider(Authorized())
    assert types(decide(_handler(provider), connection, created(order_id))) == []
    assert (provider.asked, _payment(connection, order_id)[0]) == ([], "VOIDING")


def test_order_created_for_a_voided_payment_repeats_payment_voided(connection: Connection) -> None:
    order_id, provider = _in_state(connection, "VOIDED", "TIMED_OUT"), Provider(Authorized())
    (event,) = emitted(decide(_handler(provider), connection, created(order_id)))
    assert event.payload == PaymentVoided(order_id=order_id, reason="TIMED_OUT")
    assert row(connection, "SELECT decided_at FROM payments") == (event.occurred_at,)
    assert provider.asked == []


# order.aborted


def test_an_abort_without_a_payment_inserts_a_tombstone_that_is_voided_at_once(connection: Connection) -> None:
    order_id = place(connection)
    assert types(decide(_handler(Provider()), connection, aborted(order_id, "TIMED_OUT"))) == []
    assert _payment(connection, order_id) == ("VOIDING", "TIMED_OUT", 0)
    assert row(connection, "SELECT next_attempt_at <= now() FROM payments") == (True,)


@pytest.mark.parametrize("state", ["PENDING", "AUTHORIZED"])
@pytest.mark.parametrize("reason", ["OUT_OF_STOCK", None])
def test_an_abort_voids_an_open_payment_at_once(
    connection: Connection, state: PaymentState, reason: FailureReason | None
) -> None:
    order_id = _in_state(connection, state, attempts=2)
    assert types(decide(_handler(Provider()), connection, aborted(order_id, reason))) == []
    assert _payment(connection, order_id) == ("VOIDING", reason, 0)
    assert row(connection, "SELECT next_attempt_at <= now() FROM payments") == (True,)


def test_an_abort_of_a_declined_payment_repeats_payment_failed(connection: Connection) -> None:
    order_id = _in_state(connection, "FAILED", "PAYMENT_DECLINED")
    (event,) = emitted(decide(_handler(Provider()), connection, aborted(order_id)))
    assert event.payload == PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED")
    assert _payment(connection, order_id)[0] == "FAILED"


def test_a_second_abort_of_a_payment_being_voided_emits_nothing(connection: Connection) -> None:
    order_id = _in_state(connection, "VOIDING", "TIMED_OUT", attempts=4)
    assert types(decide(_handler(Provider()), connection, aborted(order_id))) == []
    assert _payment(connection, order_id) == ("VOIDING", "TIMED_OUT", 4)


def test_an_abort_of_a_voided_payment_repeats_payment_voided(connection: Connection) -> None:
    order_id = _in_state(connection, "VOIDED", "TIMED_OUT")
    first = decide(_handler(Provider()), connection, aborted(order_id))
    assert types(first) == ["payment.voided"]
    assert emitted(decide(_handler(Provider()), connection, aborted(order_id))) == emitted(first)


@pytest.mark.parametrize("abort_first", [True, False])
def test_order_created_with_an_abort_in_its_batch_makes_no_call_to_the_provider(
    connection: Connection, abort_first: bool
) -> None:
    order_id, provider = place(connection), Provider(Authorized())
    events = [created(order_id), aborted(order_id)]
    assert types(decide(_handler(provider), connection, *(reversed(events) if abort_first else events))) == []
    assert (provider.asked, _payment(connection, order_id)[0]) == ([], "VOIDING")


# Answers that arrive late


@pytest.mark.parametrize("state", ["VOIDED", "FAILED", "VOIDING"])
def test_an_authorization_that_arrives_after_its_payment_ended_is_voided(
    connection: Connection, state: PaymentState
) -> None:
    order_id, handler = place(connection), _handler(Provider(Authorized()))
    batch = received([created(order_id)])
    prepared = handler.prepare(connection, batch)
    connection.execute(
        "INSERT INTO payments (order_id, state, reason, next_attempt_at)"
        " VALUES (%s, %s, 'TIMED_OUT', CASE WHEN %s THEN now() END)",
        (order_id, state, state == "VOIDING"),
    )
    with connection.transaction():
        assert types(handler.decide(connection, batch, prepared)) == []
    assert _payment(connection, order_id)[:2] == ("VOIDING", "TIMED_OUT")


def test_an_authorization_that_another_process_has_recorded_is_repeated(connection: Connection) -> None:
    order_id, handler = place(connection), _handler(Provider(Authorized()))
    batch = received([created(order_id)])
    prepared = handler.prepare(connection, batch)
    first = decide(_handler(Provider(Authorized())), connection, created(order_id))
    with connection.transaction():
        assert emitted(handler.decide(connection, batch, prepared)) == emitted(first)
    assert _payment(connection, order_id)[0] == "AUTHORIZED"


def test_each_record_of_a_mixed_batch_gets_its_own_answer(connection: Connection) -> None:
    fresh, old = place(connection), _in_state(connection, "VOIDED", "TIMED_OUT")
    undone, gone = _in_state(connection, "AUTHORIZED"), place(connection)
    batch_result = decide(
        _handler(Provider(Authorized())), connection, created(fresh), created(old), aborted(undone), aborted(gone)
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
    order_id, provider = _in_state(quiet, "PENDING"), Provider(Authorized())
    quiet.execute("UPDATE payments SET next_attempt_at = now() + interval '1 hour'")
    assert not _run_timer(_handler(provider), quiet)
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
    order_id, provider = _in_state(quiet, "PENDING"), Provider(answer)
    _run_timer(_handler(provider), quiet)
    assert provider.charges_asked() == [(order_id, AMOUNT, "USD")]
    assert _payment(quiet, order_id) == (state, reason, 2)
    (body,) = _outbox(quiet)
    assert (body["type"], body["correlationId"]) == (event, order_id)


def test_the_event_of_the_timer_and_a_later_repeat_are_equal(quiet: Connection) -> None:
    order_id, handler = _in_state(quiet, "PENDING"), _handler(Provider(Authorized()))
    _run_timer(handler, quiet)
    (event,) = emitted(decide(handler, quiet, created(order_id)))
    (body,) = _outbox(quiet)
    assert body["id"] == str(event.id)
    assert body["occurredAt"] == event.occurred_at.isoformat().replace("+00:00", "Z")
    assert body["payload"]["items"] == [{"sku": "SKU-1", "qty": 1, "price": "129.00"}]


@pytest.mark.parametrize("answer", [None, Pending()])
def test_a_payment_that_stays_unanswered_is_retried_with_backoff_then_voided_and_failed(
    quiet: Connection, answer: Answer
) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), Provider(answer, NothingToVoid())
    handler = _handler(provider)
    for attempts in range(2, MAX_ATTEMPTS):
        _make_due(quiet)
        _run_timer(handler, quiet)
        assert _payment(quiet, order_id) == ("PENDING", None, attempts)
        assert row(quiet, "SELECT next_attempt_at BETWEEN now() AND now() + interval '30 s' FROM payments") == (True,)
    _make_due(quiet)
    _run_timer(handler, quiet)
    assert _payment(quiet, order_id) == ("VOIDING", "PROVIDER_UNAVAILABLE", 0)
    assert _outbox(quiet) == []
    _run_timer(handler, quiet)
    assert _payment(quiet, order_id)[:2] == ("FAILED", "PROVIDER_UNAVAILABLE")
    (body,) = _outbox(quiet)
    assert (body["type"], body["payload"]["reason"]) == ("payment.failed", "PROVIDER_UNAVAILABLE")
    assert provider.voided == [order_id]


@pytest.mark.parametrize("answer", [Voided(), NothingToVoid()])
@pytest.mark.parametrize("reason", ["OUT_OF_STOCK", None])
def test_the_timer_voids_a_payment_in_the_state_voiding(
    quiet: Connection, answer: Voided | NothingToVoid, reason: FailureReason | None
) -> None:
    order_id, provider = _in_state(quiet, "VOIDING", reason), Provider(void_answer=answer)
    _run_timer(_handler(provider), quiet)
    assert (provider.voided, provider.asked) == ([order_id], [])
    assert _payment(quiet, order_id)[:2] == ("VOIDED", reason)
    (body,) = _outbox(quiet)
    assert (body["type"], body["payload"]["reason"]) == ("payment.voided", reason)


def test_a_void_without_an_answer_is_retried_without_a_limit(quiet: Connection) -> None:
    order_id, provider = _in_state(quiet, "VOIDING", "TIMED_OUT", attempts=0), Provider()
    handler = _handler(provider)
    for attempts in range(1, 3 * MAX_ATTEMPTS):
        _make_due(quiet)
        _run_timer(handler, quiet)
        assert _payment(quiet, order_id) == ("VOIDING", "TIMED_OUT", attempts)
        assert row(quiet, "SELECT next_attempt_at BETWEEN now() AND now() + interval '30 s' FROM payments") == (True,)
    assert _outbox(quiet) == []


def _abort_elsewhere(postgres_url: str, order_id: str) -> None:
    with connect(postgres_url, "another") as another:
        decide(_handler(Provider()), another, aborted(order_id))


def test_an_abort_during_an_attempt_is_kept(quiet: Connection, postgres_url: str) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), Provider(Authorized(), Voided())
    handler = _handler(provider)
    provider.meanwhile = lambda: _abort_elsewhere(postgres_url, order_id)
    _run_timer(handler, quiet)
    assert _payment(quiet, order_id)[:2] == ("VOIDING", "OUT_OF_STOCK")
    assert _outbox(quiet) == []
    provider.meanwhile = lambda: None
    _run_timer(handler, quiet)
    assert [body["type"] for body in _outbox(quiet)] == ["payment.voided"]


def test_an_attempt_that_is_authorized_after_the_void_is_voided_again(quiet: Connection, postgres_url: str) -> None:
    order_id, provider = _in_state(quiet, "PENDING"), Provider(Authorized(), Voided())
    handler = _handler(provider)

    def void_elsewhere() -> None:
        _abort_elsewhere(postgres_url, order_id)
        with connect(postgres_url, "another") as another:
            _run_timer(_handler(Provider(void_answer=Voided())), another)

    provider.meanwhile = void_elsewhere
    _run_timer(handler, quiet)
    assert _payment(quiet, order_id)[:2] == ("VOIDING", "OUT_OF_STOCK")
    provider.meanwhile = lambda: None
    _run_timer(handler, quiet)
    assert _payment(quiet, order_id)[:2] == ("VOIDED", "OUT_OF_STOCK")
    first, second = _outbox(quiet)
    assert first["type"] == "payment.voided"
    assert first == second


def test_the_age_of_the_oldest_open_void_is_shown(quiet: Connection) -> None:
    _in_state(quiet, "VOIDED")
    measure = _handler(Provider()).timers[1].run
    assert measure(quiet) is False
    assert metrics.VOIDING_OLDEST_SECONDS._value.get() == 0
    _in_state(quiet, "VOIDING")
    quiet.execute("UPDATE payments SET decided_at = now() - interval '1 h' WHERE state = 'VOIDING'")
    _handler(Provider()).timers[1].run(quiet)
    assert 3_600 <= metrics.VOIDING_OLDEST_SECONDS._value.get() < 3_700


def test_a_call_that_does_not_begin_within_the_budget_is_no_attempt(quiet: Connection) -> None:
    ids = [_in_state(quiet, "PENDING", attempts=MAX_ATTEMPTS - 1) for _ in range(6)]
    provider = Provider(Authorized())
    never = threading.Event()

    def take_long() -> None:
        never.wait(0.3)

    provider.meanwhile = take_long
    handler = _handler(provider, budget_seconds=0.2)
    _run_timer(handler, quiet)
    asked = {charge.order_id for charge in provider.asked}
    assert 0 < len(asked) < len(ids)
    for order_id in set(ids) - asked:
        assert _payment(quiet, order_id) == ("PENDING", None, MAX_ATTEMPTS - 1)


def test_one_run_of_the_payment_timer_claims_at_most_the_limit(
    quiet: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.payment_worker.attempts.CLAIM_ROWS", 3)
    ids, provider = {_in_state(quiet, "PENDING") for _ in range(5)}, Provider(Authorized())
    handler = _handler(provider)
    assert _run_timer(handler, quiet)
    assert len(provider.asked) == 3
    assert not _run_timer(handler, quiet)
    assert sorted(charge.order_id for charge in provider.asked) == sorted(ids)


def test_an_attempt_under_way_is_not_repeated_by_a_second_worker(quiet: Connection, postgres_url: str) -> None:
    order_id, gate, reached = _in_state(quiet, "PENDING"), threading.Event(), threading.Event()
    provider, idle = Provider(Authorized()), Provider(Authorized())

    def hold() -> None:
        reached.set()
        _wait(gate)

    provider.meanwhile = hold
    with ThreadPoolExecutor(1) as pool:
        attempt = pool.submit(_run_timer, _handler(provider), quiet)
        try:
            assert reached.wait(10)
            with connect(postgres_url, "another") as another:
                assert not _run_timer(_handler(idle), another)
        finally:
            gate.set()
        attempt.result(10)
    assert idle.asked == []
    assert _payment(quiet, order_id)[0] == "AUTHORIZED"


# The simulated provider


def _charge(order_id: str) -> Charge:
    return Charge(order_id, AMOUNT, "USD", AT)


def test_the_simulated_provider_repeats_its_answer() -> None:
    provider = SimulatedProvider(0.5, 0)
    answers = [provider.authorize(_charge(str(number)), 1) for number in range(2_000)]
    assert answers == [provider.authorize(_charge(str(number)), 1) for number in range(2_000)]
    assert 900 < answers.count(Authorized()) < 1_100


@pytest.mark.parametrize(("rate", "answer"), [(0.0, Declined()), (1.0, Authorized())])
def test_the_rates_0_and_1_of_the_simulated_provider_are_exact(rate: float, answer: Answer) -> None:
    provider = SimulatedProvider(rate, 0)
    assert {type(provider.authorize(_charge(str(number)), 1)) for number in range(500)} == {type(answer)}


def test_the_throw_rate_leaves_authorizations_unanswered_but_no_voids() -> None:
    provider = SimulatedProvider(1, 1)
    with pytest.raises(ProviderUnavailableError):
        provider.authorize(_charge("1"), 1)
    assert provider.void("1", 1) == Voided()


def test_an_error_of_an_adapter_counts_as_no_answer(connection: Connection) -> None:
    order_id, provider = place(connection), Provider(Authorized())

    def defect() -> None:
        raise ZeroDivisionError

    provider.meanwhile = defect
    assert types(decide(_handler(provider), connection, created(order_id))) == []
    assert _payment(connection, order_id)[0] == "PENDING"
