"""A source asks rarely while no one looks, one call at a time, and knows since when it has no answer."""

import threading
import time
from typing import Any

from orderstream.console.flow import source as module
from orderstream.console.flow.history import History, average, grown, per_second, steps
from orderstream.console.flow.source import LOOK_SECONDS, SILENT_SECONDS, Audience, Reading, Source
from tests.support.waiting import wait_until


class Asked:
    """A reader that answers with the number of its calls, or fails, or waits for `released`."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_held = False
        self.error: Exception | None = None
        self.released = threading.Event()
        self.released.set()
        self.closed = False

    def ask(self) -> int:
        self.calls += 1
        self.is_held = not self.released.is_set()
        assert self.released.wait(20)
        if self.error is not None:
            raise self.error
        return self.calls

    def close(self) -> None:
        self.closed = True


def running(reader: Asked, audience: Audience, **changes: Any) -> Source[int]:
    source: Source[int] = Source("test", lambda: reader, audience, **changes)
    source.start()
    wait_until(lambda: source.reading.answered_at is not None, 10, "the first answer")
    return source


def test_the_samples_are_rare_until_someone_looks_and_come_at_once_then(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "UNWATCHED_SECONDS", 3_600.0)
    monkeypatch.setattr(module, "WATCHED_SECONDS", 0.01)
    audience, reader = Audience(), Asked()
    source = running(reader, audience, watched_seconds=0.01)
    assert reader.calls == 1
    audience.look()
    wait_until(lambda: reader.calls > 3, 10, "frequent samples")
    source.stop()
    source.join(10)
    assert reader.closed


def test_no_one_looks_half_a_minute_after_the_last_look() -> None:
    now = [100.0]
    audience = Audience(lambda: now[0])
    assert not audience.is_watching
    audience.look()
    now[0] += LOOK_SECONDS - 1
    assert audience.is_watching
    now[0] += 2
    assert not audience.is_watching


def test_a_call_that_hangs_is_the_only_one_and_counts_as_silence() -> None:
    audience, reader = Audience(), Asked()
    audience.look()
    source = running(reader, audience, watched_seconds=0.01)
    reader.released.clear()
    wait_until(lambda: reader.is_held, 10, "an outstanding call")
    calls = reader.calls
    reading = source.reading
    assert reading.asked_at is not None
    assert reading.silent_from(reading.asked_at + SILENT_SECONDS - 0.1) is None
    assert reading.silent_from(reading.asked_at + SILENT_SECONDS + 0.1) == reading.answered_at
    assert reader.calls == calls
    reader.released.set()
    wait_until(lambda: reader.calls > calls, 10, "the next call")
    source.stop()


def test_a_call_that_hangs_and_then_succeeds_ends_a_silence(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
    audience, reader = Audience(), Asked()
    audience.look()
    source = running(reader, audience, watched_seconds=0.01)
    reader.released.clear()
    wait_until(lambda: source.reading.silent_from(time.monotonic()) is not None, 10, "the silence")
    reader.released.set()
    wait_until(lambda: source.reading.recovered_at is not None, 10, "the end of the silence")
    source.stop()
    assert source.reading.silence_seconds > 0.05


def test_a_failure_and_its_end_are_remembered() -> None:
    audience, reader = Audience(), Asked()
    audience.look()
    source = running(reader, audience, watched_seconds=0.01)
    reader.error = ConnectionError("postgresql://app:secret@db\nrefused " + "x" * 1_000)
    wait_until(lambda: source.reading.silent_since is not None, 10, "the failure")
    failed = source.reading
    assert failed.error is not None
    assert "secret" not in failed.error
    assert len(failed.error) <= module.ERROR_MAX_CHARACTERS
    assert failed.silent_since is not None
    reader.error = None
    wait_until(lambda: source.reading.silent_since is None, 10, "the next answer")
    source.stop()
    back = source.reading
    assert back.error is None
    assert back.recovered_at is not None
    assert back.silence_seconds >= back.recovered_at - failed.silent_since - 0.001


def test_a_source_that_never_answered_is_silent_since_its_first_call() -> None:
    reading: Reading[int] = Reading(silent_since=10.0)
    assert reading.silent_from(10.0 + SILENT_SECONDS - 0.1) is None
    assert reading.silent_from(60.0) == 10.0
    assert reading.age(60.0) is None


def test_a_series_keeps_five_minutes_and_a_limited_number_of_points() -> None:
    history = History()
    for second in range(1_000):
        history.add("x", float(second), second)
    points = history.points(999.0)["x"]
    assert len(points) == 300
    assert points[-1] == (999.0, 999)
    assert history.points(1_250.0)["x"][0][0] == 950.0


def test_growth_rates_and_means_need_points() -> None:
    points = ((0.0, 10.0), (2.0, 14.0), (4.0, 22.0))
    assert grown(points, 4.0, 10) == (12.0, 4.0)
    assert per_second(points, 4.0, 2) == 4.0
    assert per_second(points, 4.0, 1) is None
    assert average(points, 4.0, 2) == 18.0
    assert average((), 4.0, 2) is None


def test_steps_carry_a_value_over_a_short_gap_only() -> None:
    values = steps(((100.0, 1.0), (290.0, 2.0)), 300.0, 60)
    assert len(values) == 60
    first = values.index(1.0)
    assert values[:first] == [None] * first
    assert values[first : first + 7] == [1.0] * 7
    assert values[first + 7] is None
    assert values[-1] == 2.0
    assert steps((), 300.0, 60) == [None] * 60
