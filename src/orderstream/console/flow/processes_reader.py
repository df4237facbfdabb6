"""Samples the processes: alive, ready or why not, restarts, and a few figures of their metrics pages.

A process that does not answer delays the sample by PAGE_SECONDS for each of its pages at most, and no other source.
"""

import http.client
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from msgspec import Struct

from orderstream.console.flow.targets import Target, Targets
from orderstream.local.processes.masking import masked
from orderstream.local.provider import FIGURES as PROVIDER_FIGURES
from orderstream.telemetry.metrics_page import Figures, figures_of, largest, total

PAGE_SECONDS = 1.0
PAGE_MAX_BYTES = 4 << 20
PROBLEM_MAX_CHARACTERS = 200
INSTANCES_MAX = 64
"""Processes that are asked. Further ones are not shown, and the overview says so."""
PARALLEL_MAX = 16
RESTART_SECONDS = 300.0
"""A restart is remembered for this long."""

State = Literal["ready", "not ready", "no answer", "ended"]

_STARTED = "process_start_time_seconds"
_MEMORY = "process_resident_memory_bytes"
_CONSUMED = "orderstream_records_consumed_total"
_PRODUCED = "orderstream_events_produced_total"
_BATCH_SUM = "orderstream_batch_seconds_sum"
_BATCH_COUNT = "orderstream_batch_seconds_count"
_REQUESTS = "orderstream_http_requests_total"
_BUCKETS = "orderstream_http_request_seconds_bucket"
_CACHE = "orderstream_cache_reads_total"
_POST = 'route="POST /orders"'
WANTED = PROVIDER_FIGURES | {
    *(_STARTED, _MEMORY, _CONSUMED, _PRODUCED, _BATCH_SUM, _BATCH_COUNT, _REQUESTS, _BUCKETS, _CACHE)
}


class Rates(Struct, frozen=True, rename="camel"):
    """What a process did since the last sample. None: it does not do this, or it is not known yet."""

    records_per_second: float | None = None
    events_per_second: float | None = None
    batch_seconds: float | None = None
    requests_per_second: float | None = None
    post_p99_seconds: float | None = None
    cache_hits: float | None = None
    """Share of the reads that the cache answered."""


class Instance(Struct, frozen=True):
    """One process in a sample."""

    target: Target
    state: State
    problem: str | None
    restarts: tuple[float, ...]
    """Monotonic times of the restarts of the last RESTART_SECONDS, as far as the console saw them."""
    rates: Rates
    page: Figures
    memory_bytes: float | None


class ProcessesSample(Struct, frozen=True):
    """All processes, and how many further ones were not asked."""

    instances: tuple[Instance, ...]
    left_out: int = 0


class _Before(Struct):
    """What is known of a process from the last samples."""

    at: float
    page: Figures
    restarts: list[float]


class ProcessesReader:
    """Asks the processes that `targets` returns, several at a time."""

    def __init__(self, targets: Targets, clock: Callable[[], float] = time.monotonic) -> None:
        self._targets = targets
        self._clock = clock
        self._pool = ThreadPoolExecutor(PARALLEL_MAX, "flow page")
        self._before: dict[tuple[str, str, int], _Before] = {}

    def ask(self) -> ProcessesSample:
        """Return a sample."""
        targets = self._targets()
        asked = targets[:INSTANCES_MAX]
        pages = self._pool.map(_pages, asked)
        found = tuple(self._instance(target, *answer) for target, answer in zip(asked, pages, strict=True))
        names = {_key(target) for target in asked}
        self._before = {key: before for key, before in self._before.items() if key in names}
        return ProcessesSample(found, len(targets) - len(asked))

    def _instance(self, target: Target, state: State, problem: str | None, page: Figures) -> Instance:
        now = self._clock()
        before = self._before.get(_key(target))
        restarts = [at for at in before.restarts if now - at < RESTART_SECONDS] if before else []
        rates = Rates()
        if page:
            if before and before.page:
                if largest(before.page, _STARTED) != largest(page, _STARTED):
                    restarts.append(now)
                else:
                    rates = rates_between(before.page, page, now - before.at)
            self._before[_key(target)] = _Before(now, page, restarts)
        elif before:
            before.restarts = restarts
        memory = largest(page, _MEMORY) or None
        return Instance(target, state, problem, tuple(restarts), rates, page, memory)

    def close(self) -> None:
        """End the threads when their calls have ended."""
        self._pool.shutdown(wait=False)


def _key(target: Target) -> tuple[str, str, int]:
    return target.name, target.host, target.port


def rates_between(before: Figures, after: Figures, seconds: float) -> Rates:
    """Return what a process did between two of its metrics pages."""
    if seconds <= 0:
        return Rates()

    def grown(name: str, label: str = "") -> float:
        return max(0.0, total(after, name, label) - total(before, name, label))

    def per_second(name: str) -> float | None:
        return grown(name) / seconds if name in after else None

    batches, reads = grown(_BATCH_COUNT), grown(_CACHE)
    return Rates(
        records_per_second=per_second(_CONSUMED),
        events_per_second=per_second(_PRODUCED),
        batch_seconds=grown(_BATCH_SUM) / batches if batches else None,
        requests_per_second=per_second(_REQUESTS),
        post_p99_seconds=_p99(_grown_buckets(before, after)),
        cache_hits=grown(_CACHE, 'outcome="hit"') / reads if reads else None,
    )


def _grown_buckets(before: Figures, after: Figures) -> dict[float, float]:
    """Return by upper limit how many more POST requests took at most that long."""
    then = dict(before.get(_BUCKETS, ()))
    return {
        float(labels.partition('le="')[2].partition('"')[0]): value - then.get(labels, 0.0)
        for labels, value in after.get(_BUCKETS, ())
        if _POST in labels
    }


def _p99(buckets: Mapping[float, float]) -> float | None:
    """Return the upper limit of the bucket in which 99 % of the requests end; None without requests or a limit."""
    number = max(buckets.values(), default=0.0)
    if number <= 0:
        return None
    limit = min(limit for limit, grown in buckets.items() if grown >= 0.99 * number)
    return None if limit == float("inf") else limit


def _pages(target: Target) -> tuple[State, str | None, Figures]:
    """Return the state of a process, why it is not ready, and its figures."""
    if target.ended:
        return "ended", None, {}
    try:
        status, text = _get(target, "/readyz")
        answer, page = _get(target, "/metrics")
        figures = figures_of(page, WANTED) if answer == http.client.OK else {}
    except (OSError, http.client.HTTPException, ValueError):
        return "no answer", None, {}
    if status == http.client.OK:
        return "ready", None, figures
    return "not ready", masked(text.strip())[:PROBLEM_MAX_CHARACTERS] or f"status {status}", figures


def _get(target: Target, path: str) -> tuple[int, str]:
    """Return status and text of a page. The request goes straight to the address. HTTP_PROXY is ignored."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=PAGE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(PAGE_MAX_BYTES).decode(errors="replace")
    finally:
        connection.close()
