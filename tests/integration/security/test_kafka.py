"""Kafka over TLS with a password: the options in KAFKA_OPTIONS reach every Kafka client."""

import json

import pytest
from confluent_kafka import Message

from orderstream.kafka.client import consumer
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import ensure_topics
from orderstream.settings import Settings, load
from tests.integration.security.conftest import Certificates, kafka_options
from tests.support.waiting import wait_until

TOPIC = "order-service.dlq.v1"
"""A topic that no service reads."""


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_record_that_is_published_over_tls_with_a_password_is_consumed(
    secured_brokers: str, certificates: Certificates, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", secured_brokers)
    monkeypatch.setenv("KAFKA_OPTIONS", json.dumps(kafka_options(certificates.trusted, mechanism)))
    settings = load()
    ensure_topics(settings)
    written = f"by {mechanism}".encode()
    Publisher(settings, "test").publish([Publication(TOPIC, "key", written, [("name", b"value")])])
    reader = consumer(settings, f"group of {mechanism}")

    def arrived() -> Message | None:
        message = reader.poll(0.1)
        assert message is None or message.error() is None
        return message if message is not None and message.value() == written else None

    reader.subscribe([TOPIC])
    try:
        found = wait_until(arrived, 30, "the record arrives")
        assert found is not None
        reader.commit(message=found, asynchronous=False)
    finally:
        reader.close()


def test_options_without_a_comma_in_their_values_can_be_written_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_OPTIONS", "security.protocol=SASL_SSL,sasl.mechanism=PLAIN,sasl.password=a=b")
    assert load() == Settings.model_validate(
        {"kafka_options": {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.password": "a=b"}}
    )
