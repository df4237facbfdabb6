"""The limit of `make bench`: how fast the rows and the messages of orders can be written at all on this machine.

One process writes the final rows of CONFIRMED orders into the tables of OrderStream, in batches. At the same time two
processes send the same messages through Kafka, without a consumer that decides anything. Nothing is served over HTTP,
nothing is read from the tables, and no row is written twice. A system that does more work per order stays below.
"""

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import psycopg
from msgspec import Struct

from orderstream.kafka.topics import ensure_topics
from orderstream.local.processes.state import shared_cache
from orderstream.local.servers.kafka import Kafka
from orderstream.postgres.migrate import migrate
from orderstream.settings import Settings
from tests.load.bench.peers.limit import sample, workers
from tests.load.bench.peers.servers import servers

about = (
    "The same final rows (orders, items, payments, reservations, stock) in batches of 500 by one process, and the same"
    " four messages of each order through Kafka alone, at the same time. There is no HTTP, no outbox, no decision and"
    " no row that is read or changed again."
)
_START_SECONDS = 60.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.01
_UNITS = 10**12


class Limit(Struct, frozen=True):
    """What the machine could do. `cpu_us_per_order` has the microseconds of CPU of each process for one order."""

    settled_per_second: float
    cpu_us_per_order: Mapping[str, float]


class LimitError(Exception):
    """A process of the limit ended."""


def measure(folder: Path, warm_up_seconds: float, seconds: float) -> Limit:
    """Write rows and messages for `seconds`, after a warm-up, with empty servers below `folder`.

    An order counts when its rows are committed and when as many messages as it has are acknowledged and read.
    Raises LimitError, ChildError.
    """
    with servers(folder, tables=False) as these:
        kafka = Kafka(these.port("kafka"), these.port("kafka-controller"), these.home, shared_cache())
        these.start(kafka)
        ensure_topics(Settings.model_validate({"kafka_brokers": kafka.brokers}))
        migrate(these.postgres_url)
        with psycopg.connect(these.postgres_url) as connection:
            connection.execute("INSERT INTO inventory (sku, available) VALUES (%s, %s)", [sample.SKU, _UNITS])
        with _working(these.postgres_url, kafka.brokers) as (progress, started):
            _run(progress, started, warm_up_seconds)
            pids = {**these.processes(), **{process.name: process.pid or 0 for process in started}}
            orders, began, cpu = progress.done(), time.monotonic(), _cpu_seconds(pids)
            _run(progress, started, seconds)
            orders, took = progress.done() - orders, time.monotonic() - began
            used = {name: total - cpu[name] for name, total in _cpu_seconds(pids).items()}
    return Limit(orders / took, {name: used_seconds / orders * 1e6 for name, used_seconds in used.items()})


@contextmanager
def _working(postgres_url: str, brokers: str) -> Iterator[tuple[workers.Progress, list[BaseProcess]]]:
    """Run the three processes until the block ends."""
    context = multiprocessing.get_context("spawn")
    progress = workers.Progress(context)
    started: list[BaseProcess] = [
        context.Process(target=workers.write_rows, name="rows", args=(progress, postgres_url)),
        context.Process(target=workers.produce, name="producer", args=(progress, brokers)),
        context.Process(target=workers.read, name="reader", args=(progress, brokers)),
    ]
    try:
        for process in started:
            process.start()
        yield progress, started
    finally:
        progress.stop.set()
        for process in started:
            process.join(_END_SECONDS)
            process.kill()


def _run(progress: workers.Progress, started: list[BaseProcess], seconds: float) -> None:
    """Wait until the first order is done, then for `seconds`. Raises LimitError if a process ends meanwhile."""
    deadline = time.monotonic() + _START_SECONDS
    while progress.done() == 0 and time.monotonic() < deadline:
        _check(started)
        time.sleep(_POLL_SECONDS)
    if progress.done() == 0:
        raise LimitError(f"no order was done within {_START_SECONDS:.0f} s")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        _check(started)
        time.sleep(min(left, 1.0))


def _check(started: list[BaseProcess]) -> None:
    for process in started:
        if process.exitcode is not None:
            raise LimitError(f"{process.name} exited with {process.exitcode}")


def _cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU of each process and its descendants, including those that have ended."""
    totals = dict.fromkeys(pids, 0.0)
    for name, pid in pids.items():
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            try:
                totals[name] += sum(member.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
    return totals
