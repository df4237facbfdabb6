"""Refused records in PostgreSQL: they are kept with any bytes, counted, redriven, and deleted after a time (P9)."""

import threading
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import KafkaError

from orderstream.dead_letters import refused_records
from orderstream.dead_letters.refused_records import REASON_MAX_CHARACTERS, keep, measure, newest, redrive
from orderstream.domain.events import TOPICS, topic_of
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic
from orderstream.outbox_relay.relay import Relay
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from orderstream.telemetry import metrics
from orderstream.telemetry.setup import start
from orderstream.worker.runner import Runner
from tests.support.topics import Tap

UPDATED = topic_of("order.updated")
ANY_BYTES = [
    Publication(UPDATED, "key", "value", [("event-id", "1")]),
    Publication(UPDATED, b"\xff\x00", b"\x00\xff", [("x", b"\xff"), ("y", None), ("z", "\x00")]),
    Publication(dead_letter_topic("order-service"), None, None, []),
]


def _records(number: int) -> list[Publication]:
    return [Publication(UPDATED, str(uuid4()), b"{}", []) for _ in range(number)]


def test_records_with_any_bytes_are_kept_and_redriven_unchanged(settings: Settings, connection: Connection) -> None:
    keep(connection, "relay", [(record, "why") for record in [*ANY_BYTES, ANY_BYTES[0]]])
    assert len(newest(settings.postgres_url, 10)) == len(ANY_BYTES)
    assert all(record.text for record in newest(settings.postgres_url, 10))
    with Tap(settings.kafka_brokers, {record.topic for record in ANY_BYTES}) as tap:
        assert redrive(settings) == (len(ANY_BYTES), 0)
        letters = tap.count(len(ANY_BYTES))
    assert {(letter.key, letter.value) for letter in letters} == {
        (b"key", b"value"),
        (b"\xff\x00", b"\x00\xff"),
        (None, None),
    }
    assert newest(settings.postgres_url, 10) == []


def test_a_forged_record_is_shown_without_terminal_control_characters(
    settings: Settings, connection: Connection
) -> None:
    forged = Publication(UPDATED, "\x1b]0;key\x07\nforged line", "\x1b[2Jvalue", [("x\n", b"\x1b[8m")])
    keep(connection, "relay", [(forged, "why\r")])
    (record,) = newest(settings.postgres_url, 10)
    assert record.line.isprintable()
    assert record.text.replace("\n", "").isprintable()
    assert "forged line" in record.line


def test_the_counters_of_refused_records_exist_with_zero_before_the_first_refusal(settings: Settings) -> None:
    """A counter that appears only with its first refusal shows no increase, so that no alert fires."""
    Relay(settings, start("outbox-relay", settings), threading.Event())
    handler = InventoryHandler()
    Runner(handler, settings, start(handler.group, settings), threading.Event())
    shown = {
        (sample.labels["service"], sample.labels["topic"])
        for metric in metrics.REFUSED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    expected = {("outbox-relay", name) for name in TOPICS}
    expected |= {(handler.group, topic_of(name)) for name in handler.emits}
    assert shown >= expected | {(handler.group, dead_letter_topic(handler.group))}


def test_a_long_reason_of_a_refused_record_is_cut(settings: Settings, connection: Connection) -> None:
    keep(connection, "relay", [(ANY_BYTES[0], "r" * (REASON_MAX_CHARACTERS + 1))])
    (record,) = newest(settings.postgres_url, 10)
    assert record.reason == "r" * REASON_MAX_CHARACTERS


def test_a_redrive_sends_all_refused_records(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused_records, "REDRIVE_ROWS", 2)
    records = _records(5)
    keep(connection, "relay", [(record, "why") for record in records])
    with Tap(settings.kafka_brokers, [UPDATED]) as tap:
        assert redrive(settings) == (5, 0)
        assert {(letter.key or b"").decode() for letter in tap.count(5)} == {record.key for record in records}


def test_if_kafka_does_not_answer_a_redrive_loses_no_record(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_publisher: Publisher, records: list[Publication]) -> None:
        raise PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), len(records))

    monkeypatch.setattr(Publisher, "publish", fail)
    keep(connection, "relay", [(record, "why") for record in _records(3)])
    with pytest.raises(PublishError):
        redrive(settings)
    assert len(newest(settings.postgres_url, 10)) == 3


def test_refused_records_are_counted_and_deleted_after_their_retention(
    settings: Settings, connection: Connection
) -> None:
    keep(connection, "relay", [(record, "why") for record in _records(3)])
    connection.execute(
        "UPDATE refused_records SET refused_at = now() - interval '5 hours' WHERE record_id ="
        " (SELECT min(record_id) FROM refused_records)"
    )
    assert measure(connection, kept_hours=6) == 3
    assert measure(connection, kept_hours=4) == 2
    assert len(newest(settings.postgres_url, 10)) == 2


def test_a_redrive_skips_records_that_another_redrive_has_locked(settings: Settings, connection: Connection) -> None:
    keep(connection, "relay", [(record, "why") for record in _records(4)])
    connection.execute("UPDATE refused_records SET refused_at = now() - interval '5 hours'")
    with Tap(settings.kafka_brokers, [UPDATED]) as tap, connect(settings.postgres_url, "another") as another:
        with another.transaction():
            (held,) = another.execute("SELECT key FROM refused_records ORDER BY refused_at LIMIT 1 FOR UPDATE")
            assert redrive(settings) == (3, 0)
            assert held[0] not in {letter.key for letter in tap.count(3)}
            assert measure(connection, kept_hours=4) == 1
        assert measure(connection, kept_hours=4) == 0


def test_two_processes_can_keep_the_same_records_at_once_without_a_deadlock(
    settings: Settings, connection: Connection
) -> None:
    """Rows are locked in the order of their ids, so that two batches with the same records cannot deadlock."""
    records = _records(50)
    errors: list[Exception] = []

    def keep_all(ordered: list[Publication]) -> None:
        with connect(settings.postgres_url, "test") as own:
            for _ in range(20):
                try:
                    keep(own, "relay", [(record, "why") for record in ordered])
                except psycopg.Error as error:
                    errors.append(error)

    threads = [threading.Thread(target=keep_all, args=(ordered,)) for ordered in (records, records[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert {record.times for record in newest(settings.postgres_url, 100)} == {40}
    row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row == (0,)
