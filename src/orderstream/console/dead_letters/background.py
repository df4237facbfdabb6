"""The background work for dead letters in the console's process: a tailer fills the index, a runner works on jobs."""

import threading

from orderstream.dead_letters.runner import JobRunner
from orderstream.dead_letters.tailer import Tailer
from orderstream.settings import Settings

STOP_SECONDS = 1.0
"""Longest wait for the threads. They are daemons, and other consoles go on with their work."""


class DeadLetterWork:
    """The tailer and the runner of one console, each in a thread."""

    def __init__(self, settings: Settings) -> None:
        url = settings.console_postgres_url or settings.postgres_url
        self.tailer = Tailer(settings, url)
        self.runner = JobRunner(settings, url)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to work."""
        for part in (self.tailer, self.runner):
            thread = threading.Thread(target=part.run, name=type(part).__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the work, and wait for STOP_SECONDS at most for each thread."""
        self.tailer.stop()
        self.runner.stop()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
