"""Dead letters read back from real Kafka, by the functions and by the commands (P9)."""

from uuid import uuid4

from click.testing import CliRunner

from orderstream.cli import main
from orderstream.kafka.client import Publisher
from orderstream.kafka.envelope import Record
from orderstream.settings import Settings
from orderstream.worker.dead_letter_reader import newest, one
from orderstream.worker.dead_letters import DeadLetter, publication

GROUP = "inventory-worker"


def _bury(settings: Settings, number: int) -> list[str]:
    keys = [str(uuid4()) for _ in range(number)]
    publisher = Publisher(settings, "test")
    for offset, key in enumerate(keys):
        record = Record("order.aborted.v1", 2, offset, key.encode(), b"\xff not json", [("traceparent", b"00-x")])
        publisher.publish([publication(GROUP, DeadLetter(record, "NOT_JSON", "why", 1))])
    return keys


def test_the_newest_letters_come_oldest_first_and_each_can_be_shown(settings: Settings) -> None:
    keys = _bury(settings, 4)
    letters = newest(settings, GROUP, 3)
    assert [(letter.key or b"").decode() for letter in letters] == keys[1:]
    letter = letters[-1]
    assert letter.notes["reason"] == "NOT_JSON"
    assert (letter.notes["topic"], letter.notes["partition"], letter.notes["offset"]) == ("order.aborted.v1", "2", "3")
    assert one(settings, GROUP, letter.partition, letter.offset) == letter
    assert one(settings, GROUP, letter.partition, letter.offset + 1_000_000) is None


def test_the_commands_show_them(settings: Settings) -> None:
    (key,) = _bury(settings, 1)
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
