"""A worker as a process: if it is killed at any point, another worker takes over; after SIGTERM it drains (P5, P7)."""

import signal
from collections.abc import Sequence
from datetime import datetime

import pytest

from orderstream.domain.events import Event, Payload
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, Recorder
from tests.integration.worker.running import process, running
from tests.integration.worker.victim import GATE
from tests.support.topics import Letter, Tap, end_offsets, offsets_of, publish_events
from tests.support.waiting import wait_until

START_SECONDS = 60.0
"""Longest time in which a process starts, joins its group and receives a batch."""
LONG_SESSION = {"session.timeout.ms": "120000"}
"""A group waits this long for a member that has not left it: longer than any wait of these tests."""
VICTIM = "tests.integration.worker.victim"
SHORT_SESSION = {"session.timeout.ms": "6000"}
"""The shortest session timeout that a broker allows: the time that a group waits for a killed member."""


def _by_order(letters: Sequence[Letter]) -> dict[str, set[bytes | None]]:
    values: dict[str, set[bytes | None]] = {}
    for letter in letters:
        values.setdefault(letter.event().correlation_id, set()).add(letter.value)
    return values


@pytest.mark.parametrize("point", ["before-publishing", "before-offsets"])
def test_after_kill_9_no_order_is_lost_or_decided_twice(
    settings: Settings, connection: Connection, group: str, point: str
) -> None:
    settings = settings.model_copy(update={"kafka_options": SHORT_SESSION})
    before = offsets_of(settings.kafka_brokers, group, [IN])
    events = authorized(50)
    publish_events(settings.kafka_brokers, events)
    with Tap(settings.kafka_brokers, [OUT]) as tap:
        with process(VICTIM, settings, group, point) as victim:
            assert victim.ends(START_SECONDS) == -signal.SIGKILL
        decided: dict[str, datetime] = dict(connection.execute("SELECT order_id, decided_at FROM decisions").fetchall())
        assert decided, "it died after its commit"
        assert offsets_of(settings.kafka_brokers, group, [IN]) == before
        published = {letter.event().correlation_id for letter in tap.so_far()}
        assert published == (set() if point == "before-publishing" else set(decided))
        with running(Recorder(group), settings):
            letters = tap.until(lambda seen: len({letter.key for letter in seen}) == 50, 30, "all events are published")
            wait_until(
                lambda: offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN]),
                20,
                "every offset is committed",
            )
            letters = tap.so_far()
    values = _by_order(letters)
    assert set(values) == {event.correlation_id for event in events}
    assert {len(different) for different in values.values()} == {1}, (
        "a repeated event differs from the recorded decision"
    )
    times = {letter.event().correlation_id: letter.event().occurred_at for letter in letters}
    assert {order_id: times[order_id] for order_id in decided} == decided


def test_sigterm_finishes_the_batch_and_leaves_the_group(
    settings: Settings, connection: Connection, group: str
) -> None:
    events: list[Event[Payload]] = authorized(5)
    publish_events(settings.kafka_brokers, events)
    stays = settings.model_copy(update={"kafka_options": LONG_SESSION})
    connection.execute("SELECT pg_advisory_lock(%s)", (GATE,))
    with Tap(settings.kafka_brokers, [OUT]) as tap, process(VICTIM, stays, group, "slowly") as worker:
        try:
            wait_until(lambda: _waits_at_gate(connection), START_SECONDS, "it is processing a batch")
            worker.send_signal(signal.SIGTERM)
            assert worker.poll() is None
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
        assert worker.ends(settings.drain_timeout_seconds) == 0
        answered = {letter.event().correlation_id for letter in tap.so_far()}
    (rows,) = connection.execute("SELECT count(*) FROM decisions").fetchall()
    assert rows == (len(answered),)
    assert answered
    ends, committed = end_offsets(settings.kafka_brokers, [IN]), offsets_of(settings.kafka_brokers, group, [IN])
    assert sum(ends.values()) - sum(committed.values()) == len(events) - len(answered)
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group), settings):
        publish_events(settings.kafka_brokers, authorized(1))
        tap.until(lambda seen: seen, 20, "a new member takes over at once, because the old one has left the group")


def _waits_at_gate(connection: Connection) -> bool:
    row = connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return row is not None


def test_a_drain_that_takes_too_long_ends_with_exit_code_1(
    settings: Settings, connection: Connection, group: str
) -> None:
    settings = settings.model_copy(update={"drain_timeout_seconds": 0.5})
    before = offsets_of(settings.kafka_brokers, group, [IN])
    publish_events(settings.kafka_brokers, authorized(5))
    connection.execute("SELECT pg_advisory_lock(%s)", (GATE,))
    with process(VICTIM, settings, group, "slowly") as worker:
        wait_until(lambda: _waits_at_gate(connection), START_SECONDS, "it is processing a batch")
        worker.send_signal(signal.SIGTERM)
        assert worker.ends() == 1
    assert offsets_of(settings.kafka_brokers, group, [IN]) == before


def test_a_worker_with_a_permanent_error_exits_with_code_1(
    settings: Settings, connection: Connection, group: str
) -> None:
    publish_events(settings.kafka_brokers, authorized(1))
    connection.execute("DROP TABLE decisions")
    with process(VICTIM, settings, group, "nowhere") as worker:
        assert worker.ends(START_SECONDS) == 1


def test_after_a_failure_the_process_ends_although_a_thread_hangs(
    settings: Settings, connection: Connection, group: str
) -> None:
    settings = settings.model_copy(update={"drain_timeout_seconds": 0.5})
    publish_events(settings.kafka_brokers, authorized(1))
    with process(VICTIM, settings, group, "hung") as worker:
        assert worker.ends(START_SECONDS) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_sigint_end_the_process(settings: Settings, group: str, number: signal.Signals) -> None:
    publish_events(settings.kafka_brokers, authorized(1))
    with Tap(settings.kafka_brokers, [OUT]) as tap, process(VICTIM, settings, group, "nowhere") as worker:
        tap.count(1, START_SECONDS)
        worker.send_signal(number)
        assert worker.ends() == 0
    assert offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN])
