"""The thread of the ledger: group commit, the limit of its queue, and a disk that is full."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from orderstream.payment_simulator import ledger as ledgers
from orderstream.payment_simulator.ledger import Ledger, LedgerFailedError, LedgerFullError
from orderstream.payment_simulator.store import Authorization, KeyReusedError, Store

T = TypeVar("T")


class RecordingStore(Store):
    """A store that counts its commits, and that a test can hold up or break."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, time.time)
        self.commits = 0
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.is_full = False

    def commit(self) -> None:
        """Commit when the test permits it."""
        assert self.may_commit.wait(20)
        if self.is_full:
            raise sqlite3.OperationalError("database or disk is full")
        super().commit()
        self.commits += 1


def run(path: Path, test: Callable[[RecordingStore, Ledger], Awaitable[T]]) -> T:
    """Run a test with a ledger."""

    async def within() -> T:
        store = RecordingStore(path)
        try:
            async with Ledger(store) as ledger:
                return await test(store, ledger)
        finally:
            store.may_commit.set()

    return asyncio.run(within())


def request(key: str, amount: str = "1.00") -> Authorization:
    """Return a request to authorize a payment."""
    return Authorization(key, amount, "EUR")


def test_requests_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        payments = await asyncio.gather(*(ledger.authorize(request(f"{number}")) for number in range(300)))
        assert {payment.status for payment in payments} == {"authorized"}
        assert 1 <= store.commits < 30

    run(tmp_path / "ledger.db", test)


def test_a_group_has_a_limited_number_of_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "GROUP_MAX", 10)

    async def test(store: RecordingStore, ledger: Ledger) -> None:
        await asyncio.gather(*(ledger.authorize(request(f"{number}")) for number in range(100)))
        assert store.commits >= 10

    run(tmp_path / "ledger.db", test)


def test_simultaneous_calls_with_one_key_charge_once_and_get_the_same_answer(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        payments = await asyncio.gather(*(ledger.authorize(request("a")) for _ in range(50)))
        assert len(set(map(repr, payments))) == 1
        assert len(await ledger.history("a") or []) == 1

    run(tmp_path / "ledger.db", test)


def test_a_refused_request_does_not_harm_its_group(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        requests = [request("a"), request("a", "2.00"), request("b")]
        answers = await asyncio.gather(*map(ledger.authorize, requests), return_exceptions=True)
        assert isinstance(answers[1], KeyReusedError)
        assert [account.payment.key for account in await ledger.page("", 10)] == ["a", "b"]

    run(tmp_path / "ledger.db", test)


def test_no_request_is_answered_before_its_commit(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        store.may_commit.clear()
        call = ledger.authorize(request("a"))
        done, _ = await asyncio.wait([call], timeout=0.05)
        assert not done
        store.may_commit.set()
        assert (await call).status == "authorized"

    run(tmp_path / "ledger.db", test)


def test_the_number_of_waiting_requests_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "WAITING_MAX", 3)

    async def test(store: RecordingStore, ledger: Ledger) -> None:
        store.may_commit.clear()
        calls = [ledger.authorize(request(f"{number}")) for number in range(3)]
        with pytest.raises(LedgerFullError):
            ledger.authorize(request("one too many"))
        store.may_commit.set()
        await asyncio.gather(*calls)
        assert await ledger.find("one too many") is None

    run(tmp_path / "ledger.db", test)


def test_a_full_disk_fails_the_group_and_stores_none_of_it(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        store.is_full = True
        answers = await asyncio.gather(*(ledger.authorize(request(key)) for key in "ab"), return_exceptions=True)
        assert [type(answer) for answer in answers] == [LedgerFailedError] * 2
        store.is_full = False
        assert await ledger.find("a") is None
        assert (await ledger.authorize(request("a"))).status == "authorized"

    run(tmp_path / "ledger.db", test)


def test_a_cancelled_caller_does_not_stop_the_thread(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        ledger.authorize(request("a")).cancel()
        assert (await ledger.authorize(request("b"))).status == "authorized"
        assert await ledger.find("a") is not None

    run(tmp_path / "ledger.db", test)


def test_requests_that_wait_at_the_end_are_committed(tmp_path: Path) -> None:
    async def test(store: RecordingStore, ledger: Ledger) -> None:
        for number in range(20):
            ledger.authorize(request(f"{number}"))

    run(tmp_path / "ledger.db", test)
    again = Store(tmp_path / "ledger.db", time.time)
    assert len(again.page("", 100)) == 20
    again.close()
