"""The outbox while another session holds a snapshot: no statement reads the dead rows, and no row is lost (P1, P5).

The tests count the pages that a statement reads, because its time depends on the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from orderstream.api_gateway.orders import backpressure as outbox_bound
from orderstream.domain.events import topic_of
from orderstream.kafka.envelope import encode
from orderstream.outbox_relay import position, relay
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.settings import Settings
from tests.integration.decisions.orders import created
from tests.integration.outbox_relay.running import running
from tests.support.topics import Tap
from tests.support.waiting import wait_until

CREATED = topic_of("order.created")
DEAD_ROWS = 100_000
AT_ONCE = 10_000
PAGES_MAX = 60
"""The pages that a statement may read: the index paths to a few rows."""
INSERT = "INSERT INTO outbox (topic, order_id, event_id, value) VALUES (%s, %s, %s, %s)"


@contextmanager
def _snapshot(postgres_url: str) -> Iterator[None]:
    """Hold a snapshot during the block, as pg_dump does."""
    with connect(postgres_url, "dump") as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        holder.execute("SET idle_in_transaction_session_timeout = 0")
        holder.execute("SELECT count(*) FROM outbox")
        yield


def _leave_dead_rows(connection: Connection) -> None:
    for _ in range(0, DEAD_ROWS, AT_ONCE):
        connection.execute(
            "INSERT INTO outbox (topic, order_id, event_id, value)"
            " SELECT 't', n, gen_random_uuid(), '' FROM generate_series(1, %s) AS n",
            (AT_ONCE,),
        )
    connection.execute("SET statement_timeout = 0")
    connection.execute("DELETE FROM outbox WHERE topic = 't'")


def _pages(connection: Connection, statement: str, parameters: dict[str, Any]) -> int:
    """Run a statement, undo it, and return how many pages it read."""
    with connection.transaction(force_rollback=True):
        row = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode(), parameters).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    pages: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return pages


def _floor(connection: Connection) -> int:
    row = connection.execute("SELECT id FROM outbox_floor").fetchone()
    assert row is not None
    floor: int = row[0]
    return floor


def test_no_statement_reads_dead_rows_that_a_relay_has_passed(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MEASURE_SECONDS", 0.05)
    with _snapshot(settings.postgres_url):
        _leave_dead_rows(connection)
        _assert_few_pages(settings, connection)


def _assert_few_pages(settings: Settings, connection: Connection) -> None:
    claim = {"upto": position.ID_MAX, "limit": relay.BATCH_ROWS, "bytes": relay.BATCH_BYTES}
    exceeds = {"limit": 100_000}
    assert _pages(connection, relay.SQL["claim"], claim | {"after": 0}) > 5 * PAGES_MAX
    assert _pages(connection, outbox_bound.SQL["outbox_exceeds"], exceeds) > 5 * PAGES_MAX
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        wait_until(lambda: _floor(connection) >= DEAD_ROWS, 20, "the relay has passed the dead rows")
        for _ in range(20):
            with connection.transaction():
                append(connection, [OutboxRow(created(str(uuid4())))])
        tap.count(20)
    low = _floor(connection)
    assert _pages(connection, relay.SQL["claim"], claim | {"after": low}) <= PAGES_MAX
    assert _pages(connection, relay.SQL["depth"], {"low": low}) <= PAGES_MAX
    assert _pages(connection, outbox_bound.SQL["outbox_exceeds"], exceeds) <= PAGES_MAX


def test_a_starting_relay_reads_dead_rows_in_slices(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new relay does not know where dead rows are. A statement that reads all of them may reach its time limit."""
    monkeypatch.setattr(position, "SLICE_SECONDS", 0)
    parts: list[position.Range] = []
    claimed = position.Position.claimed

    def note(self: position.Position, part: position.Range, *arguments: Any, **named: Any) -> None:
        parts.append(part)
        claimed(self, part, *arguments, **named)

    monkeypatch.setattr(position.Position, "claimed", note)
    events = [created(str(uuid4())) for _ in range(2)]
    with _snapshot(settings.postgres_url), Tap(settings.kafka_brokers, [CREATED]) as tap:
        with connection.transaction():
            append(connection, [OutboxRow(events[0])])
        _leave_dead_rows(connection)
        with connection.transaction():
            append(connection, [OutboxRow(events[1])])
        with running(settings):
            assert [letter.event() for letter in sorted(tap.count(2), key=lambda letter: letter.event().id)] == sorted(
                events, key=lambda event: event.id
            )
    walked = [part for part in parts if part.upto <= DEAD_ROWS + 2]
    assert len(walked) > DEAD_ROWS // position.SLICE_FIRST_IDS
    assert max(part.upto - part.after for part in walked) <= position.SLICE_FIRST_IDS


def test_the_sweep_finds_a_row_that_was_committed_late(
    settings: Settings, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are two rows: one from before the start of the relay, and one behind which the relay has claimed since."""
    monkeypatch.setattr(position, "LAG_SECONDS", 0.05)
    monkeypatch.setattr(relay, "MEASURE_SECONDS", 0.05)
    late = [created(str(uuid4())) for _ in range(2)]

    def insert(tx: Connection, number: int) -> None:
        event = late[number]
        tx.execute(INSERT, (CREATED, event.correlation_id, event.id, encode(event).decode()))

    with (
        Tap(settings.kafka_brokers, [CREATED]) as tap,
        connect(postgres_url, "early") as early,
        connect(postgres_url, "slow") as slow,
    ):
        early.execute("BEGIN")
        insert(early, 0)
        with running(settings):
            slow.execute("BEGIN")
            insert(slow, 1)
            with connection.transaction():
                append(connection, [OutboxRow(created(str(uuid4()))) for _ in range(3)])
            tap.count(3)
            wait_until(lambda: _floor(connection) >= 5, 20, "the relay has passed both ids")
            early.execute("COMMIT")
            slow.execute("COMMIT")
            letters = tap.count(5)
    assert {event.id for event in late} <= {letter.event().id for letter in letters}


def test_the_relay_finds_new_rows_after_the_ids_of_the_outbox_restart_at_1(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(position, "LAG_SECONDS", 0.05)
    monkeypatch.setattr(relay, "MEASURE_SECONDS", 0.05)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        with connection.transaction():
            append(connection, [OutboxRow(created(str(uuid4()))) for _ in range(5)])
        tap.count(5)
        wait_until(lambda: _floor(connection) >= 5, 20, "the relay has passed the ids")
        connection.execute("TRUNCATE outbox RESTART IDENTITY")
        with connection.transaction():
            append(connection, [OutboxRow(created(str(uuid4())))])
        tap.count(6)
        wait_until(lambda: _floor(connection) < 5, 20, "the floor is reset")
