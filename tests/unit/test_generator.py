"""The load generator keeps its schedule, counts every request once, and measures from the scheduled time."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from tests.load.bench.generator import Schedule, answer_in, run
from tests.load.bench.generator_job import ClosedJob, OpenJob, Report, percentiles
from tests.load.bench.load import Load

CREATED = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"

PART = b"|"
"""Separates parts of an answer. The server sends each part by itself."""
T = TypeVar("T")
Answer = Callable[[int], Awaitable[bytes | None]]
"""Returns the bytes to send for the request with this number, or None to close the connection."""


def served(answer: Answer, use: Callable[[int], T]) -> T:
    """Call `use` with the port of a server that answers with `answer`."""
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
                for part in data.split(PART):
                    writer.write(part)
                    await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main() -> T:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            done = await asyncio.to_thread(use, server.sockets[0].getsockname()[1])
            await asyncio.gather(*filter(None, handlers))
        return done

    return asyncio.run(main())


def report(answer: Answer, count: int, rate: float = 2_000, connections_max: int = 256, limit: float = 10) -> Report:
    """Run an open job against a server that answers with `answer`."""

    def use(port: int) -> Report:
        job = OpenJob(
            host="127.0.0.1",
            port=port,
            requests=[REQUEST],
            rate=rate,
            count=count,
            connections_max=connections_max,
            answer_limit_seconds=limit,
        )
        return run(job)

    return served(answer, use)


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
    assert answer_in(CREATED.replace(b"content-length", b"Content-Length")) == (201, len(CREATED))
    assert answer_in(b"HTTP/1.1 304 Not Modified\r\n\r\n") == (304, 29)
    with pytest.raises(ValueError, match="without content-length"):
        answer_in(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
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

    done = report(answer, count=5, limit=3)
    assert (done.accepted, done.unanswered) == (4, 1)


def test_a_server_that_cannot_be_reached_leaves_every_request_unanswered() -> None:
    job = OpenJob(host="127.0.0.1", port=1, requests=[REQUEST], rate=1_000, count=5)
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


def closed(port: int, connections: int, seconds: float, in_flight_max: int | None = None) -> ClosedJob:
    return ClosedJob(
        host="127.0.0.1",
        port=port,
        requests=[REQUEST],
        connections=connections,
        seconds=seconds,
        in_flight_max=in_flight_max,
    )


def test_an_answer_that_arrives_in_parts_is_one_answer() -> None:
    async def answer(number: int) -> bytes | None:
        return PART.join((CREATED[:5], CREATED[5:30], CREATED[30:]))

    done = report(answer, count=3)
    assert (done.accepted, done.refused, done.unanswered) == (3, 0, 0)


def test_a_closed_loop_sends_one_request_at_a_time_over_each_connection() -> None:
    in_flight = most = 0

    async def answer(number: int) -> bytes | None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1
        return CREATED

    done = served(answer, lambda port: run(closed(port, connections=3, seconds=2)))
    assert most == 3
    assert done.accepted > 3
    assert (done.refused, done.unanswered) == (0, 0)
    assert 0 < done.latency_ms[0] < 2_000


def test_a_closed_loop_goes_on_after_refusals_and_lost_connections() -> None:
    async def answer(number: int) -> bytes | None:
        return (REFUSED, None, CREATED)[min(number, 2)]

    done = served(answer, lambda port: run(closed(port, connections=1, seconds=3)))
    assert (done.refused, done.unanswered) == (1, 1)
    assert done.accepted > 1


def test_a_closed_loop_ends_without_a_server() -> None:
    done = run(closed(1, connections=2, seconds=0.1))
    assert (done.accepted, done.refused, done.unanswered) == (0, 0, 0)


def test_a_closed_loop_sends_no_more_than_may_be_unsettled() -> None:
    """Five may be unsettled, and three settle: so eight are sent."""
    arrived = [threading.Event() for _ in range(9)]

    async def answer(number: int) -> bytes | None:
        arrived[number].set()
        return CREATED

    def use(port: int) -> Report:
        with Load(closed(port, connections=2, seconds=5, in_flight_max=5)) as generator:
            assert arrived[4].wait(10)
            generator.tell_settled(1)
            generator.tell_settled(3)
            assert arrived[7].wait(10)
            return generator.ends()

    done = served(answer, use)
    assert (done.accepted, done.refused, done.unanswered) == (8, 0, 0)
