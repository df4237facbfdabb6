"""A record that fails again and again is a dead letter once an hour (P9)."""

import pytest

from orderstream.dead_letters.letter import DeadLetter
from orderstream.kafka.envelope import Record
from orderstream.worker import recent_dead_letters
from orderstream.worker.recent_dead_letters import REPEAT_SECONDS, RecentDeadLetters
from tests.unit.worker.test_failure_limit import Clock


def _letter(value: bytes, offset: int = 0, topic: str = "t.v1", key: bytes = b"key") -> DeadLetter:
    return DeadLetter(Record(topic, 0, offset, key, value, []), "FAILED", "", 1)


def test_the_same_record_at_another_offset_is_not_new() -> None:
    seen = RecentDeadLetters(Clock())
    seen.remember([_letter(b"one", 1)])
    others = [_letter(b"two"), _letter(b"one", topic="u.v1"), _letter(b"eyone", key=b"k")]
    assert seen.new([_letter(b"one", 2), *others]) == others


def test_only_what_was_noted_is_known() -> None:
    seen = RecentDeadLetters(Clock())
    assert seen.new([_letter(b"one")]) == seen.new([_letter(b"one")]) == [_letter(b"one")]


def test_of_the_same_record_twice_in_one_batch_the_first_is_new() -> None:
    first, other = _letter(b"one", 1), _letter(b"two", 2)
    assert RecentDeadLetters(Clock()).new([first, other, _letter(b"one", 3)]) == [first, other]


def test_after_an_hour_it_is_a_letter_again() -> None:
    clock = Clock()
    seen = RecentDeadLetters(clock)
    seen.remember([_letter(b"one")])
    clock.now += REPEAT_SECONDS - 1
    assert seen.new([_letter(b"one")]) == []
    clock.now += 1
    assert seen.new([_letter(b"one")]) == [_letter(b"one")]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_dead_letters, "REMEMBERED_MAX", 2)
    seen = RecentDeadLetters(Clock())
    letters = [_letter(value) for value in (b"one", b"two", b"three")]
    seen.remember(letters)
    assert seen.new(letters) == letters[:1]
