"""Each timer of the workers has its effect in the running loop, on real servers (P5, P8)."""

import pytest
import redis

from orderstream.cache import key
from orderstream.domain.payment import PaymentState
from orderstream.order_service.consumed import READERS
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from orderstream.telemetry import metrics
from tests.integration.decisions.orders import AMOUNT, place, record, result, row
from tests.integration.worker.running import running
from tests.support.topics import begin_here, publish_events
from tests.support.waiting import wait_until
from tests.support.wiring import wired_handler

ENTRY = b'{"orderId":"an order as it was"}'


def _queued(connection: Connection, order_id: str) -> list[str]:
    rows = connection.execute("SELECT topic FROM outbox WHERE order_id = %s ORDER BY id", (order_id,)).fetchall()
    return [name for (name,) in rows]


def _wait_queued(connection: Connection, order_id: str, *topics: str) -> None:
    wait_until(lambda: _queued(connection, order_id) == list(topics), 20, f"{', '.join(topics)} in the outbox")


def test_the_timers_of_the_order_service_nudge_fail_and_repeat_orders(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, overdue, aborted = (place(connection) for _ in range(3))
    connection.execute("UPDATE orders SET next_check_at = now() WHERE id = ANY(%s)", ([stalled, overdue],))
    connection.execute("UPDATE orders SET nudges = 3, created_at = now() - interval '16 min' WHERE id = %s", (overdue,))
    connection.execute(
        "UPDATE orders SET status = 'CANCELLED', aborted_at = now() - interval '1 h', next_check_at = now()"
        " WHERE id = %s",
        (aborted,),
    )
    metrics.UNCOMPENSATED_OLDEST_SECONDS.set(0)
    for group in READERS:
        begin_here(settings.kafka_brokers, group)
    with running(wired_handler(monkeypatch, "order-service", settings), settings, ready=False):
        _wait_queued(connection, stalled, "order.created.v1")
        _wait_queued(connection, overdue, "order.updated.v1", "order.aborted.v1")
        _wait_queued(connection, aborted, "order.aborted.v1")
        wait_until(
            lambda: metrics.UNCOMPENSATED_OLDEST_SECONDS._value.get() > 3_500, 20, "the metric has the oldest abort"
        )


def test_the_order_service_deletes_cache_keys_later_if_redis_refused_the_deletion(
    settings: Settings, connection: Connection, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = place(connection)
    connection.execute("UPDATE orders SET status = 'CANCELLED', aborted_at = now() WHERE id = %s", (order_id,))
    voided = result("payment.voided", order_id)
    begin_here(settings.kafka_brokers, "order-service")
    handler = wired_handler(monkeypatch, "order-service", settings)
    with redis.Redis.from_url(redis_url) as client, running(handler, settings):
        client.set(key(order_id), ENTRY)
        client.config_set("min-replicas-to-write", 1)
        try:
            record(connection, voided)
            publish_events(settings.kafka_brokers, [voided])
            wait_until(
                lambda: row(connection, "SELECT payment FROM orders") == ("voided",), 20, "the order has changed"
            )
            assert client.get(key(order_id)) == ENTRY
        finally:
            client.config_set("min-replicas-to-write", 0)
        wait_until(lambda: client.get(key(order_id)) is None, 20, "the entry is deleted")


def _payment(connection: Connection, state: PaymentState, due: str) -> str:
    order_id = place(connection)
    connection.execute(
        "INSERT INTO payments (order_id, state, amount, attempts, next_attempt_at, decided_at)"
        " VALUES (%s, %s, %s, 1, now() + %s::interval, now() - interval '1 h')",
        (order_id, state, AMOUNT, due),
    )
    return order_id


def test_the_timers_of_the_payment_worker_repeat_attempts_and_measure_the_oldest_void(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"payment_success_rate": 1.0})
    pending = _payment(connection, "PENDING", "0 s")
    _payment(connection, "VOIDING", "1 h")
    metrics.VOIDING_OLDEST_SECONDS.set(0)
    begin_here(settings.kafka_brokers, "payment-worker")
    with running(wired_handler(monkeypatch, "payment-worker", settings), settings, ready=False):
        _wait_queued(connection, pending, "payment.authorized.v1")
        wait_until(lambda: metrics.VOIDING_OLDEST_SECONDS._value.get() > 3_500, 20, "the metric has the oldest void")
