"""What the publisher says of each record when Kafka takes some and refuses others (P5, P9)."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError

from orderstream.kafka import client
from orderstream.kafka.client import (
    LONELY_EVIDENCE_SECONDS,
    LONELY_FAILURES_MAX,
    LonelyTopics,
    Publication,
    Publisher,
    PublishError,
)
from orderstream.settings import Settings

TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)


class Broker:
    """Answers by the value of a record: ok, bad or late. In a batch of more than one, one bad record spoils all."""

    sent: list[list[str]]
    refusal = KafkaError.MSG_SIZE_TOO_LARGE

    def __init__(self, config: dict[str, Any]) -> None:
        self._batch_max = int(config.get("batch.num.messages", 10_000))
        self._waiting: list[tuple[str, Callable[..., None]]] = []

    def produce(self, _topic: str, value: str, _key: str, *, on_delivery: Callable[..., None], **_: object) -> None:
        self._waiting.append((value, on_delivery))

    def flush(self, _seconds: float) -> int:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
            Broker.sent.append([value for value, _ in batch])
            bad = any(value == "bad" for value, _ in batch)
            for value, report in batch:
                late = TIMED_OUT if value == "late" else None
                report(KafkaError(Broker.refusal) if bad else late, None)
        return 0


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """A publisher that speaks to the broker above."""
    monkeypatch.setattr(Broker, "sent", [], raising=False)
    monkeypatch.setattr(client, "Producer", Broker)
    return Publisher(Settings.model_validate({}), "test")


def _records(*values: str) -> list[Publication]:
    return [Publication("t.v1", "key", value, []) for value in values]


def test_each_record_of_a_refused_batch_is_blamed_for_itself_alone(publisher: Publisher) -> None:
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("ok", "bad", "ok", "bad"))
    assert caught.value.poisonous
    assert set(caught.value.refused) == {1, 3}
    assert "MSG_SIZE_TOO_LARGE" in caught.value.refused[1]
    assert Broker.sent == [["ok", "bad", "ok", "bad"], ["ok"], ["bad"], ["ok"], ["bad"]]


def test_what_may_be_retried_is_told_apart(publisher: Publisher) -> None:
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("ok", "bad", "late"))
    assert not caught.value.poisonous
    assert set(caught.value.refused) == {1}
    assert caught.value.unacknowledged == {2}
    assert caught.value.code == KafkaError._MSG_TIMED_OUT


def test_a_failure_that_passes_is_never_a_refusal(publisher: Publisher) -> None:
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("ok", "late", "ok"))
    assert not caught.value.refused
    assert caught.value.unacknowledged == {1}
    assert Broker.sent == [["ok", "late", "ok"]]


@pytest.mark.parametrize("code", sorted(client.REFUSED))
def test_every_refusal_is_found(publisher: Publisher, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(Broker, "refusal", code)
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("bad"))
    assert caught.value.poisonous
    assert set(caught.value.refused) == {0}


def test_an_error_without_details_says_that_any_record_may_be_retried() -> None:
    error = PublishError(TIMED_OUT, 1)
    assert not error.poisonous
    assert error.unacknowledged is None


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


BOTH = [Publication("dead", "k", "v", []), Publication("alive", "k", "v", [])]


def test_a_topic_is_set_aside_when_it_alone_fails_again_and_again_and_is_tried_again_later() -> None:
    clock = Clock()
    lonely = LonelyTopics(clock)
    for _ in range(LONELY_FAILURES_MAX):
        assert not lonely.is_set_aside("dead")
        lonely.note(BOTH, {0: TIMED_OUT}, ())
    assert lonely.is_set_aside("dead")
    assert not lonely.is_set_aside("alive")
    lonely.note(BOTH, {}, {0})
    assert lonely.is_set_aside("dead")
    clock.now += LONELY_EVIDENCE_SECONDS + 1
    assert not lonely.is_set_aside("dead")
    lonely.note(BOTH, {}, ())
    for _ in range(LONELY_FAILURES_MAX - 1):
        clock.now += LONELY_EVIDENCE_SECONDS + 1
        lonely.note(BOTH, {0: TIMED_OUT}, ())
    assert not lonely.is_set_aside("dead")


def test_no_topic_is_set_aside_while_kafka_is_away() -> None:
    clock = Clock()
    lonely = LonelyTopics(clock)
    lonely.note(BOTH[1:], {}, ())
    for _ in range(10 * LONELY_FAILURES_MAX):
        clock.now += 5
        lonely.note(BOTH, {0: TIMED_OUT, 1: TIMED_OUT}, ())
    assert not lonely.is_set_aside("dead")
    assert not lonely.is_set_aside("alive")
