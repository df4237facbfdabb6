"""A timer sleeps until its next known row is due, and not in short intervals (P5)."""

import math
import threading
import time
from typing import cast

from orderstream.postgres.connect import Connection
from orderstream.postgres.session import Session
from orderstream.process.readiness import Readiness
from orderstream.worker.due_time import DueTime
from orderstream.worker.handler import Timer
from orderstream.worker.timers import TimerLoop
from tests.support.waiting import wait_until
from tests.unit.worker.test_timer_drain import NoSession


def test_the_earliest_noted_time_counts_and_only_an_earlier_one_wakes_the_thread() -> None:
    woken: list[float] = []
    due = DueTime(lambda: 100.0, lambda: woken.append(due.at))
    assert due.at == math.inf
    for seconds in (5, 7, 3, math.inf):
        due.note(seconds)
    assert woken == [105, 103]
    due.take()
    assert due.at == math.inf
    due.note(9)
    assert due.at == 109


def test_a_timer_runs_at_a_noted_time_long_before_its_interval_has_passed() -> None:
    wake, stop = threading.Event(), threading.Event()
    due = DueTime(time.monotonic, wake.set)
    runs: list[float] = []

    def run(_connection: Connection) -> bool:
        due.take()
        runs.append(time.monotonic())
        return False

    timer = Timer("rare", 3_600, run, due_at=lambda: due.at)
    loop = TimerLoop([timer], wake, cast("Session", NoSession()), Readiness(), stop, drain_seconds=1)
    loop.start()
    try:
        wait_until(lambda: len(runs) == 1, 10, "the timer runs at the start")
        noted = time.monotonic()
        due.note(0.05)
        wait_until(lambda: len(runs) == 2, 10, "the timer runs at the noted time")
    finally:
        stop.set()
        loop.join(10)
    assert runs[1] >= noted + 0.05
    assert len(runs) == 2


def test_a_timer_that_failed_does_not_run_at_a_noted_time() -> None:
    wake, stop = threading.Event(), threading.Event()
    due = DueTime(time.monotonic, wake.set)
    failures, others = [], []

    def fail(_connection: Connection) -> bool:
        failures.append(1)
        raise ValueError("a defect")

    def count(_connection: Connection) -> bool:
        others.append(1)
        return False

    timers = [
        Timer("fails", 3_600, fail, due_at=lambda: due.at),
        Timer("works", 3_600, count, has_work=lambda: True),
    ]
    loop = TimerLoop(timers, wake, cast("Session", NoSession()), Readiness(), stop, drain_seconds=1)
    loop.start()
    try:
        wait_until(lambda: others, 10, "the timers run at the start")
        due.note(0)
        wait_until(lambda: len(others) >= 2, 10, "the thread was woken")
    finally:
        stop.set()
        loop.join(10)
    assert len(failures) == 1
