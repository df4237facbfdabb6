"""The audit on PostgreSQL: a correct database passes, and each breach is reported with its promise and its subject."""

from decimal import Decimal
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from orderstream.audit import check
from orderstream.audit.check import Progress, StoppedError, audit
from orderstream.cli import main
from orderstream.postgres.connect import Connection
from tests.integration.decisions.orders import place

CONFIRMED = "c0000000-0000-7000-8000-000000000000"
FAILED = "f0000000-0000-7000-8000-000000000000"
DECLINED = "d0000000-0000-7000-8000-000000000000"


@pytest.fixture
def database(connection: Connection) -> Connection:
    """A database with a confirmed order, a failed and compensated order, a declined order, and stock."""
    place(connection, order_id=CONFIRMED)
    place(connection, order_id=FAILED)
    place(connection, order_id=DECLINED)
    connection.execute(
        "UPDATE orders SET status = 'CONFIRMED', payment = 'authorized', stock = 'reserved', version = 3 WHERE id = %s",
        (CONFIRMED,),
    )
    connection.execute(
        "UPDATE orders SET status = 'FAILED', failure_reason = 'OUT_OF_STOCK', payment = 'voided', stock = 'released',"
        " aborted_at = now() WHERE id = %s",
        (FAILED,),
    )
    connection.execute(
        "UPDATE orders SET status = 'FAILED', failure_reason = 'PAYMENT_DECLINED', payment = 'failed' WHERE id = %s",
        (DECLINED,),
    )
    connection.execute(
        "INSERT INTO payments (order_id, state, amount, reason) VALUES (%s, 'AUTHORIZED', 129.00, NULL),"
        " (%s, 'VOIDED', 129.00, 'OUT_OF_STOCK'), (%s, 'FAILED', 129.00, 'PAYMENT_DECLINED')",
        (CONFIRMED, FAILED, DECLINED),
    )
    connection.execute(
        "INSERT INTO reservations (order_id, state, lines, reason)"
        " VALUES (%s, 'RESERVED', '{\"SKU-1\": 1}', NULL), (%s, 'RELEASED', '{}', 'OUT_OF_STOCK')",
        (CONFIRMED, FAILED),
    )
    connection.execute("INSERT INTO inventory (sku, available, reserved) VALUES ('SKU-1', 99, 1)")
    return connection


def _broken(postgres_url: str) -> set[tuple[str, str]]:
    return {(breach.promise, breach.subject) for found in audit(postgres_url, 0).values() for breach in found}


def test_a_correct_database_passes(database: Connection, postgres_url: str) -> None:
    assert database.info.dbname in postgres_url
    assert _broken(postgres_url) == set()


@pytest.mark.parametrize(
    ("breach", "promise", "subject"),
    [
        ("DELETE FROM order_items WHERE order_id = '{c}'", "p1_durable", CONFIRMED),
        ("UPDATE payments SET amount = 1 WHERE order_id = '{c}'", "p2_charged_once", CONFIRMED),
        ("UPDATE payments SET state = 'VOIDED' WHERE order_id = '{c}'", "p2_charged_once", CONFIRMED),
        ("UPDATE payments SET state = 'AUTHORIZED' WHERE order_id = '{f}'", "p2_charged_once", FAILED),
        ("DELETE FROM payments WHERE order_id = '{c}'", "p2_charged_once", CONFIRMED),
        ("UPDATE inventory SET reserved = 2", "p3_stock_conserved", "SKU-1"),
        ("DELETE FROM inventory", "p3_stock_conserved", "SKU-1"),
        ("UPDATE reservations SET state = 'RELEASED' WHERE order_id = '{c}'", "p3_stock_conserved", "SKU-1"),
        (
            "UPDATE reservations SET lines = '{{\"SKU-1\": 2}}' WHERE order_id = '{c}'",
            "p3_all_lines_or_none",
            CONFIRMED,
        ),
        ("UPDATE order_items SET qty = 2 WHERE order_id = '{c}'", "p3_all_lines_or_none", CONFIRMED),
        ("UPDATE orders SET status = 'PAID' WHERE id = '{c}'", "p4_confirmed", CONFIRMED),
        ("UPDATE orders SET status = 'PROCESSING' WHERE id = '{c}'", "p5_settles", CONFIRMED),
        ("UPDATE orders SET payment = 'authorized' WHERE id = '{f}'", "p5_settles", FAILED),
        ("UPDATE orders SET failure_reason = NULL WHERE id = '{f}'", "p6_settled_stays", FAILED),
        ("UPDATE orders SET status = 'CANCELLED' WHERE id = '{c}'", "p6_settled_stays", CONFIRMED),
        (
            "UPDATE orders SET status = 'CANCELLED', failure_reason = NULL WHERE id = '{f}'",
            "p6_settled_stays",
            FAILED,
        ),
        ("UPDATE orders SET failure_reason = 'TIMED_OUT' WHERE id = '{f}'", "p6_settled_stays", FAILED),
        ("UPDATE orders SET failure_reason = 'TIMED_OUT' WHERE id = '{d}'", "p6_settled_stays", DECLINED),
        ("UPDATE orders SET stock = 'failed' WHERE id = '{f}'", "p5_settles", FAILED),
        (
            "UPDATE orders SET status = 'FAILED', failure_reason = 'OUT_OF_STOCK' WHERE id = '{c}'",
            "p6_settled_stays",
            CONFIRMED,
        ),
        ("UPDATE orders SET payment = 'failed' WHERE id = '{f}'", "p7_facts_agree", FAILED),
        ("DELETE FROM reservations WHERE order_id = '{f}'", "p7_facts_agree", FAILED),
        (
            "INSERT INTO outbox (topic, order_id, event_id, value) VALUES ('t', '{c}', gen_random_uuid(), '')",
            "outbox_drained",
            CONFIRMED,
        ),
    ],
)
def test_the_audit_reports_a_breach_with_its_promise_and_the_id_of_its_order_or_sku(
    database: Connection, postgres_url: str, breach: str, promise: str, subject: str
) -> None:
    database.execute(breach.format(c=CONFIRMED, f=FAILED, d=DECLINED).encode())
    assert (promise, subject) in _broken(postgres_url)


@pytest.mark.parametrize(
    ("breach", "promise"),
    [
        ("UPDATE payments SET state = 'AUTHORIZED' WHERE order_id = '{f}'", "p2_charged_once"),
        ("UPDATE reservations SET state = 'RESERVED' WHERE order_id = '{f}'", "p7_facts_agree"),
        ("DELETE FROM reservations WHERE order_id = '{f}'", "p7_facts_agree"),
    ],
)
def test_a_breach_that_no_pending_event_explains_is_reported_within_the_grace_period(
    database: Connection, postgres_url: str, breach: str, promise: str
) -> None:
    database.execute(breach.format(f=FAILED).encode())
    assert FAILED in {found.subject for found in audit(postgres_url, 60)[promise]}


def test_the_number_of_reported_breaches_is_limited(
    database: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.audit.check.SHOWN_PER_PROMISE", 2)
    database.execute("INSERT INTO inventory SELECT 'LOST-' || n, 0, 1 FROM generate_series(1, 3) AS n")
    assert len(audit(postgres_url, 0)["p3_stock_conserved"]) == 2


def test_the_audit_reads_the_orders_in_pieces_each_in_its_own_snapshot(
    database: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A breach in any piece is found. No transaction is open between two statements."""
    monkeypatch.setattr(check, "PIECE_ORDERS", 2)
    orders = [place(database) for _ in range(9)]
    ran: list[str] = []

    class Watched(psycopg.Connection[TupleRow]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Cursor[TupleRow]:
            assert self.info.transaction_status is TransactionStatus.IDLE, ran
            ran.append(query)
            return super().execute(query, *arguments, **options)

    monkeypatch.setattr(
        check, "connect", lambda url, name: Watched.connect(url, autocommit=True, application_name=name)
    )
    found = audit(postgres_url, 0)
    assert {violation.subject for violation in found["p5_settles"]} == set(orders)
    assert ran.count(check.SQL["p5_settles"]) == 6
    assert ran.count(check.SQL["p3_stock_conserved"]) == 1


def test_the_audit_reports_its_progress_and_can_be_stopped(
    database: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PIECE_ORDERS", 2)
    seen: list[Progress] = []
    audit(postgres_url, 0, seen.append)
    assert [progress.check for progress in seen if not progress.pieces_done] == list(check.SQL)
    assert {progress.checks for progress in seen} == {len(check.SQL)}
    assert [(p.pieces_done, p.pieces) for p in seen if p.check == "p5_settles"] == [(0, 2), (1, 2)]
    assert seen[0].text == f"0 of {len(check.SQL)} checks, p1_durable: 0 of 2 pieces"

    def stop(progress: Progress) -> None:
        if progress.check == "p4_confirmed":
            raise StoppedError

    with pytest.raises(StoppedError):
        audit(postgres_url, 0, stop)


def test_the_audit_reports_an_open_order_only_after_the_grace_period(database: Connection, postgres_url: str) -> None:
    open_order = place(database)
    assert ("p5_settles", open_order) in _broken(postgres_url)
    assert not any(audit(postgres_url, 60).values())


def test_the_audit_command_prints_a_table_and_its_exit_code_tells_the_result(
    database: Connection, postgres_url: str
) -> None:
    run = CliRunner(env={"POSTGRES_URL": postgres_url})
    clean = run.invoke(main, ["audit", "--grace", "0"])
    assert clean.exit_code == 0
    assert "ok   p3_stock_conserved" in clean.output
    database.execute("UPDATE payments SET amount = %s WHERE order_id = %s", (Decimal("128.99"), CONFIRMED))
    broken = run.invoke(main, ["audit", "--grace", "0"])
    assert broken.exit_code == 1
    assert "FAIL p2_charged_once" in broken.output
    assert CONFIRMED in broken.output
    database.execute("DROP TABLE outbox")
    unknown = run.invoke(main, ["audit", "--grace", "0"])
    assert unknown.exit_code == 2
    assert "FAIL" not in unknown.output
