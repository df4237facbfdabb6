"""When the process stops, the timers that are busy go on, although another one has failed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from orderstream.postgres.connect import Connection
from orderstream.postgres.session import Session
from orderstream.process.readiness import Readiness
from orderstream.worker.handler import Timer
from orderstream.worker.timers import TimerLoop
from tests.support.waiting import wait_until


class NoSession:
    """A session for timers that need no connection."""

    @contextmanager
    def use(self) -> Iterator[None]:
        yield None

    def close(self) -> None:
        """There is nothing to close."""


def test_a_failed_timer_does_not_end_the_drain_of_another_one() -> None:
    runs, left = threading.Semaphore(0), [3]

    def fail(_connection: Connection) -> bool:
        runs.release()
        raise ValueError("a defect")

    def work(_connection: Connection) -> bool:
        left[0] -= stop.is_set()
        return False

    stop, session = threading.Event(), cast("Session", NoSession())
    timers = [Timer("work", 60, work, is_busy=lambda: left[0] > 0), Timer("fail", 60, fail)]
    loop = TimerLoop(timers, threading.Event(), session, Readiness(), stop, drain_seconds=20)
    loop.start()
    wait_until(lambda: runs.acquire(blocking=False), 10, "a timer has failed")
    stop.set()
    loop.join(20)
    assert left == [0]
