"""The payment timers while a snapshot is held: they do not read the index entries of ended payments repeatedly (P5).

The tests count the index entries and pages that are read, because the time depends on the machine.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from orderstream.domain.payment import Voided
from orderstream.payment_worker.attempts import CLAIM_ROWS, SQL
from orderstream.postgres.connect import Connection, connect
from orderstream.worker import due_scan
from tests.integration.decisions.orders import row
from tests.support.payments import SCHEDULE, Payments, ScriptedProvider, payments
from tests.support.waiting import wait_until

DEAD = 20_000
PAGES_MAX = 60
ORDERS = (
    "INSERT INTO orders (id, user_id, amount, currency)"
    " SELECT %(prefix)s || number, 'u', 1, 'USD' FROM generate_series(1, %(rows)s) AS number"
)
PAYMENTS = (
    "INSERT INTO payments (order_id, state, next_attempt_at, decided_at)"
    " SELECT %(prefix)s || number, 'VOIDING', now() - %(ago)s * interval '1 s', now() - %(ago)s * interval '1 s'"
    " FROM generate_series(1, %(rows)s) AS number"
)


def _voiding(connection: Connection, rows: int, ago: float) -> None:
    """Insert VOIDING payments in one transaction, all with the same due time."""
    parameters = {"prefix": f"{uuid4()}-", "rows": rows, "ago": ago}
    connection.execute(ORDERS.encode(), parameters)
    connection.execute(PAYMENTS.encode(), parameters)


def _entries_read(connection: Connection, index: str) -> int:
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")
    (entries,) = row(connection, "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = %s", index)
    return int(entries)


def _pages(connection: Connection, statement: str, parameters: dict[str, Any]) -> int:
    """Run a statement, undo it, and return how many pages it read."""
    with connection.transaction(force_rollback=True):
        found = connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode(), parameters
        ).fetchone()
    assert found is not None
    plan = found[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that is ended at its time limit is repeated, and reads the entries again."""
    monkeypatch.setattr(due_scan, "SLICE_STATEMENT_SECONDS", 9.0)


@pytest.fixture
def provider() -> ScriptedProvider:
    """A provider that confirms every void."""
    return ScriptedProvider(void_answer=Voided())


@pytest.fixture
def worker(provider: ScriptedProvider) -> Iterator[Payments]:
    """A payment-worker that has just started, with room for more voids than one round claims."""
    with payments(provider, concurrency=10_000) as built:
        yield built


@pytest.mark.parametrize("index", ["payments_due_by_lane", "payments_voiding_since"])
def test_the_index_entries_of_ended_payments_are_not_read_repeatedly(
    worker: Payments, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    monkeypatch.setattr(due_scan, "SWEEP_PAUSE_SECONDS", 3_600)
    run = worker.run_timers if index == "payments_due_by_lane" else worker.attempts.measure
    with connect(postgres_url, "dump") as dump:
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        dump.execute("SELECT count(*) FROM payments")
        _voiding(connection, DEAD, ago=600)
        connection.execute("UPDATE payments SET state = 'VOIDED', next_attempt_at = NULL")
        reads = [_entries_read(connection, index)]
        for _ in range(10):
            run(connection)
            reads.append(_entries_read(connection, index))
        by_run = [after - before for before, after in pairwise(reads)]
        assert max(by_run) >= DEAD, "the entries are read once"
        assert sum(by_run) < 2 * DEAD


def test_a_claim_reads_few_pages_after_the_entries_of_ended_payments(
    worker: Payments, connection: Connection, postgres_url: str
) -> None:
    with connect(postgres_url, "dump") as dump:
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        dump.execute("SELECT count(*) FROM payments")
        _voiding(connection, DEAD, ago=600)
        connection.execute("UPDATE payments SET state = 'VOIDED', next_attempt_at = NULL")
        worker.run_timers(connection)
        (now,) = row(connection, "SELECT now()")
        part = next(worker.attempts._due["void"].ranges(now))
        claim = {"lane": "void", "upto": part.upto, "limit": CLAIM_ROWS, "push_seconds": 30, "oldest_seconds": 3_600}
        assert _pages(connection, SQL["claim_due"], claim | {"after": due_scan.FLOOR}) > 2 * PAGES_MAX
        assert _pages(connection, SQL["claim_due"], claim | {"after": part.after}) <= PAGES_MAX


def test_payments_with_the_same_due_time_are_all_claimed_without_a_sweep(
    worker: Payments, provider: ScriptedProvider, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of cancels schedules all its voids for the same time. One round claims a part of them."""
    monkeypatch.setattr(due_scan, "SWEEP_PAUSE_SECONDS", 3_600)
    assert not worker.run_timers(connection)
    _voiding(connection, 2 * CLAIM_ROWS + 1, ago=0)
    assert [worker.run_timers(connection) for _ in range(3)] == [True, True, False]
    assert len(set(provider.voided)) == 2 * CLAIM_ROWS + 1


def test_the_sweep_finds_a_payment_that_was_committed_late(
    worker: Payments, provider: ScriptedProvider, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due_scan, "SWEEP_PAUSE_SECONDS", 0)
    assert not worker.run_timers(connection)
    _voiding(connection, 1, ago=SCHEDULE.claim)
    wait_until(lambda: worker.run_timers(connection) or provider.voided, 20, "the sweep has found the payment")
