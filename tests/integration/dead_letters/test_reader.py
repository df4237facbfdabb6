"""Reading dead letters from a real Kafka, with the functions and with the commands (P9)."""

from typing import Any, cast
from uuid import uuid4

from click.testing import CliRunner
from confluent_kafka import Message, Producer, TopicPartition

from orderstream.cli import main
from orderstream.dead_letters.letter import DeadLetter, publication
from orderstream.dead_letters.reader import letter_at, newest, stored_letter
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Record
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic
from orderstream.settings import Settings
from tests.support.topics import Tap, topic_settings
from tests.support.waiting import wait_until

GROUP = "inventory-worker"


def _write_letters(settings: Settings, number: int) -> list[str]:
    keys = [str(uuid4()) for _ in range(number)]
    publisher = Publisher(settings, "test")
    for offset, key in enumerate(keys):
        record = Record("order.aborted.v1", 2, offset, key.encode(), b"\xff not json", [("traceparent", b"00-x")])
        publisher.publish([publication(GROUP, DeadLetter(record, "NOT_JSON", "why", 1))])
    return keys


def test_the_newest_dead_letters_are_listed_and_each_can_be_shown(settings: Settings) -> None:
    keys = _write_letters(settings, 4)
    letters = newest(settings, GROUP, 3)
    assert [(letter.key or b"").decode() for letter in letters] == keys[1:]
    letter = letters[-1]
    assert letter.notes["reason"] == "NOT_JSON"
    assert (letter.notes["topic"], letter.notes["partition"], letter.notes["offset"]) == ("order.aborted.v1", "2", "3")
    assert letter_at(settings, GROUP, letter.partition, letter.offset) == letter
    assert letter_at(settings, GROUP, letter.partition, letter.offset + 1_000_000) is None


def test_the_commands_list_and_show_dead_letters(settings: Settings) -> None:
    (key,) = _write_letters(settings, 1)
    run = CliRunner(env={"KAFKA_BROKERS": settings.kafka_brokers})
    listed = run.invoke(main, ["dlq", "list", GROUP, "-n", "1"])
    assert listed.exit_code == 0
    assert key in listed.output
    _, partition, offset, *_ = listed.output.split()
    shown = run.invoke(main, ["dlq", "show", GROUP, partition, offset])
    assert shown.exit_code == 0
    assert "\\xff not json" in shown.output
    assert "traceparent: 00-x" in shown.output
    missing = run.invoke(main, ["dlq", "show", GROUP, partition, str(int(offset) + 1_000_000)])
    assert missing.exit_code == 1


def test_a_forged_dead_letter_is_shown_without_terminal_control_characters(settings: Settings) -> None:
    """Anyone with access to the topic can write any bytes. In a topic with CreateTime, they can write any time."""
    topic = dead_letter_topic(GROUP)
    any_time = {"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": str(2**63 - 1)}
    with topic_settings(settings.kafka_brokers, topic, any_time):
        producer = Producer({"bootstrap.servers": settings.kafka_brokers, "log_level": 0})
        value, key = b"\x1b[2Jvalue\r\nsecond", b"\x1b]0;key\x07\nforged line"
        producer.produce(topic, value, key, headers=[("dlq-reason", b"\x1b[8m"), ("n\n", "\u202eback".encode())])
        producer.produce(topic, b"late", b"late", timestamp=300_000_000_000_000_000)
        assert producer.flush(10) == 0
    letters = newest(settings, GROUP, 1_000)
    late, forged = (next(letter for letter in letters if letter.key == sought) for sought in (b"late", key))
    assert late.at is None
    shown = forged.line + forged.text.replace("\n", "")
    assert shown.isprintable()
    assert "forged line" in forged.line
    assert "second" in forged.text
    run = CliRunner(env={"KAFKA_BROKERS": settings.kafka_brokers}).invoke(main, ["dlq", "list", GROUP])
    assert run.exit_code == 0, run.output


class _BadName:
    """A message with a header whose name is not UTF-8. The client can receive such a message, but cannot send it."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def headers(self) -> None:
        raise SystemError


def test_a_dead_letter_with_unreadable_headers_is_shown_without_them(settings: Settings) -> None:
    with Tap(settings.kafka_brokers, [dead_letter_topic(GROUP)]) as tap:
        (key,) = _write_letters(settings, 1)
        (place,) = tap.count(1)
    reader = consumer(settings, "test")
    try:
        reader.assign([TopicPartition(place.topic, place.partition, place.offset)])
        message = wait_until(lambda: reader.poll(0.1), 20, "the letter is read")
        assert message is not None
        letter = stored_letter(GROUP, cast("Message", _BadName(message)))
    finally:
        reader.close()
    assert letter.notes == {}
    assert key in letter.line
