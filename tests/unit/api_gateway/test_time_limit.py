"""The time limit that many requests share, on an event loop whose clock the test moves."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from orderstream.api_gateway.time_limit import TimeLimit

SECONDS = 5.0


class Clock(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(main)


async def wait(limit: TimeLimit, seconds: float) -> float:
    """Wait within the limit. Return the time at which the wait ended or reached the limit."""
    try:
        with limit.call():
            await asyncio.sleep(seconds)
    except TimeoutError:
        pass
    return asyncio.get_running_loop().time()


def test_each_call_ends_at_its_own_limit() -> None:
    async def main() -> None:
        limit = TimeLimit(SECONDS)
        first = asyncio.create_task(wait(limit, 100))
        await asyncio.sleep(1)
        ends = await asyncio.gather(first, wait(limit, 100), wait(limit, 3))
        assert list(ends) == [5, 6, 4]

    run(main())


def test_a_call_after_a_pause_has_the_whole_limit() -> None:
    async def main() -> None:
        limit = TimeLimit(SECONDS)
        assert await wait(limit, 100) == 5
        await asyncio.sleep(20)
        assert await wait(limit, 100) == 30

    run(main())


def test_a_call_that_ends_in_time_raises_nothing_and_is_not_kept() -> None:
    async def main() -> None:
        limit = TimeLimit(SECONDS)
        for _ in range(1_000):
            await wait(limit, 0)
        assert len(limit._calls) == 1
        await asyncio.sleep(2 * SECONDS)
        assert not limit._calls
        assert limit._timer is None

    run(main())


def test_another_cancellation_stays_a_cancellation() -> None:
    async def main() -> None:
        limit = TimeLimit(SECONDS)

        async def work() -> None:
            with limit.call():
                await asyncio.sleep(100)

        task = asyncio.create_task(work())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_an_error_of_the_block_passes() -> None:
    async def main() -> None:
        with pytest.raises(KeyError), TimeLimit(SECONDS).call():
            raise KeyError

    run(main())
