"""Natural batching: how calls collect, share results, are limited, retried and ended."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from orderstream.api_gateway import batcher as batcher_module
from orderstream.api_gateway.batcher import Batcher, PendingCall, QueueFullError, TryAgainError
from orderstream.process.gathering import NO_GATHERING, Gathering

Batch = Sequence[PendingCall[str, str]]
GATHERING = Gathering(from_items=3, seconds_per_item=0.2, longest_seconds=0.5)


class Work:
    """Records each batch, waits for `go`, runs `then`, and answers every call with its item in upper case."""

    def __init__(self, then: Callable[[Batch], Awaitable[None]] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self._then = then

    async def __call__(self, batch: Batch) -> None:
        self.batches.append([call.item for call in batch])
        self.begun.set()
        await self.go.wait()
        if self._then is not None:
            await self._then(batch)
        for call in batch:
            call.answer(call.item.upper())


def batching(work: Work, *, batch_limit: int = 10, waiting_limit: int = 10) -> Batcher[str, str]:
    return Batcher(work, batch_limit=batch_limit, waiting_limit=waiting_limit)


def test_calls_that_arrive_during_a_batch_form_the_next_batch() -> None:
    async def scenario() -> None:
        work = Work()
        async with batching(work, batch_limit=2) as batcher:
            first = batcher.submit("a", "a")
            await work.begun.wait()
            rest = [batcher.submit(name, name) for name in "bcd"]
            work.go.set()
            assert await asyncio.gather(first, *rest) == ["A", "B", "C", "D"]
        assert work.batches == [["a"], ["b", "c"], ["d"]]

    asyncio.run(scenario())


@pytest.mark.parametrize(("gathering", "following"), [(GATHERING, [["d", "e"]]), (NO_GATHERING, [["d"], ["e"]])])
def test_calls_are_gathered_for_a_moment_after_a_large_batch_only(
    gathering: Gathering, following: list[list[str]]
) -> None:
    async def scenario() -> None:
        work = Work()
        work.go.set()
        async with Batcher(work, batch_limit=10, waiting_limit=10, gathering=gathering) as batcher:
            await asyncio.gather(*(batcher.submit(name, name) for name in "abc"))
            fourth = batcher.submit("d", "d")
            for _ in range(5):
                await asyncio.sleep(0)
            await asyncio.gather(fourth, batcher.submit("e", "e"))
            # Neither of the last batches was large.
            sixth = batcher.submit("f", "f")
            for _ in range(5):
                await asyncio.sleep(0)
            assert sixth.done()
        assert work.batches == [["a", "b", "c"], *following, ["f"]]

    asyncio.run(scenario())


def test_the_total_size_of_a_batch_is_limited_but_a_batch_has_at_least_one_item() -> None:
    async def scenario() -> None:
        work = Work()
        work.go.set()
        async with Batcher(work, batch_limit=4, waiting_limit=10, size_of=len) as batcher:
            items = ["aaa", "b", "cc", "dddddd", "eee", "ff"]
            results = await asyncio.gather(*(batcher.submit(item, item) for item in items))
        assert results == [item.upper() for item in items]
        assert work.batches == [["aaa", "b"], ["cc"], ["dddddd"], ["eee"], ["ff"]]

    asyncio.run(scenario())


def test_callers_with_the_same_key_share_a_result_unless_its_batch_had_begun() -> None:
    async def scenario() -> None:
        work = Work()
        async with batching(work) as batcher:
            early = batcher.submit("a", "a")
            await work.begun.wait()
            late = [batcher.submit("a", "a") for _ in range(3)]
            late[0].cancel()
            work.go.set()
            assert await asyncio.gather(early, *late[1:]) == ["A", "A", "A"]
        assert work.batches == [["a"], ["a"]]

    asyncio.run(scenario())


def test_the_number_of_waiting_items_is_limited() -> None:
    async def scenario() -> None:
        work = Work()
        async with batching(work, waiting_limit=2) as batcher:
            first = batcher.submit("a", "a")
            await work.begun.wait()
            waiting = [batcher.submit(name, name) for name in "bc"]
            with pytest.raises(QueueFullError):
                batcher.submit("d", "d")
            work.go.set()
            await asyncio.gather(first, *waiting)
            assert await batcher.submit("d", "d") == "D"

    asyncio.run(scenario())


def test_the_total_size_of_the_waiting_items_is_limited() -> None:
    async def scenario() -> None:
        work = Work()
        async with Batcher(work, batch_limit=4, waiting_limit=10, size_of=len, waiting_size_limit=5) as batcher:
            first = batcher.submit("aaaa", "aaaa")
            await work.begun.wait()
            waiting = [batcher.submit(name, name) for name in ("bb", "ccc", "bb")]
            with pytest.raises(QueueFullError):
                batcher.submit("d", "d")
            work.go.set()
            await asyncio.gather(first, *waiting)
            assert await batcher.submit("eeeee", "eeeee") == "EEEEE"
            with pytest.raises(QueueFullError):
                batcher.submit("ffffff", "ffffff")

    asyncio.run(scenario())


def test_a_failed_batch_is_retried_for_the_callers_that_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "FIRST_PAUSE_SECONDS", 0.001)

    async def scenario() -> None:
        futures: list[asyncio.Future[str]] = []

        async def fail_twice(batch: Batch) -> None:
            if len(work.batches) == 1:
                futures[0].cancel()
            if len(work.batches) == 2:
                batch[0].answer("early")
            if len(work.batches) < 3:
                raise TryAgainError

        work = Work(fail_twice)
        work.go.set()
        async with batching(work) as batcher:
            futures += [batcher.submit(name, name) for name in "abc"]
            assert await asyncio.gather(*futures[1:]) == ["early", "C"]
        assert work.batches == [["a", "b", "c"], ["b", "c"], ["c"]]

    asyncio.run(scenario())


def test_a_bug_fails_its_own_batch_only() -> None:
    async def scenario() -> None:
        async def fail_once(_batch: Batch) -> None:
            if len(work.batches) == 1:
                raise RuntimeError("bug")

        work = Work(fail_once)
        work.go.set()
        async with batching(work) as batcher:
            with pytest.raises(RuntimeError, match="bug"):
                await batcher.submit("a", "a")
            assert await batcher.submit("b", "b") == "B"

    asyncio.run(scenario())


def test_calls_without_a_result_fail_when_the_batcher_stops() -> None:
    async def scenario() -> None:
        work = Work()
        async with batching(work) as batcher:
            in_progress = batcher.submit("a", "a")
            await work.begun.wait()
            waiting = batcher.submit("b", "b")
        for future in (in_progress, waiting):
            with pytest.raises(TryAgainError):
                await future

    asyncio.run(scenario())


def test_the_pauses_between_retries_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def record_pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def fail(_batch: Batch) -> None:
        if len(pauses) < 8:
            raise TryAgainError

    async def scenario() -> None:
        work = Work(fail)
        work.go.set()
        async with batching(work) as batcher:
            monkeypatch.setattr(asyncio, "sleep", record_pause)
            assert await batcher.submit("a", "a") == "A"

    asyncio.run(scenario())
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]
