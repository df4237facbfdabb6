"""Too many failing records mean a defect, and many unknown orders mean a shared topic (P9)."""

import pytest
from structlog.testing import capture_logs

from orderstream.dead_letters.letter import DeadLetter
from orderstream.kafka.envelope import Reason, Record
from orderstream.worker.failure_limit import MIN_FAILURES, FailureLimit, TooManyFailuresError, UnknownOrders


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_twenty_failures_are_allowed_and_one_more_is_not() -> None:
    limit = FailureLimit(Clock())
    limit.check(20, 20)
    limit.note(20, 20)
    with pytest.raises(TooManyFailuresError):
        limit.check(1, 1)


def test_a_tenth_of_many_records_may_fail() -> None:
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


def test_records_without_failures_never_reach_the_limit() -> None:
    limit = FailureLimit(Clock())
    for _ in range(100):
        limit.check(500, 0)
        limit.note(500, 0)


def _letters(number: int, reason: Reason = "UNKNOWN_ORDER") -> list[DeadLetter]:
    record = Record("order.created.v1", 0, 0, b"key", b"{}", [])
    return [DeadLetter(record, reason, "", 1)] * number


def test_many_unknown_orders_cause_one_warning_in_five_minutes() -> None:
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


def test_few_unknown_orders_and_other_dead_letters_cause_no_warning() -> None:
    subject = UnknownOrders(lambda: 0.0)
    with capture_logs() as lines:
        subject.note(10_000, _letters(1_000))
        subject.note(100, _letters(100, "FAILED"))
    assert lines == []
