"""The publisher's result for each record if Kafka accepts some records and refuses others (P5, P9)."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError

from orderstream.kafka import client
from orderstream.kafka import publisher as publishing
from orderstream.kafka.batch_sizes import BATCH_BYTES, REMEMBERED_MAX, REMEMBERED_SECONDS, BatchSizes
from orderstream.kafka.errors import REFUSED, PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.stuck_topics import STUCK_EVIDENCE_SECONDS, STUCK_FAILURES_MAX, StuckTopics
from orderstream.settings import Settings

TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)
RECORD_BYTES = 1_000


class Broker:
    """A broker that answers by the value of a record: ok, bad or late. One bad record makes its whole batch fail."""

    sent: list[list[str]]
    refusal = KafkaError.MSG_SIZE_TOO_LARGE
    batch_limit = 10_000

    def __init__(self, config: dict[str, Any]) -> None:
        by_bytes = int(config.get("batch.size", 1_000_000)) // RECORD_BYTES
        self._batch_max = max(1, min(int(config.get("batch.num.messages", 10_000)), by_bytes))
        self._waiting: list[tuple[str, Callable[..., None]]] = []

    def produce(self, _topic: str, value: str, _key: str, *, on_delivery: Callable[..., None], **_: object) -> None:
        self._waiting.append((value, on_delivery))

    def flush(self, _seconds: float) -> int:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
            Broker.sent.append([value for value, _ in batch])
            bad = any(value == "bad" for value, _ in batch) or len(batch) > Broker.batch_limit
            for value, report in batch:
                late = TIMED_OUT if value == "late" else None
                report(KafkaError(Broker.refusal) if bad else late, None)
        return 0


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """A publisher that uses the broker above."""
    monkeypatch.setattr(Broker, "sent", [], raising=False)
    monkeypatch.setattr(client, "Producer", Broker)
    return Publisher(Settings.model_validate({}), "test")


def _records(*values: str) -> list[Publication]:
    return [Publication("t.v1", "key", value, []) for value in values]


def test_only_the_bad_records_of_a_refused_batch_are_refused(publisher: Publisher) -> None:
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("ok", "bad", "ok", "bad"))
    assert caught.value.all_refused
    assert set(caught.value.refused) == {1, 3}
    assert "MSG_SIZE_TOO_LARGE" in caught.value.refused[1]
    whole, each_alone = ["ok", "bad", "ok", "bad"], [["ok"], ["bad"], ["ok"], ["bad"]]
    assert Broker.sent == [whole, whole, whole, *each_alone, *each_alone[1:]]


def test_the_records_of_a_key_stay_in_order_after_a_refusal(publisher: Publisher) -> None:
    """The second batch is acknowledged while the first one is refused. Its records are sent again."""
    values = ["bad", *(f"ok-{number}" for number in range(69))]
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records(*values))
    assert set(caught.value.refused) == {0}
    taken = [value for batch in Broker.sent if "bad" not in batch for value in batch]
    assert taken.count("ok-68") > 1
    assert sorted(values[1:], key=lambda value: len(taken) - taken[::-1].index(value)) == values[1:]


def test_the_batch_size_that_kafka_accepted_is_remembered_for_a_while(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broker, "refusal", KafkaError.RECORD_LIST_TOO_LARGE)
    monkeypatch.setattr(Broker, "batch_limit", 10)
    values = [f"ok-{number}" for number in range(40)]
    in_eights = [values[first : first + 8] for first in range(0, 40, 8)]
    publisher.publish(_records(*values))
    assert Broker.sent == [values, values, *in_eights]
    Broker.sent.clear()
    publisher.publish(_records(*values))
    assert Broker.sent == in_eights
    Broker.sent.clear()
    publisher.publish([Publication("another.v1", "key", "ok", [])])
    assert Broker.sent == [["ok"]]
    Broker.sent.clear()
    monkeypatch.setattr(publisher._sizes, "_clock", lambda: time.monotonic() + REMEMBERED_SECONDS + 1)
    publisher.publish(_records(*values))
    assert Broker.sent[0] == values


def test_no_publish_begins_with_batches_of_one_record() -> None:
    sizes = BatchSizes(time.monotonic)
    sizes.note(len(BATCH_BYTES) - 1, {"t.v1"})
    assert sizes.sort(_records("ok"), [0])[REMEMBERED_MAX] == [0]


def test_the_resends_of_one_publish_have_a_time_limit_and_the_rest_can_be_retried(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RESEND_SECONDS", 0)
    with pytest.raises(PublishError) as caught:
        publisher.publish([*_records("ok", "bad"), Publication("another.v1", "key", "ok", [])])
    assert Broker.sent == [["ok", "bad", "ok"]]
    assert not caught.value.refused
    assert caught.value.unacknowledged == {0, 1, 2}


def test_a_publish_after_the_stop_signal_is_still_sent(publisher: Publisher) -> None:
    publisher._stop.set()
    publisher.publish(_records("ok", "ok"))
    assert Broker.sent == [["ok", "ok"]]


def test_records_that_can_be_retried_are_named(publisher: Publisher) -> None:
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("ok", "bad", "late"))
    assert not caught.value.all_refused
    assert set(caught.value.refused) == {1}
    assert caught.value.unacknowledged == {2}
    assert caught.value.code == KafkaError._MSG_TIMED_OUT


def test_a_transient_failure_is_not_a_refusal(publisher: Publisher) -> None:
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("ok", "late", "ok"))
    assert not caught.value.refused
    assert caught.value.unacknowledged == {1}
    assert Broker.sent == [["ok", "late", "ok"]]


@pytest.mark.parametrize("code", sorted(REFUSED))
def test_every_error_code_of_a_refusal_is_recognized(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(Broker, "refusal", code)
    with pytest.raises(PublishError) as caught:
        publisher.publish(_records("bad"))
    assert caught.value.all_refused
    assert set(caught.value.refused) == {0}


def test_after_an_error_without_details_every_record_can_be_retried() -> None:
    error = PublishError(TIMED_OUT, 1)
    assert not error.all_refused
    assert error.unacknowledged is None


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


BOTH = [Publication("dead", "k", "v", []), Publication("alive", "k", "v", [])]


def test_a_topic_that_alone_fails_repeatedly_is_set_aside_and_retried_later() -> None:
    clock = Clock()
    stuck_topics = StuckTopics(clock)
    for _ in range(STUCK_FAILURES_MAX):
        assert not stuck_topics.is_suspended("dead")
        stuck_topics.note(BOTH, {0: TIMED_OUT}, ())
    assert stuck_topics.is_suspended("dead")
    assert not stuck_topics.is_suspended("alive")
    stuck_topics.note(BOTH, {}, {0})
    assert stuck_topics.is_suspended("dead")
    clock.now += STUCK_EVIDENCE_SECONDS + 1
    assert not stuck_topics.is_suspended("dead")
    stuck_topics.note(BOTH, {}, ())
    for _ in range(STUCK_FAILURES_MAX - 1):
        clock.now += STUCK_EVIDENCE_SECONDS + 1
        stuck_topics.note(BOTH, {0: TIMED_OUT}, ())
    assert not stuck_topics.is_suspended("dead")


def test_no_topic_is_set_aside_while_kafka_is_down() -> None:
    clock = Clock()
    stuck_topics = StuckTopics(clock)
    stuck_topics.note(BOTH[1:], {}, ())
    for _ in range(10 * STUCK_FAILURES_MAX):
        clock.now += 5
        stuck_topics.note(BOTH, {0: TIMED_OUT, 1: TIMED_OUT}, ())
    assert not stuck_topics.is_suspended("dead")
    assert not stuck_topics.is_suspended("alive")
