"""Measures dead letters: how fast the index reads them, and how a job redrives them, with a kill in the middle.

`python -m tests.load.dead_letters [--letters 100000] [--rate 5000]` starts servers of its own. It prints for each step
the seconds, the letters per second, and the memory of the process that does the work. It exits with 1 if a letter was
lost, or redriven twice without a note in its history.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import psutil
from confluent_kafka import Producer

from orderstream.dead_letters import index, jobs
from orderstream.dead_letters.index import Filter
from orderstream.dead_letters.jobs import Job, Selection
from orderstream.dead_letters.runner import JobRunner
from orderstream.dead_letters.tailer import Tailer
from orderstream.kafka.topics import ensure_topics
from orderstream.local.processes.state import checkout
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings, load
from tests.support.databases import Databases
from tests.support.servers import servers
from tests.support.topics import Tap
from tests.support.waiting import wait_until

SERVICE, SOURCE = "payment-worker", "order.created.v1"
VALUE = b'{"type":"order.created","padding":"' + b"x" * 900 + b'"}'
LIMIT_SECONDS = 900
MIB = 1 << 20


def work(what: str) -> None:
    """Do the work of a console, in a process that is measured and killed: read letters, or run jobs."""
    settings = load()
    if what == "read":
        Tailer(settings, settings.postgres_url).run()
    else:
        JobRunner(settings, settings.postgres_url).run()


class Worker:
    """A process that works, and the most memory that it used."""

    def __init__(self, settings: Settings, what: str) -> None:
        names = ("postgres_url", "redis_url", "kafka_brokers")
        env = os.environ | {name.upper(): str(getattr(settings, name)) for name in names} | {"LOG_LEVEL": "error"}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.load.dead_letters", "--work", what], env=env)
        self._memory = psutil.Process(self.process.pid)
        self.samples: list[int] = []

    def until(self, condition: Callable[[], bool], why: str) -> None:
        """Wait for a condition, and sample the memory."""

        def ask() -> bool:
            assert self.process.poll() is None, "the worker has ended"
            self.samples.append(self._memory.memory_full_info().pss)
            time.sleep(0.2)
            return condition()

        wait_until(ask, LIMIT_SECONDS, why)

    def kill(self) -> None:
        """End it as the system does when there is no memory left."""
        self.process.kill()
        self.process.wait()

    @property
    def memory(self) -> str:
        """The memory in the middle and at the end, and the most."""
        middle, end = self.samples[len(self.samples) // 2], self.samples[-1]
        most = max(self.samples)
        return f"{middle / MIB:.0f} MiB in the middle, {end / MIB:.0f} at the end, {most / MIB:.0f} at most"


def write(settings: Settings, number: int) -> None:
    """Write dead letters as a worker does."""
    producer = Producer({"bootstrap.servers": settings.kafka_brokers, "linger.ms": 20, "partitioner": "murmur2_random"})
    for count in range(number):
        notes = {"topic": SOURCE, "partition": "0", "offset": str(count), "reason": "FAILED", "attempts": "9"}
        notes["error"] = f"CheckViolation: row {count}"
        headers = {f"dlq-{name}": text.encode() for name, text in notes.items()}
        while True:
            try:
                producer.produce(f"{SERVICE}.dlq.v1", VALUE, f"order-{count}".encode(), headers=dict(headers))
                break
            except BufferError:
                producer.poll(0.5)
    assert producer.flush(120) == 0


def read(settings: Settings, connection: Connection, number: int) -> None:
    """Measure how the index reads them."""
    worker, began = Worker(settings, "read"), time.monotonic()
    worker.until(lambda: _count(connection) == number, "the index has every letter")
    seconds = time.monotonic() - began
    worker.kill()
    print(f"read: {number} letters in {seconds:.1f} s, {number / seconds:.0f}/s, {worker.memory}", flush=True)


def _count(connection: Connection) -> int:
    (row,) = connection.execute("SELECT count(*) FROM dead_letters").fetchall()
    return int(row[0])


def redrive(settings: Settings, connection: Connection, number: int, rate: int) -> bool:
    """Measure a job that is killed in the middle, and return whether each letter is accounted for."""
    began = time.monotonic()
    counted = jobs.count(connection, "redrive", Selection(Filter()))
    print(f"dry run: {counted.count} letters in {time.monotonic() - began:.2f} s", flush=True)
    began = time.monotonic()
    groups = index.groups(connection, Filter())
    print(f"groups: {len(groups.groups)} in {time.monotonic() - began:.2f} s", flush=True)
    began = time.monotonic()
    job = jobs.create(connection, "redrive", Selection(Filter()), counted.confirm, actor="load", note="load", rate=rate)
    print(f"start of the job: {time.monotonic() - began:.2f} s", flush=True)
    with Tap(settings.kafka_brokers, [SOURCE]) as tap:
        first, began = Worker(settings, "run"), time.monotonic()
        first.until(lambda: bool(tap.read()) and _job(connection, job).done >= number // 2, "half of the letters")
        half = time.monotonic() - began
        first.kill()
        print(f"redrive, until the kill: {half:.1f} s, {number / 2 / half:.0f}/s, {first.memory}", flush=True)
        second, began = Worker(settings, "run"), time.monotonic()
        second.until(lambda: bool(tap.read()) and _job(connection, job).is_finished, "the end of the job")
        print(f"redrive, after the kill: {time.monotonic() - began:.1f} s, {second.memory}", flush=True)
        second.kill()
        sent = Counter(record.headers["redriven-from"] for record in tap.so_far())
    ended = _job(connection, job)
    twice = sum(times > 1 for times in sent.values())
    lost = number - len(sent)
    print(f"lost: {lost}, twice: {twice}, noted as maybe twice: {ended.sent_twice}, job: {ended.state}", flush=True)
    return lost == 0 and twice <= ended.sent_twice and ended.done == number


def _job(connection: Connection, job: Job) -> Job:
    found = jobs.job(connection, job.id)
    assert found is not None
    return found


def main() -> int:
    """Measure, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--work", choices=("read", "run"))
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return 0
    with servers(checkout() / ".orderstream" / "bench-letters") as running:
        settings = Settings.model_validate({"kafka_brokers": running.kafka_brokers, "redis_url": running.redis_url})
        ensure_topics(settings)
        with Databases(running.postgres_url).migrated() as url, connect(url, "load") as connection:
            own = settings.model_copy(update={"postgres_url": url})
            began = time.monotonic()
            write(own, given.letters)
            print(f"wrote {given.letters} letters in {time.monotonic() - began:.1f} s", flush=True)
            read(own, connection, given.letters)
            return 0 if redrive(own, connection, given.letters, given.rate) else 1


if __name__ == "__main__":
    sys.exit(main())
