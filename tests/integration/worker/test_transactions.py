"""Records that another producer writes in a Kafka transaction block no order, and their markers are skipped (P5)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition

from orderstream.kafka.envelope import Received, encode
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from orderstream.worker import runner, subscription
from orderstream.worker.subscription import Subscription
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, Recorder
from tests.integration.worker.running import running
from tests.support.topics import end_offsets, offsets_of, publish_events
from tests.support.waiting import wait_until

_SECONDS = 60


@contextmanager
def _transaction(settings: Settings, name: str, records: int) -> Iterator[Producer]:
    """Write records to IN in a transaction. The caller ends it inside the block."""
    producer = Producer({"bootstrap.servers": settings.kafka_brokers, "transactional.id": name, "log_level": 0})
    producer.init_transactions(_SECONDS)
    producer.begin_transaction()
    for event in authorized(records):
        producer.produce(IN, encode(event), event.correlation_id)
    producer.flush(_SECONDS)
    yield producer


def _decided(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM decisions").fetchone()
    assert row is not None
    return int(row[0])


def test_an_open_transaction_blocks_no_order(settings: Settings, connection: Connection, group: str) -> None:
    with _transaction(settings, group, 20) as producer:
        publish_events(settings.kafka_brokers, authorized(20))
        with running(Recorder(group), settings):
            wait_until(lambda: _decided(connection) == 40, 20, "every order is decided")
        producer.abort_transaction(_SECONDS)


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
def test_the_offsets_move_past_the_marker_of_a_transaction(
    settings: Settings, connection: Connection, group: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(subscription, "MEASURE_SECONDS", 0.1)
    with running(Recorder(group), settings):
        with _transaction(settings, group, 20) as producer:
            getattr(producer, end)(_SECONDS)
        wait_until(
            lambda: offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN]),
            20,
            "the offsets are after the markers",
        )
        publish_events(settings.kafka_brokers, authorized(20))
        wait_until(lambda: _decided(connection) == 40, 20, "every order is decided")


def _wait_measured(own: Subscription) -> None:
    before = own._measured
    wait_until(lambda: own._measured > before, 20, "the lag is measured again")


def test_no_offset_moves_past_records_that_could_not_be_rewound(
    settings: Settings, connection: Connection, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Kafka refuses the seek, the consumer's position is ahead of records that are not decided."""
    monkeypatch.setattr(subscription, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(
        Subscription, "_offset", lambda _subscription, name, _partition, offset: TopicPartition(name, 99, offset)
    )
    before = offsets_of(settings.kafka_brokers, group, [IN])

    def fail(_connection: Connection, _batch: Sequence[Received]) -> None:
        raise psycopg.OperationalError("no answer")

    handler = Recorder(group, fail)
    publish_events(settings.kafka_brokers, authorized(5))
    with running(handler, settings) as loop:
        wait_until(lambda: sum(map(len, handler.batches)) == 5, 20, "every record is processed")
        for _ in range(5):
            _wait_measured(loop.runner._subscription)
        assert offsets_of(settings.kafka_brokers, group, [IN]) == before
    assert _decided(connection) == 0
