"""A dead letter keeps all of its record and says what happened; too many of them mean a defect (P9)."""

import pytest
from structlog.testing import capture_logs

from orderstream.kafka.envelope import Reason, Record
from orderstream.worker.dead_letters import (
    LETTER_MAX_BYTES,
    MIN_FAILURES,
    DeadLetter,
    FailureLimit,
    TooManyFailuresError,
    UnknownOrders,
    publication,
)
from tests.support.contracts import assert_dead_letter_headers


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("key", [b"key", b"\xff\x00", None])
@pytest.mark.parametrize("value", [b"value", b"\xff\x00", b"", None])
def test_the_record_is_kept_as_it_was(key: bytes | None, value: bytes | None) -> None:
    headers: list[tuple[str, bytes | None]] = [("traceparent", b"00-a"), ("odd", b"\xff"), ("empty", None)]
    letter = publication("a-worker", DeadLetter(Record("t.v1", 3, 42, key, value, headers), "NOT_JSON", "x" * 5_000, 0))
    assert (letter.topic, letter.key, letter.value) == ("a-worker.dlq.v1", key, value)
    assert letter.headers[:3] == headers
    notes = {name: str(text).encode() for name, text in letter.headers[3:]}
    assert assert_dead_letter_headers(notes) == {
        "dlq-topic": "t.v1",
        "dlq-partition": "3",
        "dlq-offset": "42",
        "dlq-reason": "NOT_JSON",
        "dlq-error": "x" * 1_000,
        "dlq-attempts": "0",
    }


def test_a_record_larger_than_a_letter_is_cut_and_says_so() -> None:
    record = Record("t.v1", 0, 0, b"k" * 5_000, b"v" * 3_000_000, [("large", b"h" * 1_000)])
    letter = publication("a-worker", DeadLetter(record, "NOT_JSON", "", 0))
    assert isinstance(letter.key, bytes)
    assert isinstance(letter.value, bytes)
    assert len(letter.key) + len(letter.value) == LETTER_MAX_BYTES
    assert dict(letter.headers)["dlq-cut-from"] == str(5_000 + 3_000_000 + len("large") + 1_000)
    assert "large" not in dict(letter.headers)


def test_twenty_failures_are_borne_and_one_more_is_not() -> None:
    limit = FailureLimit(Clock())
    limit.check(20, 20)
    limit.note(20, 20)
    with pytest.raises(TooManyFailuresError):
        limit.check(1, 1)


def test_of_many_records_a_tenth_may_fail() -> None:
    limit = FailureLimit(Clock())
    limit.note(1_000, 100)
    limit.check(10, 1)
    limit.note(10, 1)
    with pytest.raises(TooManyFailuresError):
        limit.check(1, 1)


def test_failures_are_forgotten_after_five_minutes() -> None:
    clock = Clock()
    limit = FailureLimit(clock)
    for _ in range(10):
        limit.check(20, 20)
        limit.note(20, 20)
        clock.now += 301


def test_records_without_failures_are_never_too_many() -> None:
    limit = FailureLimit(Clock())
    for _ in range(100):
        limit.check(500, 0)
        limit.note(500, 0)


def _letters(number: int, reason: Reason = "UNKNOWN_ORDER") -> list[DeadLetter]:
    record = Record("order.created.v1", 0, 0, b"key", b"{}", [])
    return [DeadLetter(record, reason, "", 1)] * number


def test_many_unknown_orders_are_warned_of_once_in_a_while() -> None:
    clock = iter([0.0] * 100)
    subject = UnknownOrders(lambda: next(clock))
    with capture_logs() as lines:
        subject.note(100, _letters(MIN_FAILURES))
        assert lines == []
        subject.note(1, _letters(1))
        subject.note(1, _letters(1))
    (line,) = lines
    assert (line["event"], line["unknown"], line["records"]) == ("many_unknown_orders", MIN_FAILURES + 1, 101)
    assert "KAFKA_TOPIC_PREFIX" in line["hint"]


def test_few_unknown_orders_and_other_letters_are_not_warned_of() -> None:
    subject = UnknownOrders(lambda: 0.0)
    with capture_logs() as lines:
        subject.note(10_000, _letters(1_000))
        subject.note(100, _letters(100, "FAILED"))
    assert lines == []
