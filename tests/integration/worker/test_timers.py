"""Each timer of the workers has its effect in the running loop, on real servers (P5, P8).

Timers run in a thread of their own: a slow timer delays no batch, and a slow batch delays no timer.
"""

import threading
from collections.abc import Sequence

import psycopg
import pytest
import redis

from orderstream.cache import key
from orderstream.domain.payment import PaymentState
from orderstream.kafka.envelope import Received
from orderstream.order_service.consumed import READERS
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from orderstream.telemetry import metrics
from orderstream.worker import runner, timers
from orderstream.worker.handler import Timer
from tests.integration.decisions.orders import AMOUNT, place, record, result, row
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import OUT, Recorder
from tests.integration.worker.running import Running, running
from tests.support.topics import Tap, begin_here, publish_events
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


class Gate:
    """Holds a timer or a batch until the test opens it. Counts the calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = threading.Event()

    def hold(self) -> None:
        """Count the call and wait until the gate is open."""
        self.calls += 1
        assert self.open.wait(20)

    def timer(self, _connection: Connection) -> bool:
        """Run as a timer that has no more work."""
        self.hold()
        return False

    def fault(self, _tx: Connection, _batch: Sequence[Received]) -> None:
        """Run in a decision."""
        self.hold()


class Counter:
    """A timer that counts its runs. `work` says whether it has work before its interval has passed."""

    def __init__(self) -> None:
        self.runs = 0
        self.work = False
        self.error: Exception | None = None

    def run(self, _connection: Connection) -> bool:
        """Count the run. Raise the error, if there is one."""
        self.runs += 1
        if self.error:
            raise self.error
        return False

    def timer(self, name: str, every_seconds: float) -> Timer:
        """Return the timer."""
        return Timer(name, every_seconds, self.run, lambda: self.work)


def _wait_runs(counter: Counter, runs: int) -> None:
    wait_until(lambda: counter.runs >= runs, 20, f"the timer has run {runs} times")


def test_a_slow_timer_delays_no_batch_and_a_hanging_timer_is_noticed(settings: Settings, group: str) -> None:
    gate = Gate()
    handler = Recorder(group, timers=[Timer("slow", 0.1, gate.timer)])
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(handler, settings) as loop:
        wait_until(lambda: gate.calls, 20, "the timer runs")
        began = loop.runner._timers.beat
        publish_events(settings.kafka_brokers, authorized(3))
        tap.count(3)
        wait_until(lambda: loop.runner._beat > began + 0.2, 20, "the loop of the batches goes on")
        assert (gate.calls, loop.runner.beat) == (1, began)
        gate.open.set()
        wait_until(lambda: loop.runner.beat > began, 20, "the timer has ended")


def test_a_slow_batch_delays_no_timer(settings: Settings, group: str) -> None:
    gate, counter = Gate(), Counter()
    handler = Recorder(group, gate.fault, timers=[counter.timer("often", 0.01)])
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(handler, settings):
        publish_events(settings.kafka_brokers, authorized(1))
        wait_until(lambda: gate.calls, 20, "the batch is decided")
        _wait_runs(counter, counter.runs + 3)
        gate.open.set()
        tap.count(1)


def test_a_wake_up_runs_only_the_timers_that_have_work(settings: Settings, group: str) -> None:
    busy, idle = Counter(), Counter()
    handler = Recorder(group, timers=[idle.timer("idle", 3_600), busy.timer("busy", 3_600)])
    handler.wake.set()
    with running(handler, settings):
        _wait_runs(busy, 1)
        busy.work = True
        for runs in range(2, 6):
            handler.wake.set()
            _wait_runs(busy, runs)
    assert idle.runs == 1


def test_a_wake_up_during_a_run_is_not_lost(settings: Settings, group: str) -> None:
    gate, last = Gate(), Counter()
    last.work = True
    handler = Recorder(group, timers=[last.timer("last", 3_600), Timer("slow", 3_600, gate.timer)])
    with running(handler, settings):
        wait_until(lambda: gate.calls, 20, "the second timer runs")
        runs = last.runs
        handler.wake.set()
        gate.open.set()
        _wait_runs(last, runs + 1)


def test_a_timer_that_failed_waits_for_its_interval(settings: Settings, group: str) -> None:
    failing, other = Counter(), Counter()
    failing.error, failing.work, other.work = psycopg.OperationalError("Postgres is gone"), True, True
    handler = Recorder(group, timers=[failing.timer("failing", 3_600), other.timer("other", 3_600)])
    with running(handler, settings):
        for runs in range(1, 5):
            _wait_runs(other, runs)
            handler.wake.set()
    assert failing.runs == 1


def test_a_timer_with_endless_work_delays_no_other_timer_and_no_batch(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "TIMER_SECONDS", 0.02)
    rounds: list[int] = []

    def endless(_connection: Connection) -> bool:
        rounds.append(1)
        return True

    other = Counter()
    handler = Recorder(group, timers=[Timer("endless", 3_600, endless), other.timer("other", 0.01)])
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(handler, settings):
        _wait_runs(other, 4)
        publish_events(settings.kafka_brokers, authorized(1))
        tap.count(1)
    assert len(rounds) > other.runs


def test_a_thread_that_waits_for_its_timers_is_not_stuck(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "WAIT_SECONDS", 0.05)
    counter = Counter()
    with running(Recorder(group, timers=[counter.timer("rare", 3_600)]), settings) as loop:
        _wait_runs(counter, 1)
        began = loop.runner._timers.beat
        wait_until(lambda: loop.runner._timers.beat > began, 20, "a new turn begins")
    assert counter.runs == 1


def test_a_permanent_error_of_a_timer_also_ends_the_retries_of_a_batch(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BACKOFF_FIRST_SECONDS", 600.0)

    def fail(_tx: Connection, _batch: Sequence[Received]) -> None:
        raise psycopg.OperationalError("Postgres is gone")

    counter = Counter()
    publish_events(settings.kafka_brokers, authorized(1))
    handler = Recorder(group, fail, timers=[counter.timer("broken", 0.05)])
    loop = Running(handler, settings)
    wait_until(lambda: handler.batches, 20, "the batch is attempted")
    counter.error = psycopg.errors.UndefinedTable("42P01")
    assert loop.wait_end() is counter.error


def test_a_permanent_error_of_a_batch_also_ends_the_timers(settings: Settings, group: str) -> None:
    error = psycopg.errors.UndefinedTable("42P01")
    counter = Counter()

    def fail(_tx: Connection, _batch: Sequence[Received]) -> None:
        _wait_runs(counter, 1)
        raise error

    publish_events(settings.kafka_brokers, authorized(1))
    loop = Running(Recorder(group, fail, timers=[counter.timer("rare", 3_600)]), settings)
    assert loop.wait_end() is error
    assert counter.runs == 1
    thread = loop.runner._timers._thread
    assert thread is not None
    assert not thread.is_alive()
