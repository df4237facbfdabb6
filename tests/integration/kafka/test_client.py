"""What the Kafka clients hold in memory is bounded in bytes, on the way in and on the way out."""

import json
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from orderstream.domain.events import topic
from orderstream.kafka import client
from orderstream.kafka.client import Publication, Publisher
from orderstream.settings import Settings
from tests.topics import Tap, end_offsets, publish
from tests.waiting import wait_until

NOBODYS = topic("order.updated")
MIB = 2**20
LARGE = bytes(900_000)


def test_no_more_is_fetched_ahead_than_may_be_and_what_was_under_way(settings: Settings) -> None:
    fetched: list[int] = []

    def note(figures: str) -> None:
        partitions = json.loads(figures)["topics"].get(NOBODYS, {"partitions": {}})["partitions"]
        fetched.extend(one["fetchq_size"] for one in partitions.values())

    noting = {"kafka_options": {"statistics.interval.ms": "20", "stats_cb": note}}
    consumer = client.consumer(settings.model_copy(update=noting), "fetching-ahead")
    before = end_offsets(settings.kafka_brokers, [NOBODYS])
    publish(settings.kafka_brokers, [(NOBODYS, str(number).encode(), LARGE) for number in range(40)])
    try:
        consumer.assign([TopicPartition(*place, offset) for place, offset in before.items()])
        taken: list[object] = []

        def take_one() -> bool:
            if message := consumer.poll(0):
                assert message.error() is None
                taken.append(message.offset())
            return len(taken) == 40

        wait_until(take_one, 30, "everything is fetched")
    finally:
        consumer.close()
    limit = 8_192 * 1_024
    assert limit // 2 < max(fetched) <= limit + len(before) * MIB


def test_a_sender_whose_queue_is_full_waits_for_acknowledgements(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    class Noting(Producer):
        def produce(self, *record: Any, **options: Any) -> None:
            try:
                super().produce(*record, **options)
            except BufferError:
                refused.append(record[0])
                raise

    monkeypatch.setattr(client, "Producer", Noting)
    small = settings.model_copy(update={"kafka_options": {"queue.buffering.max.kbytes": "2048"}})
    with Tap(settings.kafka_brokers, [NOBODYS]) as tap:
        Publisher(small, "test").publish([Publication(NOBODYS, str(number), LARGE, []) for number in range(20)])
        tap.count(20)
    assert refused
