"""Retention on PostgreSQL: it removes ended orders, keeps all others, and the audit finds nothing (P3)."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.audit.check import audit
from orderstream.domain.events import topic_of
from orderstream.outbox_relay import retention
from orderstream.outbox_relay.retention import (
    LOCK_TIMEOUT_SECONDS,
    ROWS_PER_STEP,
    STATEMENT_TIMEOUT_SECONDS,
    Retention,
    RetentionStep,
    Walk,
)
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.postgres.session import Session
from orderstream.settings import Settings
from tests.integration.decisions.orders import ONE, created, place
from tests.integration.outbox_relay.running import running
from tests.support.topics import Tap
from tests.support.waiting import wait_until

DAYS = 40
OLD = timedelta(days=DAYS + 1)
YOUNG = timedelta(days=DAYS - 1)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each step plenty of time. Its own limits are so short that a busy machine exceeds them.

    The tests of the limits set them again.
    """
    monkeypatch.setitem(retention._TIMEOUTS, "lock_timeout", "20s")
    monkeypatch.setitem(retention._TIMEOUTS, "statement_timeout", "40s")


def _limit_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(retention._TIMEOUTS, "lock_timeout", f"{LOCK_TIMEOUT_SECONDS * 1_000:.0f}ms")


def _order(
    connection: Connection,
    status: str,
    payment: tuple[str, str | None],
    stock: tuple[str, str | None],
    *,
    aborted: bool = False,
    age: timedelta = OLD,
    clock_is_wrong_by: timedelta = timedelta(),
    lines: dict[str, int] | None = None,
) -> str:
    """Insert an order of that age. `payment` and `stock` are a fact and the state of its row, None without a row."""
    at = datetime.now(UTC) - age
    order_id = place(connection, lines, new_order_id((at + clock_is_wrong_by).timestamp()))
    connection.execute(
        "UPDATE orders SET status = %s, payment = %s, stock = %s, aborted_at = %s, created_at = %s, updated_at = %s,"
        " failure_reason = CASE WHEN %s = 'FAILED' THEN 'PAYMENT_DECLINED' END WHERE id = %s",
        (status, payment[0], stock[0], at if aborted else None, at, at, status, order_id),
    )
    if payment[1]:
        due = at if payment[1] in ("PENDING", "VOIDING") else None
        connection.execute(
            "INSERT INTO payments (order_id, state, amount, next_attempt_at, reason)"
            " VALUES (%s, %s, 129, %s, CASE WHEN %s = 'FAILED' THEN 'PAYMENT_DECLINED' END)",
            (order_id, payment[1], due, payment[1]),
        )
    if stock[1]:
        held = lines or ONE if stock[1] == "RESERVED" else {}
        connection.execute(
            "INSERT INTO reservations (order_id, state, lines) VALUES (%s, %s, %s::jsonb)",
            (order_id, stock[1], str(held).replace("'", '"')),
        )
        for sku, units in held.items():
            connection.execute(
                "INSERT INTO inventory AS i VALUES (%s, 10, %s)"
                " ON CONFLICT (sku) DO UPDATE SET reserved = i.reserved + excluded.reserved",
                (sku, units),
            )
    return order_id


def _confirmed(connection: Connection, lines: dict[str, int] | None = None, age: timedelta = OLD) -> str:
    states = ("authorized", "AUTHORIZED"), ("reserved", "RESERVED")
    return _order(connection, "CONFIRMED", *states, lines=lines, age=age)


def _cancelled(connection: Connection, age: timedelta = OLD, clock_is_wrong_by: timedelta = timedelta()) -> str:
    states = ("voided", "VOIDED"), ("released", "RELEASED")
    return _order(connection, "CANCELLED", *states, aborted=True, age=age, clock_is_wrong_by=clock_is_wrong_by)


def _failed(connection: Connection) -> str:
    return _order(connection, "FAILED", ("failed", "FAILED"), ("none", None))


def _walk(connection: Connection) -> list[RetentionStep]:
    """Take steps until one has read the last old order."""
    walker = Walk(DAYS)
    steps: list[RetentionStep] = []
    while not steps or not steps[-1].last:
        steps.append(walker.step(connection))
    return steps


def _ids(connection: Connection) -> set[str]:
    return {order_id for (order_id,) in connection.execute("SELECT id FROM orders")}


def _stock(connection: Connection) -> dict[str, tuple[int, int]]:
    return {sku: (available, reserved) for sku, available, reserved in connection.execute("TABLE inventory")}


def _assert_clean(postgres_url: str) -> None:
    assert not [violation for found in audit(postgres_url, 0).values() for violation in found]


def test_ended_orders_are_removed_with_all_their_rows(connection: Connection, postgres_url: str) -> None:
    _confirmed(connection, {"SKU-1": 2, "SKU-2": 3})
    _confirmed(connection, {"SKU-2": 4})
    _cancelled(connection)
    _failed(connection)
    kept = _confirmed(connection, {"SKU-2": 1}, YOUNG)
    assert _stock(connection) == {"SKU-1": (10, 2), "SKU-2": (10, 8)}
    _assert_clean(postgres_url)
    assert _walk(connection) == [RetentionStep(4, 4, 9, last=True)]
    for table in ("orders", "order_items", "payments", "reservations"):
        assert len(connection.execute(f"TABLE {table}".encode()).fetchall()) == 1, table
    assert _ids(connection) == {kept}
    assert _stock(connection) == {"SKU-1": (10, 0), "SKU-2": (10, 1)}
    _assert_clean(postgres_url)


AUTHORIZED, RESERVED = ("authorized", "AUTHORIZED"), ("reserved", "RESERVED")
VOIDED, RELEASED, NOTHING = ("voided", "VOIDED"), ("released", "RELEASED"), ("none", None)


@pytest.mark.parametrize(
    ("status", "payment", "stock", "aborted"),
    [
        ("PROCESSING", NOTHING, NOTHING, False),
        ("PAID", AUTHORIZED, NOTHING, False),
        ("FAILED", AUTHORIZED, RELEASED, True),
        ("CANCELLED", ("authorized", "VOIDING"), RELEASED, True),
        ("CANCELLED", VOIDED, RESERVED, True),
        ("CANCELLED", VOIDED, NOTHING, True),
        ("FAILED", VOIDED, ("failed", "FAILED"), True),
        ("FAILED", ("failed", "FAILED"), RESERVED, False),
        # The rows of the payment and the reservation differ from the facts of the order.
        ("CANCELLED", ("voided", "VOIDING"), RELEASED, True),
        ("CANCELLED", VOIDED, ("released", "RESERVED"), True),
        ("CONFIRMED", AUTHORIZED, ("reserved", "RELEASED"), False),
        ("CONFIRMED", AUTHORIZED, ("reserved", None), False),
    ],
)
def test_an_order_that_is_open_or_not_compensated_or_inconsistent_is_kept(
    connection: Connection, status: str, payment: tuple[str, str | None], stock: tuple[str, str | None], aborted: bool
) -> None:
    order_id = _order(connection, status, payment, stock, aborted=aborted)
    before = _stock(connection)
    assert _walk(connection) == [RetentionStep(1, 0, 0, last=True)]
    assert _ids(connection) == {order_id}
    assert _stock(connection) == before


def test_one_retention_step_can_count_more_sold_units_than_an_int_holds(connection: Connection) -> None:
    for _ in range(3):
        _confirmed(connection, {"SKU-1": 2_000_000_000})
    assert _walk(connection) == [RetentionStep(3, 3, 6_000_000_000, last=True)]
    assert connection.execute("SELECT available, reserved FROM inventory").fetchall() == [(10, 0)]


def test_an_order_with_an_event_in_the_outbox_is_kept(connection: Connection) -> None:
    order_id = _confirmed(connection)
    with connection.transaction():
        append(connection, [OutboxRow(created(order_id))])
    assert _walk(connection) == [RetentionStep(1, 0, 0, last=True)]
    connection.execute("DELETE FROM outbox")
    assert _walk(connection) == [RetentionStep(1, 1, 1, last=True)]


def test_an_old_order_with_a_recent_change_is_kept(connection: Connection) -> None:
    order_id = _cancelled(connection)
    connection.execute("UPDATE orders SET updated_at = now() WHERE id = %s", (order_id,))
    assert _walk(connection) == [RetentionStep(1, 0, 0, last=True)]


def test_retention_does_not_read_an_order_younger_than_its_limit(connection: Connection) -> None:
    _cancelled(connection, timedelta(days=DAYS) - timedelta(minutes=1))
    _cancelled(connection, timedelta(days=DAYS) + timedelta(minutes=1))
    assert _walk(connection) == [RetentionStep(1, 1, 0, last=True)]


def test_an_order_that_is_being_cancelled_is_skipped(connection: Connection, postgres_url: str) -> None:
    order_id = _confirmed(connection)
    other = _confirmed(connection)
    with connect(postgres_url, "gateway") as gateway, gateway.transaction():
        gateway.execute("SELECT FROM orders WHERE id = %s FOR NO KEY UPDATE", (order_id,))
        assert _walk(connection) == [RetentionStep(2, 1, 1, last=True)]
        assert other not in _ids(connection)


def test_a_retention_step_reads_a_limited_number_of_orders_and_the_next_step_continues_after_them(
    connection: Connection,
) -> None:
    kept = {_order(connection, "PAID", AUTHORIZED, NOTHING) for _ in range(ROWS_PER_STEP + 10)}
    _cancelled(connection, timedelta(days=DAYS, hours=1))
    walker = Walk(DAYS)
    assert walker.step(connection) == RetentionStep(ROWS_PER_STEP, 0, 0, last=False)
    assert walker.step(connection) == RetentionStep(11, 1, 0, last=True)
    assert _ids(connection) == kept
    assert walker.step(connection) == RetentionStep(ROWS_PER_STEP, 0, 0, last=False), (
        "the next walk begins at the first order that was kept"
    )


def test_a_walk_begins_after_the_orders_that_the_previous_walk_removed(connection: Connection) -> None:
    for days in (9, 8):
        _cancelled(connection, timedelta(days=DAYS + days))
    kept = _order(connection, "PAID", AUTHORIZED, NOTHING, age=timedelta(days=DAYS + 7))
    _cancelled(connection, timedelta(days=DAYS + 6))
    walker = Walk(DAYS)
    assert walker.step(connection) == RetentionStep(4, 3, 0, last=True)
    assert _ids(connection) == {kept}
    late = _cancelled(connection, timedelta(days=DAYS + 10))
    assert walker.step(connection) == RetentionStep(1, 0, 0, last=True)
    assert _ids(connection) == {kept, late}
    connection.execute("DELETE FROM orders WHERE id = %s", (kept,))
    assert walker.step(connection) == RetentionStep(0, 0, 0, last=True)


def test_many_relays_remove_each_order_once(connection: Connection, postgres_url: str) -> None:
    for number in range(3 * ROWS_PER_STEP):
        _confirmed(connection, {"SKU-1": 1, f"SKU-{2 + number % 3}": 2})

    def walk(_relay: int) -> Sequence[RetentionStep]:
        with connect(postgres_url, "outbox-relay") as own:
            return [step for _ in range(6) for step in _walk(own)]

    with ThreadPoolExecutor(3) as pool:
        steps = [step for walked in pool.map(walk, range(3)) for step in walked]
    assert sum(step.removed for step in steps) == 3 * ROWS_PER_STEP
    assert sum(step.sold for step in steps) == 3 * 3 * ROWS_PER_STEP
    assert _ids(connection) == set()
    assert {reserved for _, reserved in _stock(connection).values()} == {0}
    _assert_clean(postgres_url)


def test_a_retention_step_waits_briefly_for_a_lock_and_is_repeated_later(
    connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit_locks(monkeypatch)
    order_id = _confirmed(connection)
    walker = Walk(DAYS)
    with connect(postgres_url, "inventory-worker") as worker, worker.transaction():
        worker.execute("SELECT FROM inventory FOR UPDATE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            walker.step(connection)
        assert _ids(connection) == {order_id}
    assert walker.step(connection) == RetentionStep(1, 1, 1, last=True)
    assert connection.execute("SHOW lock_timeout").fetchone() == ("5s",)


def test_a_slow_statement_of_a_retention_step_is_ended_and_the_step_is_repeated_later(
    connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _confirmed(connection)
    walker = Walk(DAYS)
    with connect(postgres_url, "inventory-worker") as worker, worker.transaction():
        worker.execute("SELECT FROM inventory FOR UPDATE")
        with monkeypatch.context() as limited:
            limited.setitem(retention._TIMEOUTS, "lock_timeout", "0")
            limited.setitem(retention._TIMEOUTS, "statement_timeout", f"{STATEMENT_TIMEOUT_SECONDS}s")
            with pytest.raises(psycopg.errors.QueryCanceled):
                walker.step(connection)
    assert walker.step(connection) == RetentionStep(1, 1, 1, last=True)
    assert connection.execute("SHOW statement_timeout").fetchone() == ("10s",)


def test_after_a_failure_retention_steps_are_shorter_until_they_succeed(
    connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit_locks(monkeypatch)
    for _ in range(ROWS_PER_STEP):
        _confirmed(connection)
    walker = Walk(DAYS)
    with connect(postgres_url, "inventory-worker") as worker, worker.transaction():
        worker.execute("SELECT FROM inventory FOR UPDATE")
        for _ in range(3):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                walker.step(connection)
    assert [walker.step(connection).removed for _ in range(5)] == [12, 24, 48, 16, 0]


def test_orders_with_a_permanent_error_are_skipped_until_the_next_walk(connection: Connection) -> None:
    for _ in range(ROWS_PER_STEP):
        _confirmed(connection)
    connection.execute("UPDATE inventory SET reserved = 1")
    other = _cancelled(connection, timedelta(days=DAYS, hours=1))
    walker = Walk(DAYS)
    with pytest.raises(psycopg.errors.CheckViolation):
        walker.step(connection)
    assert walker.step(connection) == RetentionStep(1, 1, 0, last=True)
    assert len(_ids(connection) - {other}) == ROWS_PER_STEP
    with pytest.raises(psycopg.errors.CheckViolation):
        walker.step(connection)


@pytest.fixture
def session(postgres_url: str) -> Iterator[Session]:
    """A session as that of the relay."""
    opened = Session(postgres_url, "outbox-relay")
    yield opened
    opened.close()


def test_the_next_step_is_due_soon_within_a_walk_and_later_after_it(
    connection: Connection, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(ROWS_PER_STEP + 1):
        _cancelled(connection)
    walker = Walk(DAYS)
    walker.run_if_due(session)
    assert len(_ids(connection)) == 1
    walker.run_if_due(session)
    assert len(_ids(connection)) == 1
    now += retention.STEP_SECONDS
    walker.run_if_due(session)
    assert _ids(connection) == set()
    _cancelled(connection)
    now += retention.WALK_SECONDS / 2
    walker.run_if_due(session)
    assert len(_ids(connection)) == 1
    now += retention.WALK_SECONDS / 2
    walker.run_if_due(session)
    assert _ids(connection) == set()


WRONG_CLOCKS = {
    "13 h behind": timedelta(hours=-13),
    "13 h ahead": timedelta(hours=13),
    "10 years behind": timedelta(days=-3_653),
    "10 years ahead": timedelta(days=3_653),
}


@pytest.mark.parametrize("shift", WRONG_CLOCKS.values(), ids=WRONG_CLOCKS)
def test_retention_uses_the_creation_time_of_an_order_although_its_id_has_a_wrong_time(
    connection: Connection, session: Session, shift: timedelta
) -> None:
    relay = Retention(DAYS)
    kept = _order(connection, "PAID", AUTHORIZED, NOTHING, age=timedelta(days=DAYS + 2))
    relay.run_if_due(session)
    _cancelled(connection, OLD, shift)
    young = _cancelled(connection, YOUNG, shift)
    for _ in range(2):
        relay.run_if_due(session)
    assert _ids(connection) == {kept, young}


def test_the_slow_walk_reads_every_order_in_limited_steps_from_the_first_id(
    connection: Connection, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(ROWS_PER_STEP + 1):
        _cancelled(connection, YOUNG)
    _cancelled(connection)
    walk = Walk(DAYS, every_order=True)
    assert walk.step(connection) == RetentionStep(ROWS_PER_STEP, 1, 0, last=False)
    assert walk.run_if_due(session)
    assert not walk.run_if_due(session)
    behind = _cancelled(connection, OLD, WRONG_CLOCKS["10 years behind"])
    now += retention.WALK_OVER_EVERY_ORDER_SECONDS / 2
    assert not walk.run_if_due(session)
    now += retention.WALK_OVER_EVERY_ORDER_SECONDS / 2
    assert walk.run_if_due(session)
    assert behind not in _ids(connection)


def test_orders_are_kept_without_a_time_limit_by_default(
    settings: Settings, connection: Connection, session: Session
) -> None:
    order_id = _cancelled(connection, timedelta(days=10_000))
    Retention(settings.order_retention_days).run_if_due(session)
    assert _ids(connection) == {order_id}


def _kept_for_days(settings: Settings) -> Settings:
    return settings.model_copy(update={"order_retention_days": DAYS})


def test_a_relay_publishes_events_and_removes_orders(settings: Settings, connection: Connection) -> None:
    _confirmed(connection)
    with Tap(settings.kafka_brokers, [topic_of("order.created")]) as tap, running(_kept_for_days(settings)):
        _publish_one(connection, tap)
        wait_until(lambda: not _ids(connection), 20, "the old order is gone")


@pytest.mark.parametrize(
    "statement", ["SELECT 1/0", "SELECT FROM no_such_table", "SELECT pg_terminate_backend(pg_backend_pid())"]
)
def test_a_relay_whose_retention_fails_goes_on_publishing(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    failing = dict[str, Any](retention.SQL) | {"remove_orders": statement}
    monkeypatch.setattr(retention, "SQL", failing)
    monkeypatch.setattr(retention, "WALK_SECONDS", 0.01)
    order_id = _confirmed(connection)
    with Tap(settings.kafka_brokers, [topic_of("order.created")]) as tap, running(_kept_for_days(settings)):
        for _ in range(3):
            _publish_one(connection, tap)
    assert _ids(connection) == {order_id}
    assert _stock(connection) == {"SKU-1": (10, 1)}


def _publish_one(connection: Connection, tap: Tap) -> None:
    event = created(new_order_id(time.time()))
    with connection.transaction():
        append(connection, [OutboxRow(event)])
    tap.until(lambda seen: event.id in {record.event().id for record in seen}, 20, "the event is published")
