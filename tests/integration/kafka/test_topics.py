"""The settings of created topics, warnings about topics with other settings, and topic prefixes (P5, P9)."""

from collections.abc import Mapping
from uuid import uuid4

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from orderstream.cli import main
from orderstream.dead_letters.reader import letter_at, newest
from orderstream.domain.events import TOPICS, topic_of
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.envelope import encode
from orderstream.kafka.topics import _wanted, dead_letter_topic, ensure_topics, topic_warnings
from orderstream.local.up import prepare_topics
from orderstream.postgres.connect import Connection
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.settings import Settings
from orderstream.telemetry import metrics
from orderstream.worker import subscription
from tests.integration.decisions.orders import created
from tests.integration.outbox_relay.running import running as relay_running
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, SCHEMA, Recorder
from tests.integration.worker.running import running
from tests.support.topics import Tap, begin_here, config_of, end_offsets, offsets_of, publish, topic_settings
from tests.support.waiting import wait_until

EXPECTED = {
    "cleanup.policy": "delete",
    "max.message.bytes": "2097152",
    "min.insync.replicas": "1",
    "message.timestamp.type": "LogAppendTime",
    "retention.bytes": "-1",
}


@pytest.fixture
def prefixed(settings: Settings) -> Settings:
    """Settings with a prefix of their own, for another deployment on the same brokers. Its topics exist."""
    other = settings.model_copy(update={"kafka_topic_prefix": f"shop.{uuid4().hex[:8]}-", "kafka_partitions": 2})
    assert set(ensure_topics(other)) == {other.kafka_topic_prefix + name for name in _names()}
    assert ensure_topics(other) == []
    return other


def _names() -> list[str]:
    return [*TOPICS, *map(dead_letter_topic, CONSUMER_GROUPS)]


def test_topics_are_created_with_the_required_settings(prefixed: Settings) -> None:
    for name in _names():
        config = config_of(prefixed.kafka_brokers, prefixed.kafka_topic_prefix + name)
        hours = prefixed.dead_letter_retention_hours if ".dlq." in name else prefixed.kafka_retention_hours
        assert {key: config[key] for key in EXPECTED} == EXPECTED
        assert config["retention.ms"] == str(hours * 3_600_000)
    assert topic_warnings(prefixed) == []


@pytest.mark.parametrize(("replicas", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "2")])
def test_a_record_needs_two_replicas_if_there_are_three(settings: Settings, replicas: int, in_sync: str) -> None:
    replicated = settings.model_copy(update={"kafka_replication_factor": replicas})
    assert {(wanted.config or {})["min.insync.replicas"] for wanted in _wanted(replicated)} == {in_sync}


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"cleanup.policy": "compact"}, "cleanup.policy=delete"),
        ({"cleanup.policy": "compact,delete"}, "cleanup.policy=delete"),
        ({"max.message.bytes": "1048588"}, "max.message.bytes=2097152"),
        ({"min.insync.replicas": "2"}, "min.insync.replicas=1"),
        ({"retention.ms": "1000"}, "retention.ms=604800000"),
        ({"retention.bytes": "1000000"}, "retention.bytes=-1"),
        ({"message.timestamp.type": "CreateTime"}, "message.timestamp.type=LogAppendTime"),
    ],
)
def test_a_warning_about_a_topic_with_other_settings_has_the_fix(
    prefixed: Settings, values: Mapping[str, str], fix: str
) -> None:
    name = prefixed.kafka_topic_prefix + "order.created.v1"
    env = {"KAFKA_BROKERS": prefixed.kafka_brokers, "KAFKA_TOPIC_PREFIX": prefixed.kafka_topic_prefix}
    with topic_settings(prefixed.kafka_brokers, name, values):
        (warning,) = topic_warnings(prefixed)
        command = CliRunner(env=env).invoke(main, ["topics"])
        with capture_logs() as lines:
            prepare_topics(prefixed, lambda _: None)
    assert warning.endswith(f"--entity-name {name} --add-config {fix}")
    assert command.exit_code == 0
    assert f"Warning: {warning}" in command.output
    assert [line["warning"] for line in lines if line["event"] == "topic_setting"] == [warning]


def test_a_longer_retention_and_larger_records_cause_no_warning(prefixed: Settings) -> None:
    name = prefixed.kafka_topic_prefix + "order.created.v1"
    values = {"retention.ms": "-1", "max.message.bytes": "5000000"}
    with topic_settings(prefixed.kafka_brokers, name, values):
        assert topic_warnings(prefixed) == []


def test_with_a_prefix_the_relay_publishes_to_its_own_topics(
    settings: Settings, prefixed: Settings, connection: Connection
) -> None:
    """The rows were written before the prefix was set, because the outbox stores topics without the prefix."""
    event = created(str(uuid4()))
    with connection.transaction():
        append(connection, [OutboxRow(event)])
    plain = topic_of("order.created")
    with (
        Tap(settings.kafka_brokers, [plain]) as others,
        Tap(settings.kafka_brokers, [prefixed.kafka_topic_prefix + plain]) as own,
        relay_running(prefixed),
    ):
        (letter,) = own.count(1)
        assert others.so_far() == []
    assert letter.key == event.correlation_id.encode()


def test_with_a_prefix_a_worker_uses_its_own_topics_for_records_answers_and_dead_letters(
    prefixed: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "MEASURE_SECONDS", 0.1)
    connection.execute(SCHEMA.encode())
    brokers, prefix, group = prefixed.kafka_brokers, prefixed.kafka_topic_prefix, "order-service"
    begin_here(brokers, prefix + group, [prefix + IN])
    plain = end_offsets(brokers, [IN, OUT, dead_letter_topic(group)])
    (event,) = authorized(1)
    with Tap(brokers, [prefix + OUT, prefix + dead_letter_topic(group)]) as tap, running(Recorder(group), prefixed):
        publish(brokers, [(prefix + IN, b"key", b"no json")])
        publish(brokers, [(prefix + IN, event.correlation_id.encode(), encode(event))])
        letters = tap.count(2)
        wait_until(
            lambda: offsets_of(brokers, prefix + group, [prefix + IN]) == end_offsets(brokers, [prefix + IN]),
            20,
            "the offsets of its own group are committed",
        )
        wait_until(lambda: _has_lag_label(group), 10, "the lag is measured")
    assert {letter.topic for letter in letters} == {prefix + OUT, prefix + dead_letter_topic(group)}
    assert end_offsets(brokers, [IN, OUT, dead_letter_topic(group)]) == plain
    (stored,) = newest(prefixed, group, 10)
    assert stored.notes["topic"] == IN
    assert letter_at(prefixed, group, stored.partition, stored.offset) == stored


def _has_lag_label(group: str) -> bool:
    found = {
        sample.labels["topic"]
        for metric in metrics.LAG.collect()
        for sample in metric.samples
        if sample.labels["service"] == group
    }
    assert not any(name.startswith("shop.") for name in found)
    return IN in found
