"""Tests of two connections, of which one waits for a lock of the other. The wait is observed, not assumed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from orderstream.postgres.connect import Connection
from tests.support.waiting import wait_until

T = TypeVar("T")

_WAITING = """
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


def after_it_waits(observer: Connection, work: Callable[[], T], release: Callable[[], object]) -> T:
    """Run `work` in a thread. When it waits for a lock, or has finished, call `release`. Return its result."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[T] = pool.submit(work)
        try:
            wait_until(
                lambda: future.done() or observer.execute(_WAITING).fetchone() is not None,
                10,
                "the other connection waits for a lock, or has finished",
            )
        finally:
            release()
        return future.result(20)
