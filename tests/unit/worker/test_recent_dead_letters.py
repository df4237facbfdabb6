"""A record that fails repeatedly becomes a dead letter once an hour (P9)."""

import pytest
from msgspec import structs

from orderstream.dead_letters.letter import DeadLetter
from orderstream.kafka.envelope import Record
from orderstream.worker import recent_dead_letters
from orderstream.worker.recent_dead_letters import REPEAT_SECONDS, RecentDeadLetters
from tests.unit.worker.test_failure_limit import Clock


def _letter(value: bytes, offset: int = 0, topic: str = "t.v1", key: bytes = b"key") -> DeadLetter:
    return DeadLetter(Record(topic, 0, offset, key, value, []), "FAILED", "", 1)


def test_the_same_record_at_another_offset_is_not_new() -> None:
    seen = RecentDeadLetters(Clock())
    seen.remember([_letter(b"first", 1)])
    others = [_letter(b"second"), _letter(b"first", topic="u.v1"), _letter(b"eyfirst", key=b"k")]
    assert seen.new([_letter(b"first", 2), *others]) == others


def test_a_record_is_new_until_it_is_remembered() -> None:
    seen = RecentDeadLetters(Clock())
    assert seen.new([_letter(b"first")]) == seen.new([_letter(b"first")]) == [_letter(b"first")]


def test_the_same_record_twice_in_one_batch_is_one_dead_letter() -> None:
    first, other = _letter(b"first", 1), _letter(b"second", 2)
    assert RecentDeadLetters(Clock()).new([first, other, _letter(b"first", 3)]) == [first, other]


def test_a_record_that_was_redriven_is_new_each_time() -> None:
    seen = RecentDeadLetters(Clock())
    first = _letter(b"first")
    records = [structs.replace(first.record, headers=[("redriven-from", place)]) for place in (b"t/0@1", b"t/0@2")]
    redriven = [structs.replace(first, record=record) for record in records]
    seen.remember([first, redriven[0]])
    assert seen.new([first, *redriven]) == redriven[1:]


def test_after_an_hour_the_record_is_new_again() -> None:
    clock = Clock()
    seen = RecentDeadLetters(clock)
    seen.remember([_letter(b"first")])
    clock.now += REPEAT_SECONDS - 1
    assert seen.new([_letter(b"first")]) == []
    clock.now += 1
    assert seen.new([_letter(b"first")]) == [_letter(b"first")]


def test_the_number_of_remembered_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_dead_letters, "REMEMBERED_MAX", 2)
    seen = RecentDeadLetters(Clock())
    letters = [_letter(value) for value in (b"first", b"second", b"third")]
    seen.remember(letters)
    assert seen.new(letters) == letters[:1]
