"""Runs the timers of a handler in a thread of their own, so that timers and batches never wait for each other (P5)."""

import time
from collections.abc import Callable, Sequence
from threading import Event as Signal
from threading import Thread

from orderstream.kafka.errors import KafkaRefusedError
from orderstream.postgres.connect import Connection
from orderstream.postgres.faults import is_fatal
from orderstream.postgres.session import Session
from orderstream.process.readiness import Readiness
from orderstream.telemetry import logs
from orderstream.worker.batch import may_succeed_later
from orderstream.worker.handler import Timer

TIMER_SECONDS = 0.2
"""Time after which the other timers run first, even if a timer has more work."""
DRAIN_WAIT_SECONDS = 0.05
WAIT_SECONDS = 5.0
"""Longest wait for work. A thread that waits is not stuck."""

log = logs.get()


class TimerLoop:
    """Runs timers until `stop` is set, in one thread. The session belongs to it.

    Only the thread that owns the loop calls `start`, `join` and `raise_failure`.
    """

    def __init__(
        self,
        timers: Sequence[Timer],
        wake: Signal,
        session: Session,
        readiness: Readiness,
        stop: Signal,
        *,
        drain_seconds: float,
    ) -> None:
        self._drain_seconds = drain_seconds
        self._timers = timers
        self._wake = wake
        self._session = session
        self._readiness = readiness
        self._stop = stop
        self._due = dict.fromkeys((timer.name for timer in timers), 0.0)
        self._failed: set[str] = set()
        """The timers whose last run failed. They wait for their interval, so that a wake-up is no retry."""
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="timers") if timers else None
        self._beat: float | None = None

    @property
    def beat(self) -> float:
        """Monotonic time at which a timer, or the wait for one, last began. Without the thread, the current time."""
        return time.monotonic() if self._beat is None else self._beat

    def start(self) -> None:
        """Start the thread, if there are timers. A second call does nothing."""
        if self._thread is not None and self._thread.ident is None:
            self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, at most this long. Set the stop signal before."""
        self._wake.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(seconds)

    def raise_failure(self) -> None:
        """Raise the error that ended the thread, if there is one."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                for timer in self._timers:
                    if self._is_due(timer) and not self._stop.is_set():
                        self._beat = time.monotonic()
                        self._attempt(timer)
            self._drain()
        except BaseException as error:  # noqa: BLE001 - the thread that owns this loop raises it
            self._failure = error
            self._stop.set()
        finally:
            self._beat = None
            self._session.close()

    def _wait_for_work(self) -> bool:
        """Wait until a timer is due or `wake` is set. Return False if the process stops."""
        self._beat = time.monotonic()
        self._wake.wait(min(max(0.0, min(map(self._due_at, self._timers)) - time.monotonic()), WAIT_SECONDS))
        # Cleared before a timer looks for work and before the stop signal is read, so that no wake-up is lost.
        self._wake.clear()
        return not self._stop.is_set()

    def _drain(self) -> None:
        """Run the timers that are busy until they are not, for half of the drain at most."""
        until = time.monotonic() + self._drain_seconds / 2
        while time.monotonic() < until and (busy := [timer for timer in self._timers if timer.is_busy()]):
            for timer in busy:
                self._beat = time.monotonic()
                self._attempt(timer)
            if any(timer.name in self._failed for timer in busy):
                return
            self._wake.wait(DRAIN_WAIT_SECONDS)
            self._wake.clear()

    def _due_at(self, timer: Timer) -> float:
        """Return the time at which a timer runs without a wake-up. After a failure, that is after its interval."""
        due = self._due[timer.name]
        return due if timer.name in self._failed else min(due, timer.due_at())

    def _is_due(self, timer: Timer) -> bool:
        if time.monotonic() >= self._due_at(timer):
            return True
        return timer.name not in self._failed and timer.has_work()

    def _attempt(self, timer: Timer) -> None:
        """Run a timer. If it fails, it runs again after its interval. Raises errors that no retry helps."""
        activity = f"not run its timer {timer.name}"
        self._readiness.begin(activity)
        try:
            is_done = self._run_for_a_while(timer.run)
        except Exception as error:
            if is_fatal(error) or isinstance(error, KafkaRefusedError):
                raise
            self._readiness.failed(activity, error)
            self._failed.add(timer.name)
            log.warning("timer_retry", timer=timer.name, exc_info=None if may_succeed_later(error) else error)
            is_done = True
        else:
            self._readiness.succeeded(activity)
            self._failed.discard(timer.name)
        self._due[timer.name] = time.monotonic() + (timer.every_seconds if is_done else 0.0)

    def _run_for_a_while(self, run: Callable[[Connection], bool]) -> bool:
        """Run until no work is left or TIMER_SECONDS have passed. Return whether no work is left."""
        started = time.monotonic()
        with self._session.use() as connection:
            while run(connection):
                if time.monotonic() - started >= TIMER_SECONDS or self._stop.is_set():
                    return False
        return True
