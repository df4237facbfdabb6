"""A run of the play desk goes on while the gateway and PostgreSQL are down, within its limits."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from orderstream.console.context import Console
from orderstream.console.play import gateway, runner
from orderstream.console.play.runner import Plan, Run
from orderstream.http_server.problems import Problem
from orderstream.settings import Settings
from tests.support.system import free_port

RUN_SECONDS = 2.0
"""Long enough for a first order, also on a busy machine."""


class _WithoutPostgres:
    """The part of a console that a run needs. PostgreSQL is down."""

    def __init__(self, base_url: str) -> None:
        self.settings = Settings.model_validate({"base_url": base_url})

    async def work(self, *_: Any) -> Any:
        raise Problem(503, "unavailable", "Try again", "PostgreSQL does not answer.")


def _run(base_url: str, seconds: float) -> Run:
    console = cast("Console", _WithoutPostgres(base_url))
    return Run(console, 1, Plan(50, seconds, {"well": 1}), random.Random(1))


@contextlib.asynccontextmanager
async def _silent_server() -> AsyncIterator[tuple[str, list[int]]]:
    """A server that accepts connections and never answers. Yields its address and the number of open connections."""
    counts = [0, 0]

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts[0] += 1
        counts[1] = max(counts)
        with contextlib.suppress(OSError):
            while await reader.read(1_000):
                pass
        counts[0] -= 1
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", counts


def test_orders_are_skipped_while_too_many_calls_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IN_FLIGHT_MAX", 2)
    monkeypatch.setattr(runner, "EVERY_SECONDS", 0.05)

    async def scenario() -> None:
        async with _silent_server() as (url, counts):
            run = _run(url, RUN_SECONDS)
            await run.work()
            figures = run.view().figures
            assert counts[1] == 2, "no more calls were made at the same time"
            assert figures.placed == 0
            assert figures.skipped >= 10

    asyncio.run(scenario())


def test_a_gateway_without_an_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CALL_SECONDS", 0.05)

    async def scenario() -> None:
        run = _run(f"http://127.0.0.1:{free_port()}", RUN_SECONDS)
        await run.work()
        view = run.view()
        assert not view.is_running
        assert view.seconds_left == 0
        assert [(outcome.kind, outcome.outcome) for outcome in view.figures.outcomes] == [
            ("well", "not accepted: no answer")
        ]
        async with _silent_server() as (url, _):
            run = _run(url, RUN_SECONDS)
            await run.work()
            assert [outcome.outcome for outcome in run.view().figures.outcomes] == ["not accepted: no answer"]

    asyncio.run(scenario())


def test_a_run_is_stopped_at_once_in_its_own_console() -> None:
    async def scenario() -> None:
        run = _run(f"http://127.0.0.1:{free_port()}", 600)
        work = asyncio.create_task(run.work())
        run.stopped_by = "Ada"
        async with asyncio.timeout(20):
            await work
        assert not run.view().is_running

    asyncio.run(scenario())
