"""How order-service merges results, on PostgreSQL: the status table, settled orders, emitted events (P4 to P8)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from random import Random
from typing import get_args

import pytest

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import Event, OrderAborted, OrderUpdated, Payload
from orderstream.domain.order import FailureReason, PaymentFact, Status, StockFact, derive
from orderstream.order_service.handler import OrderHandler
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from orderstream.worker.handler import BatchResult
from tests.integration.decisions import orders
from tests.integration.decisions.orders import emitted, place, received, record, rejections, result, row, types
from tests.support.samples import AT
from tests.support.scenarios import ORDER_ID, SCENARIOS, Scenario, Step, cuts, orderings


class Cache(CacheInvalidator):
    """Records its calls, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def bar(self, order_ids: Sequence[str]) -> bool:
        self.calls.append(("bar", sorted(order_ids)))
        return True

    def delete(self, order_ids: Sequence[str]) -> bool:
        self.calls.append(("delete", sorted(order_ids)))
        return True


def decide(handler: OrderHandler, connection: Connection, *events: Event[Payload]) -> BatchResult:
    """Record the payments and reservations of events, then decide the batch with the handler."""
    record(connection, *events)
    return orders.decide(handler, connection, *events)


@pytest.fixture
def cache() -> Cache:
    """A cache that records its calls."""
    return Cache()


@pytest.fixture
def handler(cache: Cache) -> OrderHandler:
    """The handler of order-service."""
    return OrderHandler(cache, ())


EVENT_OF: dict[str, dict[str, str | None]] = {
    "payment": {fact: f"payment.{fact}" for fact in get_args(PaymentFact)} | {"none": None},
    "stock": {fact: f"inventory.{fact}" for fact in get_args(StockFact)} | {"none": None},
}


def _order(connection: Connection, order_id: str) -> tuple[Status, PaymentFact, StockFact, FailureReason | None, int]:
    status, payment, stock, reason, version = row(
        connection, "SELECT status, payment, stock, failure_reason, version FROM orders WHERE id = %s", order_id
    )
    return status, payment, stock, reason, version


def _updated(batch_result: BatchResult) -> OrderUpdated:
    (payload,) = [event.payload for event in emitted(batch_result) if event.type == "order.updated"]
    assert isinstance(payload, OrderUpdated)
    return payload


PAIRS = [pair for pair in product(get_args(PaymentFact), get_args(StockFact)) if pair != ("none", "none")]


@pytest.mark.parametrize(("payment", "stock"), PAIRS)
def test_every_pair_of_facts_gives_its_status(
    handler: OrderHandler, connection: Connection, payment: PaymentFact, stock: StockFact
) -> None:
    payment_event, stock_event = EVENT_OF["payment"][payment], EVENT_OF["stock"][stock]
    emitted_types = [event for event in (payment_event, stock_event) if event]
    ways = (
        [emitted_types],
        [emitted_types[::-1]],
        [[event] for event in emitted_types],
        [[event] for event in emitted_types[::-1]],
    )
    for batches in ways:
        order_id = place(connection)
        for batch in batches:
            decide(handler, connection, *(result(event, order_id) for event in batch))
        status, *facts, _, _ = _order(connection, order_id)
        assert facts == [payment, stock]
        assert status == derive(payment, stock)


@pytest.mark.parametrize("first", ["payment.authorized", "inventory.reserved"])
def test_either_result_confirms_the_order_once_both_decisions_are_recorded(
    handler: OrderHandler, connection: Connection, first: str
) -> None:
    order_id = place(connection)
    events = {event: result(event, order_id) for event in ("payment.authorized", "inventory.reserved")}
    record(connection, *events.values())
    orders.decide(handler, connection, events.pop(first))
    assert _order(connection, order_id) == ("CONFIRMED", "authorized", "reserved", None, 2)
    (second,) = events.values()
    batch_result = orders.decide(handler, connection, second)
    assert _order(connection, order_id) == ("CONFIRMED", "authorized", "reserved", None, 2)
    assert _updated(batch_result).version == 2


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_has_the_same_end_in_any_order(
    handler: OrderHandler, connection: Connection, scenario: Scenario
) -> None:
    order_id = place(connection, order_id=ORDER_ID)
    random = Random(1)
    sequences = [sequence for sequence in orderings(scenario.steps) if scenario.possible(sequence)]
    for sequence in random.sample(sequences, min(8, len(sequences))):
        connection.execute("DELETE FROM payments")
        connection.execute("DELETE FROM reservations")
        connection.execute(
            "UPDATE orders SET status = 'PROCESSING', payment = 'none', stock = 'none', payment_at = NULL,"
            " stock_at = NULL, failure_reason = NULL, version = 1, aborted_at = NULL"
        )
        for batch in cuts([*sequence, *random.sample(sequence, len(sequence))], random.randrange(2**20)):
            _play(handler, connection, batch)
        assert _order(connection, order_id)[:4] == (scenario.status, scenario.payment, scenario.stock, scenario.reason)


CLOSE = {
    "cancel": "UPDATE orders SET status = 'CANCELLED' WHERE status <> 'FAILED'",
    "deadline": "UPDATE orders SET status = 'FAILED', failure_reason = 'TIMED_OUT'"
    " WHERE status IN ('PROCESSING', 'PAID')",
}


def _play(handler: OrderHandler, connection: Connection, batch: Sequence[Step]) -> None:
    """Cancel the order or time it out if the batch has that step, then decide the events."""
    for step in batch:
        if isinstance(step, str):
            connection.execute(CLOSE[step].encode())
    if events := [step for step in batch if not isinstance(step, str)]:
        decide(handler, connection, *events)


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
@pytest.mark.parametrize("late", ["payment.voided", "inventory.released", "inventory.failed", "payment.failed"])
def test_a_settled_status_stays_while_facts_still_change(
    handler: OrderHandler, connection: Connection, status: Status, late: str
) -> None:
    order_id = place(connection)
    connection.execute(
        "UPDATE orders SET status = %s, payment = 'authorized', stock = 'reserved', version = 3", (status,)
    )
    updated = _updated(decide(handler, connection, result(late, order_id)))
    assert _order(connection, order_id)[0] == status
    assert (updated.status, updated.version) == (status, 4)
    assert late.rpartition(".")[2] in (updated.payment.state, updated.stock.state)


# order.updated


def test_a_batch_emits_one_order_updated_for_each_order(handler: OrderHandler, connection: Connection) -> None:
    one, two = place(connection), place(connection)
    batch_result = decide(
        handler,
        connection,
        result("payment.authorized", one),
        result("payment.authorized", two),
        result("inventory.reserved", one),
        result("payment.authorized", one),
    )
    payloads = {event.correlation_id: event.payload for event in emitted(batch_result)}
    assert len(emitted(batch_result)) == len(payloads) == 2
    assert {
        order_id: payload.status for order_id, payload in payloads.items() if isinstance(payload, OrderUpdated)
    } == {
        one: "CONFIRMED",
        two: "PAID",
    }


def test_order_updated_has_the_values_of_the_row_in_orders(handler: OrderHandler, connection: Connection) -> None:
    order_id = place(connection)
    paid_at, held_at = AT + timedelta(seconds=1), AT + timedelta(seconds=2)
    batch_result = decide(
        handler,
        connection,
        result("payment.authorized", order_id, paid_at),
        result("inventory.reserved", order_id, held_at),
    )
    updated = _updated(batch_result)
    found = row(
        connection,
        "SELECT user_id, amount, currency, status, failure_reason, payment, payment_at, stock, stock_at, version,"
        " created_at, updated_at FROM orders",
    )
    assert found == (
        updated.user_id,
        updated.amount,
        updated.currency,
        updated.status,
        updated.failure_reason,
        updated.payment.state,
        updated.payment.decided_at,
        updated.stock.state,
        updated.stock.decided_at,
        updated.version,
        updated.created_at,
        updated.updated_at,
    )
    assert (updated.payment.decided_at, updated.stock.decided_at) == (paid_at, held_at)
    assert emitted(batch_result)[0].occurred_at == updated.updated_at


def test_a_duplicate_changes_nothing_and_gets_the_same_event(handler: OrderHandler, connection: Connection) -> None:
    order_id = place(connection)
    events = [result("payment.authorized", order_id), result("inventory.reserved", order_id)]
    first = decide(handler, connection, *events)
    before = row(connection, "SELECT * FROM orders")
    for event in events:
        assert emitted(decide(handler, connection, event)) == emitted(first)
    assert row(connection, "SELECT * FROM orders") == before


def test_an_unknown_order_is_rejected_and_the_other_records_are_decided(
    handler: OrderHandler, connection: Connection
) -> None:
    order_id = place(connection)
    batch_result = decide(
        handler, connection, result("payment.authorized", "unknown-order"), result("payment.authorized", order_id)
    )
    assert rejections(batch_result) == [("unknown-order", "UNKNOWN_ORDER")]
    assert types(batch_result) == ["order.updated"]
    assert _order(connection, order_id)[0] == "PAID"


# order.aborted


def _abort(batch_result: BatchResult) -> OrderAborted | None:
    found = [event.payload for event in emitted(batch_result) if isinstance(event.payload, OrderAborted)]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_declined_payment_without_reserved_stock_emits_no_abort(
    handler: OrderHandler, connection: Connection
) -> None:
    order_id = place(connection)
    batch_result = decide(handler, connection, result("payment.failed", order_id))
    assert (_order(connection, order_id)[:4], _abort(batch_result)) == (
        ("FAILED", "failed", "none", "PAYMENT_DECLINED"),
        None,
    )
    assert row(connection, "SELECT aborted_at FROM orders") == (None,)


def test_missing_stock_aborts_the_order_with_its_reason_and_time(handler: OrderHandler, connection: Connection) -> None:
    order_id = place(connection)
    decide(handler, connection, result("payment.authorized", order_id))
    batch_result = decide(handler, connection, result("inventory.failed", order_id, reason="UNKNOWN_SKU"))
    assert _abort(batch_result) == OrderAborted(order_id=order_id, status="FAILED", reason="UNKNOWN_SKU")
    (aborted,) = [event for event in emitted(batch_result) if event.type == "order.aborted"]
    assert row(connection, "SELECT aborted_at FROM orders") == (aborted.occurred_at,)


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
@pytest.mark.parametrize("step", ["payment.authorized", "inventory.reserved", "inventory.failed"])
def test_a_late_result_of_an_aborted_order_repeats_the_same_abort(
    handler: OrderHandler, connection: Connection, status: Status, step: str
) -> None:
    order_id = place(connection)
    connection.execute(
        "UPDATE orders SET status = %s, failure_reason = CASE WHEN %s = 'FAILED' THEN 'TIMED_OUT' END, aborted_at = %s",
        (status, status, AT),
    )
    first = decide(handler, connection, result(step, order_id))
    second = decide(handler, connection, result(step, order_id))
    for batch_result in (first, second):
        (event,) = [event for event in emitted(batch_result) if event.type == "order.aborted"]
        assert event.occurred_at == AT
        assert event.payload == OrderAborted(
            order_id=order_id, status=status, reason="TIMED_OUT" if status == "FAILED" else None
        )
    assert row(connection, "SELECT aborted_at FROM orders") == (AT,)


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
@pytest.mark.parametrize("answer", ["payment.voided", "payment.failed", "inventory.released"])
def test_an_answer_to_the_abort_does_not_repeat_the_abort(
    handler: OrderHandler, connection: Connection, status: Status, answer: str
) -> None:
    for known in ("none", "reserved"):
        order_id = place(connection)
        connection.execute(
            "UPDATE orders SET status = %s, stock = %s, aborted_at = now() WHERE id = %s", (status, known, order_id)
        )
        assert types(decide(handler, connection, result(answer, order_id))) == ["order.updated"]


@pytest.mark.parametrize("step", ["payment.authorized", "inventory.reserved", "inventory.failed"])
def test_a_late_result_of_a_compensated_order_does_not_repeat_the_abort(
    handler: OrderHandler, connection: Connection, step: str
) -> None:
    order_id = place(connection)
    connection.execute(
        "UPDATE orders SET status = 'FAILED', payment = 'voided', stock = 'released', aborted_at = now()"
    )
    assert types(decide(handler, connection, result(step, order_id))) == ["order.updated"]
    assert _order(connection, order_id)[1:3] == ("voided", "released")


# The cache


def test_the_cache_key_of_an_open_order_is_deleted_after_the_commit(
    handler: OrderHandler, connection: Connection, cache: Cache
) -> None:
    order_id = place(connection)
    event = result("payment.authorized", order_id)
    record(connection, event)
    batch = received([event])
    with connection.transaction():
        batch_result = handler.decide(connection, batch, None)
        assert cache.calls == []
    batch_result.after_commit()
    assert cache.calls == [("delete", [order_id])]


def test_the_cache_key_of_a_settled_order_is_barred_before_the_commit_and_deleted_after_it(
    handler: OrderHandler, connection: Connection, cache: Cache
) -> None:
    settled, open_one = place(connection), place(connection)
    connection.execute("UPDATE orders SET status = 'FAILED', aborted_at = now() WHERE id = %s", (settled,))
    events = [result("payment.voided", settled), result("payment.authorized", open_one)]
    record(connection, *events)
    batch = received(events)
    with connection.transaction():
        batch_result = handler.decide(connection, batch, None)
        assert cache.calls == [("bar", [settled])]
    batch_result.after_commit()
    assert cache.calls == [("bar", [settled]), ("delete", sorted([settled, open_one]))]


def test_order_service_decides_orders_while_redis_is_down(connection: Connection, settings: Settings) -> None:
    order_id = place(connection)
    handler = OrderHandler(CacheInvalidator("redis://127.0.0.1:1/0", settings.cache_budget_seconds), ())
    connection.execute("UPDATE orders SET status = 'FAILED', aborted_at = now()")
    decide(handler, connection, result("payment.voided", order_id))
    assert _order(connection, order_id)[1] == "voided"


# Concurrent replicas


def test_concurrent_replicas_of_order_service_lose_no_fact(connection: Connection, postgres_url: str) -> None:
    order_ids = [place(connection) for _ in range(40)]
    kinds = ["payment.authorized", "inventory.reserved"]

    def work(seed: int) -> None:
        random = Random(seed)
        handler = OrderHandler(Cache(), ())
        events = [result(kind, order_id) for kind in kinds for order_id in order_ids]
        random.shuffle(events)
        with connect(postgres_url, "replica") as replica:
            for start in range(0, len(events), 16):
                decide(handler, replica, *events[start : start + 16])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert row(connection, "SELECT count(*) FROM orders WHERE status = 'CONFIRMED'") == (40,)
    assert row(connection, "SELECT max(version) <= 3 FROM orders") == (True,)
