"""The search of one order's records in Kafka: by partition and time, and within its limits."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Thread
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from orderstream.console.orders import record_search
from orderstream.console.orders.record_search import Found, RecordSearch, TopicSearch, Window, windows_around
from orderstream.domain.events import TOPICS, topic_of
from orderstream.kafka.partitions import partition_of
from orderstream.kafka.topics import ensure_topics
from orderstream.settings import Settings
from tests.integration.console.orders.patience import patience
from tests.support.topics import publish
from tests.support.waiting import wait_until

UPDATED = topic_of("order.updated")
ALWAYS = Window(datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
FILLER = b"x" * 50


@pytest.fixture
def search(settings: Settings) -> Iterator[RecordSearch]:
    searching = RecordSearch(settings)
    with patience():
        yield searching
    searching.close()


def key() -> bytes:
    return str(uuid4()).encode()


def places(found: Found) -> list[tuple[str, int, int]]:
    return [(record.topic, record.partition, record.offset) for record in found.records]


def topic(found: Found, name: str = UPDATED) -> TopicSearch:
    return next(searched for searched in found.topics if searched.topic == name)


def recorded_at(brokers: str, place: tuple[str, int, int]) -> datetime:
    """Return the time that Kafka gave to a record."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "times"})
    try:
        consumer.assign([TopicPartition(*place)])
        message = consumer.poll(10)
        assert message is not None
        return datetime.fromtimestamp(int(message.timestamp()[1]) / 1_000, UTC)
    finally:
        consumer.close()


def test_the_records_of_a_key_are_found_in_all_topics(search: RecordSearch, settings: Settings) -> None:
    order = key()
    written = publish(settings.kafka_brokers, [(name, order, b"{}") for name in TOPICS], {"event-id": b"1"})
    publish(settings.kafka_brokers, [(name, key(), b"{}") for name in TOPICS])
    first = min(recorded_at(settings.kafka_brokers, place) for place in written)
    found = search.around(order, [Window(first, first + timedelta(minutes=5))])
    assert places(found) == written
    assert {searched.state for searched in found.topics} == {"complete"}
    assert found.records[0].headers == [("event-id", b"1")]
    assert found.error is None


def test_records_behind_50_000_others_are_found_by_their_time(search: RecordSearch, settings: Settings) -> None:
    """The order's partition holds the others before it. A search from the begin stops long before the order."""
    order = key()
    others = [other for other in (key() for _ in range(400)) if partition_of(other, 4) == partition_of(order, 4)]
    for _ in range(10):
        publish(settings.kafka_brokers, [(UPDATED, others[n % len(others)], FILLER) for n in range(5_000)])
    (place,) = publish(settings.kafka_brokers, [(UPDATED, order, b"{}")])
    assert place[2] >= 50_000
    at = recorded_at(settings.kafka_brokers, place)
    found = search.around(order, [Window(at, at + timedelta(seconds=1))])
    assert places(found) == [place]
    assert topic(found).state == "complete"
    stopped = search.around(order, [ALWAYS])
    assert topic(stopped).state == "stopped"
    assert topic(stopped).records == record_search.RECORDS_MAX
    assert topic(stopped).sentence.startswith(f"Stopped in {UPDATED}: searched 5,000 records until ")


def test_a_search_that_stopped_goes_on_from_its_offset(
    search: RecordSearch, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_search, "MATCHES_MAX", 2)
    order = key()
    written = publish(settings.kafka_brokers, [(UPDATED, order, FILLER)] * 5)
    seen, offset = [], written[0][2]
    states = []
    for _ in range(3):
        found = search.onwards(order, UPDATED, offset)
        seen += places(found)
        states.append(topic(found).state)
        offset = topic(found).next_offset or 0
    assert seen == written
    assert states[:2] == ["stopped", "stopped"]
    assert states[2] == "complete"


def test_the_search_goes_on_behind_its_windows_for_an_expected_event(search: RecordSearch, settings: Settings) -> None:
    order = key()
    (early, late) = publish(settings.kafka_brokers, [(UPDATED, order, b"1"), (topic_of("order.created"), order, b"2")])
    at = recorded_at(settings.kafka_brokers, early)
    before = [Window(at - timedelta(minutes=2), at - timedelta(minutes=1))]
    assert places(search.around(order, before)) == []
    assert places(search.around(order, before, {late[0]})) == [late]


def test_a_search_is_limited_in_bytes_and_in_time(
    search: RecordSearch, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = key()
    (place, *_) = publish(settings.kafka_brokers, [(UPDATED, order, b"x" * 100_000)] * 3)
    monkeypatch.setattr(record_search, "TOPIC_MAX_BYTES", 150_000)
    found = search.onwards(order, UPDATED, place[2])
    assert (topic(found).state, len(found.records)) == ("stopped", 2)
    monkeypatch.setattr(record_search, "SEARCH_SECONDS", 0.0)
    found = search.onwards(order, UPDATED, place[2])
    assert (topic(found).state, topic(found).next_offset) == ("stopped", place[2])


def test_offsets_outside_of_the_topic_find_nothing(search: RecordSearch, settings: Settings) -> None:
    order = key()
    publish(settings.kafka_brokers, [(UPDATED, order, b"{}")])
    found = search.onwards(order, UPDATED, 2**62)
    assert (places(found), topic(found).state) == ([], "complete")


def test_topics_that_kafka_does_not_have_are_named(settings: Settings) -> None:
    other = RecordSearch(settings.model_copy(update={"kafka_topic_prefix": f"none-{uuid4()}."}))
    with patience():
        found = other.around(key(), [ALWAYS])
    other.close()
    assert {searched.state for searched in found.topics} == {"missing"}
    assert found.topics[0].sentence == f"Kafka has no topic {TOPICS[0]}."


def test_without_kafka_the_search_says_so_and_does_not_wait_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_search, "ANSWER_SECONDS", 0.3)
    unreachable = RecordSearch(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}))
    first = unreachable.around(key(), [ALWAYS])
    monkeypatch.setattr(unreachable, "_client", None)
    again = unreachable.around(key(), [ALWAYS])
    assert first.error is not None
    assert first.error.startswith("Kafka did not answer: ")
    assert again == first


def test_several_threads_share_the_consumer(search: RecordSearch, settings: Settings) -> None:
    orders = [key() for _ in range(4)]
    written = publish(settings.kafka_brokers, [(UPDATED, order, b"{}") for order in orders])
    found: dict[bytes, list[tuple[str, int, int]]] = {}

    def look(order: bytes, offset: int) -> None:
        found[order] = places(search.onwards(order, UPDATED, offset))

    threads = [Thread(target=look, args=(order, place[2])) for order, place in zip(orders, written, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {order: [place] for order, place in zip(orders, written, strict=True)}


def test_an_idle_consumer_is_closed_and_opened_again(search: RecordSearch) -> None:
    search.around(key(), [])
    assert not search.close_if_idle()
    assert search.close_if_idle(0.0)
    assert search.around(key(), []).error is None


def test_windows_that_overlap_are_merged_and_limited() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    (merged,) = windows_around([at, at + timedelta(seconds=5), at + timedelta(seconds=1)])
    assert merged == Window(at - record_search.BEFORE, at + timedelta(seconds=5) + record_search.AFTER)
    many = windows_around([at + timedelta(minutes=number) for number in range(100)])
    assert len(many) == record_search.WINDOWS_MAX
    assert many[-1].until == at + timedelta(minutes=99) + record_search.AFTER


def test_removed_records_and_a_topic_that_was_created_again_are_told(settings: Settings) -> None:
    """Retention has removed the first records of a topic. Later the topic is created again, and its offsets restart."""
    prefixed = settings.model_copy(update={"kafka_topic_prefix": f"story-{uuid4()}.", "kafka_partitions": 1})
    ensure_topics(prefixed)
    name = prefixed.kafka_topic_prefix + UPDATED
    admin = AdminClient({"bootstrap.servers": settings.kafka_brokers})
    order, searching = key(), RecordSearch(prefixed)
    with patience():
        publish(settings.kafka_brokers, [(name, order, b"1"), (name, key(), b"2"), (name, order, b"3")])
        for removal in admin.delete_records([TopicPartition(name, 0, 2)]).values():
            removal.result(60)
        wait_until(
            # Kafka announces the leaders of new topics a moment after it has created them.
            lambda: places(searching.around(order, [ALWAYS])) == [(UPDATED, 0, 2)],
            60,
            "the record that is left is read",
        )
        found = searching.around(order, [ALWAYS])
        assert (topic(found).first_offset, topic(found).state) == (2, "complete")
        for deletion in admin.delete_topics([name]).values():
            deletion.result(60)
        wait_until(lambda: topic(searching.around(order, [ALWAYS])).state == "missing", 60, "the topic is gone")
        ensure_topics(prefixed)
        (again,) = publish(settings.kafka_brokers, [(name, order, b"4")])
        wait_until(
            lambda: places(searching.around(order, [ALWAYS])) == [(UPDATED, 0, again[2])], 60, "the new topic is read"
        )
        assert topic(searching.around(order, [ALWAYS])).first_offset == 0
    searching.close()
