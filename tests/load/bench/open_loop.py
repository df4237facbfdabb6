"""An open-loop HTTP client: sends requests at a fixed rate, whether or not the server keeps up.

A client that waits for answers slows down together with the system, and then hides how long its users would wait. This
client has a schedule. The latency of a request counts from its scheduled time, also if the client itself or the server
delayed its sending. A request that cannot be sent waits in a queue, and is sent as soon as a connection is free.

It runs in a process of its own: `python -m tests.load.bench.open_loop` reads a `Job` from stdin and writes a `Report`
to stdout, both as MessagePack. tests/load/bench/open_load.py starts it. One request costs about 50 us of CPU.
"""

import asyncio
import contextlib
import gc
import math
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import uvloop

SHARES = (0.5, 0.95, 0.99, 1.0)
"""The percentiles of a report. The last one is the maximum."""
TICK_SECONDS = 0.001
"""The resolution of the event loop's timers."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to send.

    The client sends `count` requests, `rate` per second, and repeats the list `requests` (whole HTTP/1.1 requests) as
    often as necessary. An answer with the status `expected` is accepted, any other answer is refused. A request is
    unanswered if its connection ends first, or `answer_limit_seconds` after the last request was scheduled.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    rate: float
    count: int
    expected: int = 201
    connections_max: int = 256
    answer_limit_seconds: float = 30.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The counts and times of a run. The sequences have the percentiles SHARES.

    `latency_ms` counts from the scheduled time to the answer, of answered requests only. `late_ms` says how much later
    than scheduled the client itself got to a request: a late client means that the machine had no CPU left for it.
    `cpu_seconds` is the CPU that the client used from its first request to its last answer.
    """

    accepted: int
    refused: int
    unanswered: int
    statuses: dict[int, int]
    latency_ms: Sequence[float]
    late_ms: Sequence[float]
    seconds: float
    cpu_seconds: float


class Schedule:
    """The times of `count` requests, evenly spaced from `began` on. All times are in seconds of one clock."""

    def __init__(self, began: float, rate: float, count: int) -> None:
        self._began = began
        self._rate = rate
        self._count = count

    def at(self, number: int) -> float:
        """Return the time of the request `number`, counted from 0."""
        return self._began + number / self._rate

    def due(self, now: float) -> int:
        """Return how many requests were scheduled up to `now`."""
        return max(0, min(self._count, math.floor((now - self._began) * self._rate) + 1))


def percentiles(values: Sequence[float], shares: Sequence[float] = SHARES) -> list[float]:
    """Return for each share the smallest value that at least this share of `values` does not exceed. NaN if empty."""
    if not values:
        return [math.nan] * len(shares)
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares]


def answer_in(received: bytes) -> tuple[int, int] | None:
    """Return the status and the size of the answer at the start of `received`. None if it is not complete.

    Reads only what the gateway sends: a status line, and a body with a content-length. Raises ValueError otherwise.
    """
    head = received.find(_HEAD_END)
    if head < 0:
        return None
    if not received.startswith(b"HTTP/1.1 "):
        raise ValueError(f"no HTTP/1.1 answer: {received[:40]!r}")
    field = received.find(_LENGTH, 0, head)
    length = 0 if field < 0 else int(received[field + len(_LENGTH) : received.index(b"\r\n", field)])
    end = head + len(_HEAD_END) + length
    return None if len(received) < end else (int(received[9:12]), end)


class _Connection(asyncio.Protocol):
    """A connection with at most one request in flight. `intended` is the scheduled time of that request."""

    __slots__ = ("_client", "_received", "_transport", "intended")

    _transport: asyncio.Transport

    def __init__(self, client: "OpenLoop") -> None:
        self._client = client
        self._received = b""
        self.intended: float | None = None

    def send(self, request: bytes, intended: float) -> None:
        self.intended = intended
        self._transport.write(request)

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._client.is_made(self)

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        answer = answer_in(received)
        if answer is None:
            self._received = received
            return
        status, end = answer
        if end != len(received) or self.intended is None:
            raise ValueError("the server sent more than one answer")
        self._received = b""
        intended, self.intended = self.intended, None
        self._client.is_answered(status, intended)
        self._client.is_free(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.is_lost(self)


class OpenLoop:
    """Runs one job. Its schedule begins when it is created."""

    def __init__(self, job: Job, clock: Callable[[], float] = time.perf_counter) -> None:
        self._job = job
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._began = clock()
        self._schedule = Schedule(self._began, job.rate, job.count)
        self._sent = 0
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._free: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._statuses: Counter[int] = Counter()
        self._lost = 0
        self._latency = array("d")
        self._late = array("d")
        self._done = asyncio.Event()

    async def run(self) -> Report:
        """Send everything, wait for the answers, and return the report."""
        cpu = time.process_time()
        self._send_due()
        last = self._schedule.at(self._job.count - 1) - self._began
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), last + self._job.answer_limit_seconds)
        report = self._report(self._clock() - self._began, time.process_time() - cpu)
        for connection in tuple(self._open):
            connection.abort()
        return report

    def _send_due(self) -> None:
        """Send the requests that are due, and come back when the next one is."""
        now = self._clock()
        requests = self._job.requests
        for number in range(self._sent, self._schedule.due(now)):
            intended = self._schedule.at(number)
            self._late.append(now - intended)
            self._send(requests[number % len(requests)], intended)
            self._sent = number + 1
        if self._sent < self._job.count:
            self._loop.call_later(max(TICK_SECONDS, self._schedule.at(self._sent) - now), self._send_due)

    def _send(self, request: bytes, intended: float) -> None:
        if self._free:
            self._free.pop().send(request, intended)
            return
        self._waiting.append((request, intended))
        if len(self._open) + len(self._connecting) < self._job.connections_max:
            task = self._loop.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        """Open a connection. If that fails, a request that waits for a connection stays unanswered."""
        try:
            await self._loop.create_connection(lambda: _Connection(self), self._job.host, self._job.port)
        except OSError:
            if self._waiting:
                self._waiting.popleft()
                self._count_lost()

    def is_made(self, connection: _Connection) -> None:
        """Use a new connection."""
        self._open.add(connection)
        self.is_free(connection)

    def is_free(self, connection: _Connection) -> None:
        """Use a connection for the request that waits longest. The connection used last is used first."""
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def is_answered(self, status: int, intended: float) -> None:
        """Count an answer."""
        self._latency.append(self._clock() - intended)
        self._statuses[status] += 1
        self._end_when_complete()

    def is_lost(self, connection: _Connection) -> None:
        """Count a connection that ended, and the request that it carried."""
        self._open.discard(connection)
        if connection.intended is not None:
            self._count_lost()
        elif connection in self._free:
            self._free.remove(connection)

    def _count_lost(self) -> None:
        self._lost += 1
        self._end_when_complete()

    def _end_when_complete(self) -> None:
        if len(self._latency) + self._lost == self._job.count:
            self._done.set()

    def _report(self, seconds: float, cpu_seconds: float) -> Report:
        accepted = self._statuses[self._job.expected]
        return Report(
            accepted=accepted,
            refused=len(self._latency) - accepted,
            unanswered=self._job.count - len(self._latency),
            statuses=dict(self._statuses),
            latency_ms=[value * 1_000 for value in percentiles(self._latency)],
            late_ms=[value * 1_000 for value in percentiles(self._late)],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
        )


def run(job: Job) -> Report:
    """Run a job on an event loop of its own."""

    async def main() -> Report:
        return await OpenLoop(job).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


if __name__ == "__main__":
    the_job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    # A pause of the garbage collector would delay requests. The client creates no cycles while it runs.
    gc.freeze()
    gc.disable()
    sys.stdout.buffer.write(msgspec.msgpack.encode(run(the_job)))
