"""Publishing when the client has failed for good, which a real broker cannot be made to cause at will (P5)."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from orderstream.kafka import client
from orderstream.kafka.client import Publication, Publisher, PublishError
from orderstream.settings import Settings

RECORDS = [Publication("t.v1", "k", b"v", [])]


class FailedProducer:
    """What confluent_kafka's producer does once librdkafka has met a fatal error."""

    made = 0

    def __init__(self, _config: dict[str, Any]) -> None:
        FailedProducer.made += 1

    def produce(self, *_record: object, **_options: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL))

    def flush(self, _seconds: float) -> int:
        raise KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost", True))


class SilentProducer:
    """One whose broker never answers."""

    on_flush: Callable[[], None]
    flushes = 0

    def __init__(self, _config: dict[str, Any]) -> None:
        SilentProducer.flushes = 0

    def produce(self, *_record: object, **_options: object) -> None:
        pass

    def flush(self, _seconds: float) -> int:
        SilentProducer.flushes += 1
        SilentProducer.on_flush()
        return 1


def test_a_producer_that_failed_for_good_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Producer", FailedProducer)
    publisher = Publisher(Settings.model_validate({}), "test")
    for made in (2, 3):
        with pytest.raises(PublishError) as caught:
            publisher.publish(RECORDS)
        assert caught.value.fatal
        assert not caught.value.poisonous
        assert FailedProducer.made == made


def test_a_stop_is_not_held_up_by_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Producer", SilentProducer)
    stop = threading.Event()
    publisher = Publisher(Settings.model_validate({}), "test", stop)
    monkeypatch.setattr(SilentProducer, "on_flush", stop.set, raising=False)
    with pytest.raises(PublishError):
        publisher.publish(RECORDS)
    assert SilentProducer.flushes == 1
