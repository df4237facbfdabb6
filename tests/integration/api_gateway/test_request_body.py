"""The limits on the bodies of requests: their total size (503) and the memory that they need."""

import asyncio
import tracemalloc
from typing import Any

import pytest

from orderstream.http_server.endpoint import Request
from orderstream.http_server.problems import Problem
from orderstream.http_server.request_body import BodyReader
from orderstream.telemetry.tracing import NO_TRACE, Tracer


def test_the_total_size_of_arriving_bodies_is_limited() -> None:
    async def scenario() -> None:
        bodies = BodyReader(limit_bytes=25)
        go = asyncio.Event()

        def request(*pieces: bytes) -> Request:
            messages = [{"body": piece, "more_body": True} for piece in pieces] + [{"body": b"", "more_body": False}]

            async def receive() -> Any:
                if len(messages) == 1:
                    await go.wait()
                return {"type": "http.request", **messages.pop(0)}

            return Request({b"content-type": b"application/json"}, {}, receive, Tracer(None, 0).server("x", NO_TRACE))

        held = asyncio.create_task(bodies.read(request(b"x" * 10, b"y" * 10)))
        await asyncio.wait([held], timeout=0.05)
        with pytest.raises(Problem, match="503 unavailable"):
            await bodies.read(request(b"z" * 10))
        go.set()
        assert await held == b"x" * 10 + b"y" * 10
        assert await bodies.read(request(b"z" * 25)) == b"z" * 25
        assert bodies._held_bytes == 0

    asyncio.run(scenario())


def test_a_body_in_small_pieces_needs_no_more_memory_than_a_body_in_one_piece() -> None:
    """A list of pieces of two bytes needs twenty times their size."""
    size = 100_000
    sent = 0

    async def receive() -> Any:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": sent.to_bytes(2, "big"), "more_body": sent < size // 2}

    async def scenario() -> None:
        request = Request({b"content-type": b"application/json"}, {}, receive, Tracer(None, 0).server("x", NO_TRACE))
        tracemalloc.start()
        try:
            body = await BodyReader().read(request)
            assert len(body) == size
            assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
        finally:
            tracemalloc.stop()

    asyncio.run(scenario())
