"""What the areas of the console get: settings, stores, templates, and a place for blocking work."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar, cast

import psycopg

from orderstream.console.dead_letters.background import DeadLetterWork
from orderstream.console.flow.monitor import Monitor
from orderstream.console.flow.targets import targets_of
from orderstream.console.flow.topic_view import TopicView
from orderstream.console.flow.topics import Topics
from orderstream.console.local_stack import LocalStack
from orderstream.console.orders.record_search import RecordSearch
from orderstream.console.stores import Stores
from orderstream.console.traces.store import TraceStore
from orderstream.console.web.pages import Templates
from orderstream.http_server.problems import Problem
from orderstream.settings import Settings
from orderstream.telemetry import logs

THREADS = 8
WAITING_MAX = 64
"""Requests that wait for a thread. Further ones are answered with 503."""

P = ParamSpec("P")
R = TypeVar("R")


class Console:
    """The parts of one console process."""

    def __init__(self, settings: Settings, stores: Stores, templates: Templates, local: LocalStack | None) -> None:
        self.settings = settings
        self.stores = stores
        self.templates = templates
        self.local = local
        self.traces = TraceStore()
        targets, services = targets_of(settings, local)
        self.flow = Monitor(settings, targets, services, local=local is not None)
        self.topics = TopicView(settings, Topics(settings), self.flow.kafka_is_silent)
        self.record_search = RecordSearch(settings)
        self.dead_letters = DeadLetterWork(settings)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="work")
        self._waiting = 0
        self._parts: dict[object, object] = {}

    def part(self, make: "Callable[[Console], R]") -> R:
        """Return the object that `make` makes for this console, the same one each time. Areas keep state in it."""
        if make not in self._parts:
            self._parts[make] = make(self)
        return cast("R", self._parts[make])

    async def work(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function in a thread, and return its result.

        Raises Problem 503 if too many requests wait, or if PostgreSQL does not answer.
        """
        if self._waiting >= THREADS + WAITING_MAX:
            raise _unavailable("Too many requests wait.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))
        except psycopg.errors.QueryCanceled as error:
            logs.get().warning("query_too_slow", error=str(error)[:500])
            raise _unavailable("PostgreSQL did not answer in time.") from error
        except psycopg.OperationalError as error:
            logs.get().warning("postgres_unreachable", error=str(error)[:500])
            raise _unavailable("PostgreSQL does not answer. Nothing can be shown until it does.") from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads. Work that has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _unavailable(detail: str) -> Problem:
    return Problem(503, "unavailable", "Try again", detail, headers=[(b"retry-after", b"1")])
