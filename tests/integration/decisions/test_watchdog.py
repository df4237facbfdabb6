"""The watchdog on PostgreSQL: it nudges stalled orders, fails overdue ones and repeats unanswered aborts (P5)."""

import json
from itertools import pairwise
from typing import Any

import pytest

from orderstream.domain.order import PaymentFact, Status, StockFact
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.postgres.connect import Connection, connect
from orderstream.worker.due_scan import DueScan
from tests.integration.decisions.orders import TRACEPARENT, created, place, row
from tests.support.contracts import assert_event
from tests.support.waiting import wait_until


@pytest.fixture
def watchdog() -> Watchdog:
    """A watchdog with the schedule of the service."""
    return Watchdog(WatchdogSchedule())


def _outbox(connection: Connection) -> list[dict[str, Any]]:
    """Return and delete the events in the outbox. Each must keep its contract and continue the trace of the order."""
    rows = connection.execute(
        "DELETE FROM outbox RETURNING id, topic, order_id, event_id, value, traceparent"
    ).fetchall()
    for _, name, order_id, event_id, value, traceparent in sorted(rows):
        body = assert_event(name, order_id.encode(), value.encode())
        assert (body["id"], traceparent) == (str(event_id), TRACEPARENT)
    return [json.loads(value) for *_, value, _ in sorted(rows)]


def _stalled(connection: Connection, seconds: float = 1) -> str:
    order_id = place(connection)
    connection.execute(
        "UPDATE orders SET next_check_at = now() - %s * interval '1 s' WHERE id = %s", (seconds, order_id)
    )
    return order_id


def _aborted(connection: Connection, status: Status, payment: PaymentFact, stock: StockFact) -> str:
    order_id = place(connection)
    connection.execute(
        "UPDATE orders SET status = %s, payment = %s, stock = %s, aborted_at = now() - interval '1 min',"
        " failure_reason = CASE WHEN %s = 'FAILED' THEN 'TIMED_OUT' END, next_check_at = now() - interval '1 s'"
        " WHERE id = %s",
        (status, payment, stock, status, order_id),
    )
    return order_id


def test_the_watchdog_repeats_order_created_of_a_stalled_order_unchanged(
    watchdog: Watchdog, connection: Connection
) -> None:
    order_id = _stalled(connection)
    connection.execute("UPDATE orders SET created_at = %s", (created(order_id).occurred_at,))
    watchdog.nudge(connection)
    (event,) = _outbox(connection)
    assert (event["type"], event["id"]) == ("order.created", str(created(order_id).id))
    (at,) = row(connection, "SELECT created_at FROM orders")
    assert event["occurredAt"] == at.isoformat().replace("+00:00", "Z")
    assert row(connection, "SELECT status, version, nudges FROM orders") == ("PROCESSING", 1, 1)


def test_the_interval_between_nudges_grows_up_to_a_limit(watchdog: Watchdog, connection: Connection) -> None:
    order_id = _stalled(connection)
    for nudges, longest in enumerate((60, 120, 240, 300, 300), start=1):
        connection.execute("UPDATE orders SET next_check_at = now()")
        (before,) = row(connection, "SELECT now()")
        watchdog.nudge(connection)
        assert len(_outbox(connection)) == 1
        count, earliest, latest = row(
            connection,
            "SELECT nudges, extract(epoch FROM next_check_at - %s)::float8,"
            " extract(epoch FROM next_check_at - now())::float8 FROM orders WHERE id = %s",
            before,
            order_id,
        )
        assert count == nudges
        assert longest * 0.74 < earliest
        assert latest <= longest


def test_an_order_that_is_not_due_or_queued_or_settled_is_not_nudged(
    watchdog: Watchdog, connection: Connection
) -> None:
    place(connection)
    queued = _stalled(connection)
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value) VALUES ('order.created.v1', %s, gen_random_uuid(), '')",
        (queued,),
    )
    _aborted(connection, "FAILED", "failed", "none")
    watchdog.nudge(connection)
    assert row(connection, "SELECT sum(nudges)::int FROM orders") == (0,)
    assert row(connection, "SELECT count(*) FROM outbox") == (1,)


def test_one_run_nudges_at_most_the_limit(
    watchdog: Watchdog, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.order_service.watchdog.ROWS_PER_RUN", 3)
    for _ in range(5):
        _stalled(connection)
    assert watchdog.nudge(connection) is False
    assert len(_outbox(connection)) == 3


def test_two_watchdogs_at_once_never_nudge_the_same_order(
    watchdog: Watchdog, connection: Connection, postgres_url: str
) -> None:
    order_id = _stalled(connection)
    with connect(postgres_url, "another") as another, another.transaction():
        another.execute("SELECT FROM orders WHERE id = %s FOR NO KEY UPDATE", (order_id,))
        watchdog.nudge(connection)
        assert _outbox(connection) == []


@pytest.mark.parametrize("status", ["PROCESSING", "PAID"])
def test_an_overdue_order_fails_and_is_aborted(watchdog: Watchdog, connection: Connection, status: Status) -> None:
    order_id = _stalled(connection)
    payment = "authorized" if status == "PAID" else "none"
    connection.execute(
        "UPDATE orders SET status = %s, payment = %s, nudges = 3, created_at = now() - interval '16 min'",
        (status, payment),
    )
    watchdog.nudge(connection)
    updated, aborted = _outbox(connection)
    assert (updated["type"], aborted["type"]) == ("order.updated", "order.aborted")
    assert updated["payload"]["status"] == "FAILED"
    assert aborted["payload"] == {"orderId": order_id, "status": "FAILED", "reason": "TIMED_OUT"}
    assert row(connection, "SELECT status, failure_reason, version, aborted_at = updated_at FROM orders") == (
        "FAILED",
        "TIMED_OUT",
        2,
        True,
    )


@pytest.mark.parametrize(("nudges", "minutes"), [(2, 16), (3, 14)])
def test_an_order_fails_only_after_its_deadline_and_its_nudges(
    watchdog: Watchdog, connection: Connection, nudges: int, minutes: int
) -> None:
    _stalled(connection)
    connection.execute("UPDATE orders SET nudges = %s, created_at = now() - %s * interval '1 min'", (nudges, minutes))
    watchdog.nudge(connection)
    assert [event["type"] for event in _outbox(connection)] == ["order.created"]
    assert row(connection, "SELECT status, nudges FROM orders") == ("PROCESSING", nudges + 1)


@pytest.mark.parametrize(
    ("state", "pending_minutes", "ends"),
    [
        ("PENDING", 20, False),
        ("PENDING", 60, True),
        ("PENDING", None, True),
        ("VOIDING", 20, True),
    ],
)
def test_an_order_whose_payment_waits_for_the_customer_is_left_alone_within_the_limit(
    watchdog: Watchdog, connection: Connection, state: str, pending_minutes: float | None, ends: bool
) -> None:
    _stalled(connection)
    connection.execute("UPDATE orders SET created_at = now() - interval '2 h', nudges = 3")
    connection.execute(
        "INSERT INTO payments (order_id, state, next_attempt_at, decided_at, pending_since)"
        " SELECT id, %s, now(), now() - interval '2 h', now() - %s * interval '1 min' FROM orders",
        (state, pending_minutes),
    )
    watchdog.nudge(connection)
    assert row(connection, "SELECT status, next_check_at > now() FROM orders") == (
        ("FAILED", True) if ends else ("PROCESSING", True)
    )
    assert bool(_outbox(connection)) == ends


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
@pytest.mark.parametrize(
    ("payment", "stock"),
    [("authorized", "none"), ("voided", "reserved"), ("none", "none"), ("voided", "none"), ("failed", "failed")],
)
def test_the_watchdog_repeats_an_unanswered_abort_unchanged(
    watchdog: Watchdog, connection: Connection, status: Status, payment: PaymentFact, stock: StockFact
) -> None:
    order_id = _aborted(connection, status, payment, stock)
    seen = []
    for _ in range(2):
        connection.execute("UPDATE orders SET next_check_at = now()")
        watchdog.repeat_aborts(connection)
        seen += _outbox(connection)
    first, second = seen
    assert first == second
    assert (first["type"], first["correlationId"]) == ("order.aborted", order_id)
    watchdog.repeat_aborts(connection)
    assert _outbox(connection) == []


@pytest.mark.parametrize(("payment", "stock"), [("voided", "released"), ("failed", "released")])
def test_the_abort_of_a_compensated_order_is_not_repeated(
    watchdog: Watchdog, connection: Connection, payment: PaymentFact, stock: StockFact
) -> None:
    _aborted(connection, "FAILED", payment, stock)
    watchdog.repeat_aborts(connection)
    assert _outbox(connection) == []


def _entries_read(connection: Connection, index: str) -> int:
    """Return how many entries of an index were read so far, including dead ones."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")
    (entries,) = row(connection, "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = %s", index)
    return int(entries)


DEAD = 20_000


@pytest.mark.parametrize("timer", ["orders_open", "orders_uncompensated"])
def test_while_a_snapshot_is_held_the_index_entries_of_settled_orders_are_not_read_repeatedly(
    watchdog: Watchdog, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch, timer: str
) -> None:
    monkeypatch.setattr("orderstream.worker.due_scan.SWEEP_PAUSE_SECONDS", 3_600)
    # A statement that is ended at its time limit is repeated, and reads the entries again.
    monkeypatch.setattr("orderstream.worker.due_scan.SLICE_STATEMENT_SECONDS", 9.0)
    run = watchdog.nudge if timer == "orders_open" else watchdog.repeat_aborts
    with connect(postgres_url, "audit") as audit:
        audit.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        audit.execute("SELECT count(*) FROM orders")
        connection.execute(
            "INSERT INTO orders (id, user_id, amount, currency, aborted_at, next_check_at, status)"
            " SELECT 'dead-' || number, 'u', 1, 'USD', now(), now() - interval '10 min', 'PROCESSING'"
            " FROM generate_series(1, %s) AS number",
            (DEAD,),
        )
        connection.execute("UPDATE orders SET status = 'CANCELLED', payment = 'voided', stock = 'released'")
        reads = [_entries_read(connection, timer)]
        for _ in range(10):
            run(connection)
            reads.append(_entries_read(connection, timer))
    by_run = [after - before for before, after in pairwise(reads)]
    assert max(by_run) >= DEAD, "the sweep reads the entries once"
    assert sum(by_run) < 2 * DEAD
    order_id = _stalled(connection) if timer == "orders_open" else _aborted(connection, "CANCELLED", "none", "none")
    run(connection)
    assert [event["correlationId"] for event in _outbox(connection)] == [order_id]


def test_the_scan_of_a_slice_with_too_many_dead_entries_is_ended_in_time_and_the_sweep_goes_on(
    watchdog: Watchdog, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.worker.due_scan.SLICE_STATEMENT_SECONDS", 0.001)
    ended: list[None] = []
    note_timeout = DueScan.note_timeout

    def note(due: DueScan) -> None:
        ended.append(None)
        note_timeout(due)

    monkeypatch.setattr(DueScan, "note_timeout", note)
    with connect(postgres_url, "audit") as audit:
        audit.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        audit.execute("SELECT count(*) FROM orders")
        connection.execute(
            "INSERT INTO orders (id, user_id, amount, currency, next_check_at)"
            " SELECT 'dead-' || number, 'u', 1, 'USD', now() - interval '10 min' FROM generate_series(1, %s) AS number",
            (DEAD,),
        )
        connection.execute("UPDATE orders SET status = 'CANCELLED'")
        order_id = _stalled(connection)
        connection.execute("UPDATE orders SET next_check_at = now() - interval '20 min' WHERE id = %s", (order_id,))

        def nudge() -> list[dict[str, Any]]:
            watchdog.nudge(connection)
            return _outbox(connection)

        nudged = wait_until(nudge, 30, "the sweep reaches the order below the dead entries")
    assert ended
    assert [event["correlationId"] for event in nudged] == [order_id]
