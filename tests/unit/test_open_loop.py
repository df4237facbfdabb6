"""The open-loop client keeps its schedule, counts every request once, and measures from the scheduled time."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

import pytest

from tests.load.bench.open_loop import Job, Report, Schedule, answer_in, percentiles, run

CREATED = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"

Answer = Callable[[int], Awaitable[bytes | None]]
"""Returns the bytes to send for the request with this number, or None to close the connection."""


def report(answer: Answer, count: int, rate: float = 2_000, connections_max: int = 256, limit: float = 10) -> Report:
    """Run a job against a server that answers with `answer`."""
    served = 0
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        handlers.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while await reader.read(len(REQUEST)) == REQUEST:
                served += 1
                data = await answer(served - 1)
                if data is None:
                    break
                writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main() -> Report:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            job = Job(
                host="127.0.0.1",
                port=server.sockets[0].getsockname()[1],
                requests=[REQUEST],
                rate=rate,
                count=count,
                connections_max=connections_max,
                answer_limit_seconds=limit,
            )
            done = await asyncio.to_thread(run, job)
            await asyncio.gather(*filter(None, handlers))
        return done

    return asyncio.run(main())


def test_requests_are_spaced_evenly_from_the_start() -> None:
    schedule = Schedule(10.0, rate=4, count=3)
    assert [schedule.at(number) for number in range(3)] == [10.0, 10.25, 10.5]
    assert [schedule.due(now) for now in (9.9, 10.0, 10.24, 10.25, 10.5, 99.0)] == [0, 1, 1, 2, 3, 3]


def test_a_late_client_catches_up_with_the_schedule() -> None:
    schedule = Schedule(0.0, rate=1_000, count=60_000)
    assert schedule.due(30.0) == 30_001
    assert schedule.at(30_000) == 30.0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentiles(values, (0.5, 0.95, 0.99, 1.0)) == [50.0, 95.0, 99.0, 100.0]
    assert percentiles([7.0], (0.01, 1.0)) == [7.0, 7.0]
    assert all(math.isnan(value) for value in percentiles([], (0.5, 1.0)))


def test_an_answer_is_read_when_it_is_complete() -> None:
    for size in range(len(CREATED)):
        assert answer_in(CREATED[:size]) is None
    assert answer_in(CREATED) == (201, len(CREATED))
    assert answer_in(CREATED + b"HTTP") == (201, len(CREATED))
    assert answer_in(REFUSED) == (503, len(REFUSED))
    with pytest.raises(ValueError, match=r"no HTTP/1\.1 answer"):
        answer_in(b"SSH-2.0\r\n\r\n")


def test_accepted_refused_and_unanswered_requests_are_counted() -> None:
    async def answer(number: int) -> bytes | None:
        return (CREATED, REFUSED, None)[number % 3]

    done = report(answer, count=30)
    assert (done.accepted, done.refused, done.unanswered) == (10, 10, 10)
    assert done.statuses == {201: 10, 503: 10}


def test_a_request_without_an_answer_within_the_limit_is_unanswered() -> None:
    async def answer(number: int) -> bytes | None:
        return b"HTTP/1.1 201 Cre" if number == 2 else CREATED

    done = report(answer, count=5, limit=0.2)
    assert (done.accepted, done.unanswered) == (4, 1)


def test_a_server_that_cannot_be_reached_leaves_every_request_unanswered() -> None:
    job = Job(host="127.0.0.1", port=1, requests=[REQUEST], rate=1_000, count=5)
    done = run(job)
    assert (done.accepted, done.refused, done.unanswered) == (0, 0, 5)


def test_the_latency_includes_the_wait_for_a_slow_server() -> None:
    """One connection and 50 ms for each answer: the sixth request, scheduled at once, waits for five others."""

    async def answer(number: int) -> bytes | None:
        await asyncio.sleep(0.05)
        return CREATED

    done = report(answer, count=6, connections_max=1)
    assert done.accepted == 6
    assert done.latency_ms[-1] >= 6 * 50 - 6
    assert done.late_ms[0] < done.latency_ms[-1]
