"""Natural batching."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from orderstream.api_gateway import batcher as gathering
from orderstream.api_gateway.batcher import Asked, FullError, Gathering, TryAgainError

Batch = Sequence[Asked[str, str]]


class Recorder:
    """Does what it is told for each batch, and remembers the batches. `go` lets a batch end."""

    def __init__(self, then: Callable[[Batch], Awaitable[None]] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self._then = then

    async def __call__(self, batch: Batch) -> None:
        self.batches.append([asked.item for asked in batch])
        self.begun.set()
        await self.go.wait()
        if self._then is not None:
            await self._then(batch)
        for asked in batch:
            asked.answer(asked.item.upper())


def gather(work: Recorder, *, batch_limit: int = 10, waiting_limit: int = 10) -> Gathering[str, str]:
    return Gathering(work, batch_limit=batch_limit, waiting_limit=waiting_limit)


def test_what_arrives_while_a_batch_is_under_way_is_the_next_batch() -> None:
    async def scenario() -> None:
        work = Recorder()
        async with gather(work, batch_limit=2) as asking:
            first = asking.ask("a", "a")
            await work.begun.wait()
            rest = [asking.ask(name, name) for name in "bcd"]
            work.go.set()
            assert await asyncio.gather(first, *rest) == ["A", "B", "C", "D"]
        assert work.batches == [["a"], ["b", "c"], ["d"]]

    asyncio.run(scenario())


def test_a_batch_is_bounded_by_weight_and_never_empty() -> None:
    async def scenario() -> None:
        work = Recorder()
        work.go.set()
        async with Gathering(work, batch_limit=4, waiting_limit=10, weigh=len) as asking:
            items = ["aaa", "b", "cc", "dddddd", "eee", "ff"]
            assert await asyncio.gather(*(asking.ask(item, item) for item in items)) == [one.upper() for one in items]
        assert work.batches == [["aaa", "b"], ["cc"], ["dddddd"], ["eee"], ["ff"]]

    asyncio.run(scenario())


def test_askers_of_one_key_share_an_answer_but_never_one_begun_before() -> None:
    async def scenario() -> None:
        work = Recorder()
        async with gather(work) as asking:
            early = asking.ask("a", "a")
            await work.begun.wait()
            late = [asking.ask("a", "a") for _ in range(3)]
            late[0].cancel()
            work.go.set()
            assert await asyncio.gather(early, *late[1:]) == ["A", "A", "A"]
        assert work.batches == [["a"], ["a"]]

    asyncio.run(scenario())


def test_no_more_may_wait_than_the_limit() -> None:
    async def scenario() -> None:
        work = Recorder()
        async with gather(work, waiting_limit=2) as asking:
            first = asking.ask("a", "a")
            await work.begun.wait()
            waiting = [asking.ask(name, name) for name in "bc"]
            with pytest.raises(FullError):
                asking.ask("d", "d")
            work.go.set()
            await asyncio.gather(first, *waiting)
            assert await asking.ask("d", "d") == "D"

    asyncio.run(scenario())


def test_no_more_may_wait_than_weigh_the_limit() -> None:
    async def scenario() -> None:
        work = Recorder()
        async with Gathering(work, batch_limit=4, waiting_limit=10, weigh=len, weight_limit=5) as asking:
            first = asking.ask("aaaa", "aaaa")
            await work.begun.wait()
            waiting = [asking.ask(name, name) for name in ("bb", "ccc", "bb")]
            with pytest.raises(FullError):
                asking.ask("d", "d")
            work.go.set()
            await asyncio.gather(first, *waiting)
            assert await asking.ask("eeeee", "eeeee") == "EEEEE"
            with pytest.raises(FullError):
                asking.ask("ffffff", "ffffff")

    asyncio.run(scenario())


def test_work_is_repeated_for_those_who_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "FIRST_PAUSE_SECONDS", 0.001)

    async def scenario() -> None:
        kept: list[asyncio.Future[str]] = []

        async def fail_twice(batch: Batch) -> None:
            if len(work.batches) == 1:
                kept[0].cancel()
            if len(work.batches) == 2:
                batch[0].answer("early")
            if len(work.batches) < 3:
                raise TryAgainError

        work = Recorder(fail_twice)
        work.go.set()
        async with gather(work) as asking:
            kept += [asking.ask(name, name) for name in "abc"]
            assert await asyncio.gather(*kept[1:]) == ["early", "C"]
        assert work.batches == [["a", "b", "c"], ["b", "c"], ["c"]]

    asyncio.run(scenario())


def test_a_bug_fails_its_batch_and_nothing_after_it() -> None:
    async def scenario() -> None:
        async def fail_once(_batch: Batch) -> None:
            if len(work.batches) == 1:
                raise RuntimeError("bug")

        work = Recorder(fail_once)
        work.go.set()
        async with gather(work) as asking:
            with pytest.raises(RuntimeError, match="bug"):
                await asking.ask("a", "a")
            assert await asking.ask("b", "b") == "B"

    asyncio.run(scenario())


def test_whoever_is_unanswered_at_the_end_fails() -> None:
    async def scenario() -> None:
        work = Recorder()
        async with gather(work) as asking:
            under_way = asking.ask("a", "a")
            await work.begun.wait()
            waiting = asking.ask("b", "b")
        for future in (under_way, waiting):
            with pytest.raises(TryAgainError):
                await future

    asyncio.run(scenario())


def test_the_pauses_between_two_attempts_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def fail(_batch: Batch) -> None:
        if len(pauses) < 8:
            raise TryAgainError

    async def scenario() -> None:
        work = Recorder(fail)
        work.go.set()
        async with gather(work) as asking:
            monkeypatch.setattr(asyncio, "sleep", note)
            assert await asking.ask("a", "a") == "A"

    asyncio.run(scenario())
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]
