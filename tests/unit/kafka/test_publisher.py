"""Publishing after a fatal error of the client, which a test cannot cause with a real broker (P5)."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from orderstream.kafka import client
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.settings import Settings

RECORDS = [Publication("t.v1", "k", b"v", [])]


class FailedProducer:
    """A stand-in for confluent_kafka's producer after a fatal error of librdkafka."""

    made = 0

    def __init__(self, _config: dict[str, Any]) -> None:
        FailedProducer.made += 1

    def produce(self, *_record: object, **_options: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL))

    def flush(self, _seconds: float) -> int:
        raise KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost", True))


class FullProducer:
    """A producer whose queue has room after a number of flushes."""

    room_after = 0
    flushes = 0

    def __init__(self, _config: dict[str, Any]) -> None:
        FullProducer.flushes = 0
        self._sent: list[Callable[..., None]] = []

    def produce(self, *_record: object, on_delivery: Callable[..., None], **_options: object) -> None:
        if FullProducer.flushes < FullProducer.room_after:
            raise BufferError
        self._sent.append(on_delivery)

    def flush(self, _seconds: float) -> int:
        FullProducer.flushes += 1
        while self._sent:
            self._sent.pop()(None, None)
        return 0


class SilentProducer:
    """A producer whose broker never answers."""

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


def test_a_producer_with_a_fatal_error_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Producer", FailedProducer)
    publisher = Publisher(Settings.model_validate({}), "test")
    for made in (2, 3):
        with pytest.raises(PublishError) as caught:
            publisher.publish(RECORDS)
        assert caught.value.fatal
        assert not caught.value.all_refused
        assert FailedProducer.made == made


def test_a_queue_that_stays_full_fails_the_batch_and_a_retry_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Producer", FullProducer)
    publisher = Publisher(Settings.model_validate({}), "test")
    monkeypatch.setattr(FullProducer, "room_after", 3)
    publisher.publish(RECORDS)
    monkeypatch.setattr(FullProducer, "room_after", 1_000)
    with pytest.raises(PublishError) as caught:
        publisher.publish(RECORDS)
    assert caught.value.code == KafkaError._QUEUE_FULL
    assert not caught.value.all_refused
    assert FullProducer.flushes < 20


def test_a_broker_that_is_down_does_not_delay_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Producer", SilentProducer)
    stop = threading.Event()
    publisher = Publisher(Settings.model_validate({}), "test", stop)
    monkeypatch.setattr(SilentProducer, "on_flush", stop.set, raising=False)
    with pytest.raises(PublishError):
        publisher.publish(RECORDS)
    assert SilentProducer.flushes == 1
