"""The time up to which the workers have consumed, calculated from the ends of the topics and the committed offsets."""

from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from orderstream.domain.events import topic_of
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.errors import KafkaRefusedError
from orderstream.order_service.consumed import ASK_SECONDS, POINTS_MAX, READERS, Consumed, Offsets
from orderstream.order_service.handler import OrderHandler
from orderstream.payment_worker.handler import PaymentHandler

START = datetime(2026, 1, 1, tzinfo=UTC)
PLACE = ("order.created.v1", 0)


def _at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def _offsets(end: int, taken: int) -> Offsets:
    return Offsets({PLACE: end}, {PLACE: taken})


def _consumed() -> Consumed:
    return Consumed(lambda: Offsets({}, {}))


def test_the_readers_are_those_of_the_handlers() -> None:
    handlers: list[Any] = [PaymentHandler, InventoryHandler, OrderHandler]
    assert {group: {topic_of(event) for event in events} for group, events in READERS.items()} == {
        handler.group: set(handler.topics) for handler in handlers
    }


def test_without_a_backlog_all_published_events_are_consumed() -> None:
    consumed = _consumed()
    consumed.note(_at(0), _offsets(10, 10))
    assert consumed.until == _at(0)


def test_with_a_backlog_the_time_is_known_after_its_end_is_passed() -> None:
    consumed = _consumed()
    for second in range(10):
        consumed.note(_at(second), _offsets(100 * second + 100, 50))
        assert consumed.until is None
    consumed.note(_at(10), _offsets(1_100, 399))
    assert consumed.until == _at(2)
    consumed.note(_at(11), _offsets(1_200, 400))
    assert consumed.until == _at(3)
    consumed.note(_at(12), _offsets(1_200, 1_200))
    assert consumed.until == _at(12)


def test_a_topic_that_was_created_again_delays_nothing() -> None:
    consumed = _consumed()
    consumed.note(_at(0), _offsets(1_000, 0))
    assert consumed.until is None
    consumed.note(_at(1), _offsets(3, 3))
    assert consumed.until == _at(1)
    consumed.note(_at(2), Offsets({}, {}))
    assert consumed.until == _at(2)


def test_a_new_topic_without_a_reader_delays_the_events_published_after_it() -> None:
    consumed = _consumed()
    consumed.note(_at(0), Offsets({}, {}))
    consumed.note(_at(1), _offsets(5, 0))
    assert consumed.until == _at(0)


def test_during_a_long_backlog_few_points_are_kept_and_one_of_them_is_passed() -> None:
    consumed = _consumed()
    for second in range(5_000):
        consumed.note(_at(second), _offsets(second + 1, 0))
        assert len(consumed._points) <= POINTS_MAX
    consumed.note(_at(5_000), _offsets(5_001, 2_500))
    assert consumed.until is not None
    assert _at(1_000) < consumed.until < _at(2_500)


class Row:
    """A connection that returns the time up to which the outbox is published."""

    def execute(self, _statement: str) -> "Row":
        return self

    def fetchone(self) -> tuple[datetime]:
        return (START,)


def test_kafka_is_asked_at_most_once_in_each_interval() -> None:
    now, asked = 0.0, 0

    def ask() -> Offsets:
        nonlocal asked
        asked += 1
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) if asked > 1 else KafkaRefusedError

    consumed = Consumed(ask, lambda: now)
    connection: Any = Row()
    for expected in (1, 2):
        assert not consumed.is_fresh
        consumed.refresh(connection)
        assert (consumed.is_fresh, consumed.until, asked) == (True, None, expected)
        now += ASK_SECONDS
