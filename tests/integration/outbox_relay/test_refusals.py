"""The relay and a Kafka that permanently refuses rows: the relay keeps them with the reason and publishes the others
(P1, P9)."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError, Producer
from msgspec import structs

from orderstream.cli import main
from orderstream.dead_letters.refused_records import newest
from orderstream.domain.events import Event, Item, OrderCreated, Payload, build, topic_of
from orderstream.kafka import client
from orderstream.kafka.envelope import encode
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.outbox_relay import relay
from orderstream.postgres.connect import Connection
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.settings import Settings
from tests.integration.decisions.orders import created
from tests.integration.outbox_relay.running import running
from tests.support.samples import AT, ITEMS
from tests.support.topics import Letter, Tap, topic_settings
from tests.support.waiting import wait_until

CREATED = topic_of("order.created")


def _events(number: int) -> list[Event[Payload]]:
    return [created(str(uuid4())) for _ in range(number)]


def _large() -> Event[Payload]:
    items = tuple(structs.replace(ITEMS[0], sku=f"SKU-{number}") for number in range(300))
    assert isinstance(items[0], Item)
    payload = OrderCreated(order_id=str(uuid4()), user_id="u", items=items, amount=ITEMS[0].price, currency="USD")
    return build(payload, AT)


def _append(connection: Connection, events: Sequence[Event[Payload]]) -> None:
    with connection.transaction():
        append(connection, [OutboxRow(event) for event in events])


def _insert(connection: Connection, topic_name: str, event: Event[Payload]) -> None:
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value) VALUES (%s, %s, %s, %s)",
        (topic_name, event.correlation_id, event.id, encode(event).decode()),
    )


def _wait_empty(connection: Connection) -> None:
    wait_until(lambda: _waiting(connection) == 0, 30, "the outbox is empty")


def _waiting(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert row is not None
    number: int = row[0]
    return number


def _keys(letters: Sequence[Letter]) -> list[str]:
    return sorted((letter.key or b"").decode() for letter in letters)


def _ids(events: Sequence[Event[Payload]]) -> list[str]:
    return sorted(event.correlation_id for event in events)


def test_rows_that_are_too_large_are_kept_aside_and_the_others_are_published_once(
    settings: Settings, connection: Connection
) -> None:
    good, large = _events(618), [_large(), _large()]
    _append(connection, [*good[:100], large[0], *good[100:510], large[1], *good[510:]])
    with topic_settings(settings.kafka_brokers, CREATED, {"max.message.bytes": "10000"}):
        with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
            _wait_empty(connection)
            assert _keys(tap.so_far()) == _ids(good)
        refused = newest(settings.postgres_url, 10)
        assert sorted(record.publication.key or b"" for record in refused) == [key.encode() for key in _ids(large)]
        assert all("MSG_SIZE_TOO_LARGE" in record.reason for record in refused)


def test_a_row_that_is_refused_again_is_kept_once_and_counted(settings: Settings, connection: Connection) -> None:
    large = _large()
    with topic_settings(settings.kafka_brokers, CREATED, {"max.message.bytes": "10000"}), running(settings):
        for _ in range(2):
            _append(connection, [large])
            _wait_empty(connection)
    (record,) = newest(settings.postgres_url, 10)
    assert record.times == 2


def test_refused_records_are_listed_shown_and_redriven(settings: Settings, connection: Connection) -> None:
    large = _large()
    run = CliRunner(env={"POSTGRES_URL": settings.postgres_url, "KAFKA_BROKERS": settings.kafka_brokers})
    with topic_settings(settings.kafka_brokers, CREATED, {"max.message.bytes": "10000"}):
        with running(settings):
            _append(connection, [large])
            _wait_empty(connection)
        listed = run.invoke(main, ["refused", "list"])
        assert large.correlation_id in listed.output
        shown = run.invoke(main, ["refused", "show", listed.output.split()[0]])
        assert f"event-id: {large.id}" in shown.output
        again = run.invoke(main, ["refused", "redrive"])
        assert (again.exit_code, again.output) == (1, "0 published, 1 refused again\n")
    with Tap(settings.kafka_brokers, [CREATED]) as tap:
        redriven = run.invoke(main, ["refused", "redrive"])
        assert (redriven.exit_code, redriven.output) == (0, "1 published, 0 refused again\n")
        (letter,) = tap.count(1)
    assert letter.event() == large
    assert letter.headers["event-type"] == b"order.created"
    assert run.invoke(main, ["refused", "list"]).output == ""
    assert run.invoke(main, ["refused", "show", "00"]).exit_code == 1


@pytest.mark.parametrize("name", ["no.such.topic", "not a legal name", "", ".", "x" * 5_000])
def test_a_row_of_a_topic_that_does_not_exist_is_kept_aside_at_once(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tried: list[str] = []
    enqueue = Publisher._enqueue

    def note(self: Publisher, producer: object, record: Publication, report: object) -> None:
        tried.append(record.topic)
        enqueue(self, producer, record, report)  # type: ignore[arg-type]

    monkeypatch.setattr(Publisher, "_enqueue", note)
    good = _events(3)
    _insert(connection, name, good[0])
    _append(connection, good)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        _wait_empty(connection)
        assert _keys(tap.so_far()) == _ids(good)
    assert set(tried) == {CREATED}
    (record,) = newest(settings.postgres_url, 10)
    assert (record.publication.topic, record.reason.partition(":")[0]) == (name, "UNKNOWN_TOPIC")


def _refusing(refused: str, code: int) -> type[Producer]:
    """Return a producer that gets this error for every record of a topic."""

    class Refusing(Producer):
        def produce(self, topic: str, *record: Any, **options: Any) -> None:
            if topic == refused:
                options["on_delivery"](KafkaError(code), None)
            else:
                super().produce(topic, *record, **options)

    return Refusing


REFUSALS = [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_TIMESTAMP]


@pytest.mark.parametrize("code", REFUSALS)
def test_rows_of_a_topic_that_refuses_every_record_are_kept_aside(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The broker of the tests has no authorizer, so the test puts the refusal into the delivery report."""
    aborted = topic_of("order.aborted")

    monkeypatch.setattr(client, "Producer", _refusing(aborted, code))
    good = _events(20)
    _append(connection, good[:10])
    _insert(connection, aborted, good[0])
    _append(connection, good[10:])
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        _wait_empty(connection)
        assert _keys(tap.so_far()) == _ids(good)
    (record,) = newest(settings.postgres_url, 10)
    assert record.publication.topic == aborted


def test_acknowledged_rows_are_deleted_although_others_failed(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = _events(10)
    failing = {event.correlation_id for event in events[3:5]}
    rounds: list[int] = []

    class HalfFailing(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            late = [index for index, record in enumerate(records) if record.key in failing]
            if late and len(rounds) < 2:
                rounds.append(len(records))
                super().publish([record for record in records if record.key not in failing])
                timed_out = KafkaError(KafkaError._MSG_TIMED_OUT)
                raise PublishError(timed_out, len(late), unacknowledged=frozenset(late))
            super().publish(records)

    monkeypatch.setattr(relay, "Publisher", HalfFailing)
    _append(connection, events)
    before = connection.execute("SELECT id, created_at FROM outbox ORDER BY id").fetchall()
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        _wait_empty(connection)
        assert _keys(tap.so_far()) == _ids(events)
    assert rounds == [10, 2]
    assert len(before) == 10


def test_rows_of_a_topic_without_acknowledgements_are_kept_aside_if_other_topics_acknowledge(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    updated = topic_of("order.updated")
    monkeypatch.setattr(client, "Producer", _refusing(updated, KafkaError._MSG_TIMED_OUT))
    good = _events(5)
    _insert(connection, updated, good[0])
    _append(connection, good)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        _wait_empty(connection)
        assert _keys(tap.so_far()) == _ids(good)
    (record,) = newest(settings.postgres_url, 10)
    assert record.publication.topic == updated


def test_a_refused_row_is_deleted_only_together_with_the_record_of_its_reason(
    settings: Settings, connection: Connection
) -> None:
    """Without the table the rows stay in the outbox, because one transaction deletes them and stores the refusals."""
    connection.execute("DROP TABLE refused_records")
    _insert(connection, "no.such.topic", _events(1)[0])
    with pytest.raises(AssertionError, match="UndefinedTable"), running(settings):
        wait_until(lambda: False, 10, "the relay stops")
    assert _waiting(connection) == 1
