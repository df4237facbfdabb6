"""The memory of the Kafka clients is limited in bytes, for records received and for records sent."""

import json
import time
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from orderstream.domain.events import topic_of
from orderstream.kafka import client, publisher
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.settings import Settings
from tests.support.topics import Tap, end_offsets, publish, topic_settings
from tests.support.waiting import wait_until

NOBODYS = topic_of("order.updated")
MIB = 2**20
LARGE = bytes(900_000)


def test_the_records_fetched_ahead_are_limited_to_the_queue_and_one_running_fetch(settings: Settings) -> None:
    fetched: list[int] = []
    limit = 8_192 * 1_024

    def note(figures: str) -> None:
        partitions = json.loads(figures)["topics"].get(NOBODYS, {"partitions": {}})["partitions"]
        fetched.extend(partition["fetchq_size"] for partition in partitions.values())

    noting = {"kafka_options": {"statistics.interval.ms": "20", "stats_cb": note}}
    consumer = client.consumer(settings.model_copy(update=noting), "fetching-ahead")
    before = end_offsets(settings.kafka_brokers, [NOBODYS])
    publish(settings.kafka_brokers, [(NOBODYS, str(number).encode(), LARGE) for number in range(40)])
    try:
        consumer.assign([TopicPartition(*place, offset) for place, offset in before.items()])
        taken: list[object] = []
        next_at = [0.0]

        def take_one() -> bool:
            # Slowly until the queue has been filled, so that a busy broker can fill it.
            if max(fetched, default=0) <= limit // 2 and time.monotonic() < next_at[0]:
                return False
            next_at[0] = time.monotonic() + 0.1
            if message := consumer.poll(0):
                assert message.error() is None
                taken.append(message.offset())
            return len(taken) == 40

        wait_until(take_one, 30, "everything is fetched")
    finally:
        consumer.close()
    assert limit // 2 < max(fetched) <= limit + len(before) * MIB


def test_a_producer_with_a_full_queue_waits_for_acknowledgements(
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


class _Requests:
    """Counts the produce requests of a publisher, by the statistics of librdkafka."""

    def __init__(self, settings: Settings) -> None:
        self._seen: dict[str, int] = {}
        options = {"statistics.interval.ms": "20", "stats_cb": self._note}
        self.publisher = Publisher(settings.model_copy(update={"kafka_options": options}), "test")

    def _note(self, figures: str) -> None:
        told = json.loads(figures)
        self._seen[told["name"]] = sum(broker["req"].get("Produce", 0) for broker in told["brokers"].values())

    def count(self) -> int:
        """Return the number of requests so far."""
        self._seen.clear()

        def all_told() -> bool:
            for producer in self.publisher._producers.values():
                producer.poll(0)
            return len(self._seen) == len(self.publisher._producers)

        wait_until(all_told, 10, "each producer has told its figures")
        return sum(self._seen.values())


@pytest.mark.parametrize("limit", ["10000", "50000"])
def test_a_topic_that_accepts_only_small_batches_needs_few_requests(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Without batches, 500 records would be 500 requests, each after the answer to the previous one."""
    records = [Publication(NOBODYS, f"key-{number}", bytes(600), []) for number in range(500)]
    records[250] = Publication(NOBODYS, "large", bytes(60_000), [])
    # After this time the publisher would leave the rest to the next call.
    monkeypatch.setattr(publisher, "RESEND_SECONDS", 30)
    requests, before = _Requests(settings), 0
    with topic_settings(settings.kafka_brokers, NOBODYS, {"max.message.bytes": limit}):
        with Tap(settings.kafka_brokers, [NOBODYS]) as tap:
            for _ in range(2):
                before = requests.count()
                with pytest.raises(PublishError) as caught:
                    requests.publisher.publish(records)
                assert set(caught.value.refused) == {250}
                assert not caught.value.unacknowledged
            tap.count(2 * 499)
        assert requests.count() - before <= len(records) // 2
