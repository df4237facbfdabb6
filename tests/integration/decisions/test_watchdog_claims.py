"""The conditions, locks and limits of the watchdog's claims, with one test for each (P5, P6)."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from orderstream.domain.order import PaymentFact, Status, StockFact
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.postgres.connect import Connection, connect
from orderstream.telemetry import metrics
from tests.integration.decisions.orders import place, row

Run = Callable[[Connection], bool]
QUEUES = {"nudge": 1, "end_overdue": 2, "repeat_aborts": 1}
"""The number of events that each timer queues for one due order."""


class Runs(dict[str, Run]):
    """The functions of the timers, of a new watchdog in each test. The nudge also fails overdue orders."""

    def renew(self) -> None:
        """Create a new watchdog, without the position of the last one."""
        self.update({timer.name: timer.run for timer in Watchdog(WatchdogSchedule()).timers})
        self["end_overdue"] = self["nudge"]


RUNS = Runs()
RUNS.renew()


@pytest.fixture(autouse=True)
def _new_watchdog() -> None:
    RUNS.renew()


def _order(connection: Connection, status: Status, payment: PaymentFact, stock: StockFact, **columns: str) -> str:
    order_id = place(connection)
    connection.execute(
        "UPDATE orders SET status = %s, payment = %s, stock = %s,"
        " failure_reason = CASE WHEN %s = 'FAILED' THEN 'TIMED_OUT' END WHERE id = %s",
        (status, payment, stock, status, order_id),
    )
    for column, expression in columns.items():
        statement = f"UPDATE orders SET {column} = {expression} WHERE id = %s"  # noqa: S608 - constants of the test
        connection.execute(statement.encode(), (order_id,))
    return order_id


def _due(connection: Connection, timer: str, seconds: int = 1) -> str:
    """Place an order that the timer must claim and that has been due for `seconds`."""
    past = f"now() - interval '{seconds} s'"
    match timer:
        case "nudge":
            return _order(connection, "PROCESSING", "none", "none", next_check_at=past)
        case "end_overdue":
            old = "now() - interval '16 min'"
            return _order(connection, "PROCESSING", "none", "none", nudges="3", created_at=old, next_check_at=past)
        case _:
            return _order(connection, "CANCELLED", "authorized", "none", aborted_at=past, next_check_at=past)


def _queued(connection: Connection, order_id: str) -> int:
    (count,) = row(connection, "SELECT count(*) FROM outbox WHERE order_id = %s", order_id)
    return int(count)


def _rows(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT * FROM orders ORDER BY id").fetchall()


@pytest.mark.parametrize("timer", RUNS)
def test_a_run_whose_events_cannot_be_queued_changes_no_order(connection: Connection, timer: str) -> None:
    order_id = _due(connection, timer)
    before = _rows(connection)
    connection.execute("ALTER TABLE outbox ADD CONSTRAINT refuses CHECK (FALSE)")
    with pytest.raises(psycopg.errors.CheckViolation):
        RUNS[timer](connection)
    assert _rows(connection) == before
    connection.execute("ALTER TABLE outbox DROP CONSTRAINT refuses")
    RUNS[timer](connection)
    assert _queued(connection, order_id) == QUEUES[timer]


@pytest.mark.parametrize("timer", RUNS)
def test_an_order_that_another_transaction_locks_is_skipped_and_the_others_are_claimed(
    connection: Connection, postgres_url: str, timer: str
) -> None:
    held, free = _due(connection, timer), _due(connection, timer)
    with connect(postgres_url, "another") as another, another.transaction():
        another.execute("SELECT FROM orders WHERE id = %s FOR NO KEY UPDATE", (held,))
        RUNS[timer](connection)
        assert (_queued(connection, held), _queued(connection, free)) == (0, QUEUES[timer])
    RUNS[timer](connection)
    assert _queued(connection, held) == QUEUES[timer]


@pytest.mark.parametrize("timer", RUNS)
def test_two_concurrent_runs_queue_the_events_of_an_order_once(
    connection: Connection, postgres_url: str, timer: str
) -> None:
    order_id = _due(connection, timer)
    with connect(postgres_url, "another") as another:
        with connection.transaction():
            RUNS[timer](connection)
            RUNS[timer](another)
        assert _queued(connection, order_id) == QUEUES[timer]


@pytest.mark.parametrize("timer", RUNS)
def test_one_run_claims_at_most_the_limit(connection: Connection, monkeypatch: pytest.MonkeyPatch, timer: str) -> None:
    monkeypatch.setattr("orderstream.order_service.watchdog.ROWS_PER_RUN", 2)
    orders = [_due(connection, timer, seconds) for seconds in (10, 20, 30)]
    RUNS[timer](connection)
    assert sum(_queued(connection, order_id) > 0 for order_id in orders) == 2
    RUNS[timer](connection)
    assert [_queued(connection, order_id) for order_id in orders] == [QUEUES[timer]] * 3


@pytest.mark.parametrize("timer", RUNS)
def test_a_payment_can_be_recorded_while_its_order_is_claimed(
    connection: Connection, postgres_url: str, timer: str
) -> None:
    """The foreign key locks the row of the order, too. Only a lock weaker than FOR UPDATE does not block it."""
    order_id = _due(connection, timer)
    with connect(postgres_url, "payment-worker") as worker, connection.transaction():
        RUNS[timer](connection)
        worker.execute("SET lock_timeout = '1s'")
        worker.execute("INSERT INTO payments (order_id, state) VALUES (%s, 'AUTHORIZED')", (order_id,))


@pytest.mark.parametrize("timer", ["nudge", "repeat_aborts"])
def test_an_order_with_an_event_in_the_outbox_is_only_rescheduled(connection: Connection, timer: str) -> None:
    order_id = _due(connection, timer)
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value) VALUES ('order.created.v1', %s, gen_random_uuid(), '')",
        (order_id,),
    )
    RUNS[timer](connection)
    assert _queued(connection, order_id) == 1
    assert row(connection, "SELECT nudges, next_check_at > now() + interval '20 s' FROM orders") == (0, True)


SETTLED: list[tuple[Status, PaymentFact, StockFact]] = [
    ("CONFIRMED", "authorized", "reserved"),
    ("FAILED", "failed", "none"),
    ("CANCELLED", "voided", "released"),
]


@pytest.mark.parametrize("timer", RUNS)
def test_a_settled_order_does_not_count_against_the_limit_of_a_claim(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, timer: str
) -> None:
    monkeypatch.setattr("orderstream.order_service.watchdog.ROWS_PER_RUN", 1)
    long_ago = "now() - interval '1 h'"
    for settled in SETTLED:
        _order(connection, *settled, nudges="3", created_at=long_ago, next_check_at=long_ago)
    before = _rows(connection)
    order_id = _due(connection, timer)
    RUNS[timer](connection)
    assert _queued(connection, order_id) == QUEUES[timer]
    assert [row for row in _rows(connection) if row[0] != order_id] == before
    assert row(connection, "SELECT count(*) FROM outbox") == (QUEUES[timer],)


def test_the_age_of_the_oldest_abort_ignores_compensated_orders(connection: Connection) -> None:
    _order(connection, "CANCELLED", "voided", "released", aborted_at="now() - interval '2 h'")
    _order(connection, "CANCELLED", "voided", "reserved", aborted_at="now() - interval '1 h'")
    RUNS["repeat_aborts"](connection)
    assert 3_600 <= metrics.UNCOMPENSATED_OLDEST_SECONDS._value.get() < 3_700
    connection.execute("UPDATE orders SET stock = 'released'")
    RUNS["repeat_aborts"](connection)
    assert metrics.UNCOMPENSATED_OLDEST_SECONDS._value.get() == 0
