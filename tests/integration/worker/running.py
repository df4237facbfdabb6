"""Runs a worker's loop in a thread of the test, or in a process that a test can kill."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orderstream.settings import Settings
from orderstream.telemetry import metrics
from orderstream.telemetry.setup import start
from orderstream.worker.runner import Runner
from tests.support.processes import Process
from tests.support.waiting import wait_until, watched

STOP_SECONDS = 20.0
_REPOSITORY = Path(__file__).parents[3]


class Running:
    """A loop in a thread. `error` is the error that ended it, or None."""

    def __init__(self, handler: Any, settings: Settings) -> None:
        self._signal = threading.Event()
        self._is_stopped = False
        self.runner: Runner[Any] = Runner(handler, settings, start(handler.group, settings), self._signal)
        self._finished = metrics.BATCH_RECORDS.labels(handler.group)._sum
        self._finished_before = self._finished.get()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=handler.group)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def ending(self) -> BaseException | str | None:
        """Return how the loop ended without a stop signal; None while it runs."""
        if self._is_stopped or self._thread.is_alive():
            return None
        return self.error or "it returned"

    def wait_ready(self) -> None:
        """Wait until the group has assigned partitions to the loop."""
        wait_until(lambda: self.runner.ready, 60, "the runner joins its group")

    def wait_finished(self, records: int) -> None:
        """Wait until this number of records is processed and their offsets are noted.

        A record may be in its topic a moment before the loop knows it. A stop in this moment makes it unfinished.
        """
        wait_until(
            lambda: self._finished.get() - self._finished_before >= records, 20, f"{records} records are processed"
        )

    def wait_end(self) -> BaseException | None:
        """Wait until the loop ends by itself, and return its error."""
        wait_until(lambda: not self._thread.is_alive(), 60, "the runner ends by itself")
        return self.error

    def stop(self) -> None:
        """Stop the loop as SIGTERM does."""
        self._is_stopped = True
        self._signal.set()
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive(), "the runner does not stop"


@contextmanager
def running(handler: Any, settings: Settings, *, ready: bool = True) -> Iterator[Running]:
    """Run a handler's loop until the block ends. The block fails if the loop fails."""
    loop = Running(handler, settings)
    try:
        with watched(f"the runner of {handler.group}", loop.ending):
            if ready:
                loop.wait_ready()
            yield loop
    finally:
        loop.stop()
    if loop.error is not None:
        raise loop.error


@contextmanager
def process(module: str, settings: Settings, *arguments: str) -> Iterator[Process]:
    """Run `python -m module arguments` like a service, and kill it when the block ends."""
    names = ("postgres_url", "redis_url", "kafka_brokers", "drain_timeout_seconds")
    env = {name.upper(): str(getattr(settings, name)) for name in names}
    env |= {"KAFKA_OPTIONS": ",".join(f"{key}={value}" for key, value in settings.kafka_options.items())}
    child = Process([sys.executable, "-m", module, *arguments], cwd=_REPOSITORY, env=env)
    try:
        with child.watched(f"the process of {module}"):
            yield child
    finally:
        child.kill()
        child.wait(STOP_SECONDS)
