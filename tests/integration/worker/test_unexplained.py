"""An unknown error of Postgres blocks no other order, and is charged to a record only if others succeed (P9)."""

from collections.abc import Sequence

import pytest

from orderstream.kafka.envelope import Received
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from orderstream.worker.runner import UNKNOWN_RETRIES
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, Recorder
from tests.integration.worker.running import running
from tests.support.contracts import assert_dead_letter_headers
from tests.support.topics import Tap, end_offsets, offsets_of, publish_events
from tests.support.waiting import wait_until

_RAISE = """
CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {condition} THEN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF;
    RETURN NEW;
END $$
"""
_TRIGGER = """
CREATE OR REPLACE TRIGGER no BEFORE INSERT ON decisions FOR EACH ROW EXECUTE FUNCTION no()
"""


def _raise_on(connection: Connection, condition: str, sqlstate: str = "P0001") -> None:
    connection.execute(_RAISE.format(condition=condition, sqlstate=sqlstate).encode())
    connection.execute(_TRIGGER.encode())


def _decided(connection: Connection) -> set[str]:
    return {order_id for (order_id,) in connection.execute("SELECT order_id FROM decisions")}


def _wait_caught_up(settings: Settings, group: str) -> None:
    wait_until(
        lambda: offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN]),
        20,
        "every offset is committed",
    )


@pytest.mark.parametrize("sqlstate", ["P0001", "XX000", "XX001", "38000", "54001"])
def test_an_order_that_causes_an_unknown_error_is_a_dead_letter_and_blocks_no_other(
    settings: Settings, connection: Connection, group: str, sqlstate: str
) -> None:
    events = authorized(30)
    bad = events[7].correlation_id
    _raise_on(connection, f"NEW.order_id = '{bad}'", sqlstate)
    publish_events(settings.kafka_brokers, events)
    with Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap, running(Recorder(group), settings):
        letters = tap.count(30)
        _wait_caught_up(settings, group)
        # The record is retried alone. There is no other record whose success would show that it is at fault.
        publish_events(settings.kafka_brokers, [events[7]])
        _wait_caught_up(settings, group)
        tap.count(30)
    (dead,) = [letter for letter in letters if letter.topic == dead_letter_topic(group)]
    assert (dead.key or b"").decode() == bad
    assert assert_dead_letter_headers(dead.headers)["dlq-reason"] == "FAILED"
    assert _decided(connection) == {event.correlation_id for event in events} - {bad}


def test_a_transient_unknown_error_makes_no_dead_letter(settings: Settings, group: str) -> None:
    tries: list[int] = []

    def fail_at_first(tx: Connection, batch: Sequence[Received]) -> None:
        tries.append(len(batch))
        if len(tries) <= UNKNOWN_RETRIES:
            tx.execute(b"DO $$ BEGIN RAISE SQLSTATE 'XX000'; END $$", prepare=False)

    publish_events(settings.kafka_brokers, authorized(2))
    topics, handler = [OUT, dead_letter_topic(group)], Recorder(group, fail_at_first)
    with Tap(settings.kafka_brokers, topics) as tap, running(handler, settings):
        letters = tap.until(lambda seen: len({letter.key for letter in seen}) == 2, 20, "both events are published")
    assert {letter.topic for letter in letters} == {OUT}


@pytest.mark.parametrize("orders", [1, 30])
def test_an_unknown_error_of_every_order_makes_no_dead_letter(
    settings: Settings, connection: Connection, group: str, orders: int
) -> None:
    """The cause vanishes between two attempts, after one that has tried each record alone."""
    attempts: list[int] = []

    def note(_connection: Connection, batch: Sequence[Received]) -> None:
        attempts.append(len(batch))
        if attempts.count(max(attempts)) == UNKNOWN_RETRIES + 2:
            _raise_on(connection, "FALSE")

    _raise_on(connection, "TRUE")
    events = authorized(orders)
    publish_events(settings.kafka_brokers, events)
    topics, handler = [OUT, dead_letter_topic(group)], Recorder(group, note)
    with Tap(settings.kafka_brokers, topics) as tap, running(handler, settings):
        letters = tap.count(orders)
        _wait_caught_up(settings, group)
    assert {letter.topic for letter in letters} == {OUT}
    assert len(_decided(connection)) == orders
