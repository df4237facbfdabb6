"""Calls to the provider use a bounded number of threads, also when the provider is slower than the budget (P2)."""

import threading
from collections.abc import Callable

from orderstream.domain.payment import Authorized, NotAsked, Unanswered
from orderstream.payment_worker.provider_calls import ProviderCalls

LIMIT = 4
FIRST, SECOND = ([(f"{batch}-{number}", number) for number in range(3 * LIMIT)] for batch in range(2))


class Calls:
    """Counts the calls under way. Each lasts as long as `hold` does. `most` is the largest number at the same time."""

    def __init__(self, hold: Callable[[], object]) -> None:
        self.begun = self.most = self._under_way = 0
        self._hold = hold
        self._lock = threading.Lock()

    def __call__(self, _request: int, _seconds_left: float) -> Authorized:
        with self._lock:
            self.begun += 1
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        self._hold()
        with self._lock:
            self._under_way -= 1
        return Authorized()


def test_calls_run_in_parallel_up_to_the_limit() -> None:
    together = threading.Barrier(LIMIT, timeout=10)
    calls = Calls(together.wait)
    assert ProviderCalls(LIMIT, 30).run(FIRST, calls) == dict.fromkeys(dict(FIRST), Authorized())
    assert calls.most == LIMIT


def test_calls_that_outlast_their_batch_count_against_the_limit_of_the_next() -> None:
    gate = threading.Event()
    calls = Calls(lambda: gate.wait(20))
    provider_calls = ProviderCalls(LIMIT, 0.3)
    try:
        first, second = provider_calls.run(FIRST, calls), provider_calls.run(SECOND, calls)
    finally:
        gate.set()
    # The calls of the first batch have ended too late: they change no answer and begin no further call.
    provider_calls._pool.shutdown()
    assert list(first.values()) == [Unanswered()] * LIMIT + [NotAsked()] * 2 * LIMIT
    assert set(second.values()) == {NotAsked()}
    assert calls.begun == LIMIT


def test_a_call_that_raises_does_not_take_the_turn_of_another() -> None:
    def fail(request: int, _seconds_left: float) -> Authorized:
        if request == 0:
            raise ZeroDivisionError
        return Authorized()

    answers = ProviderCalls(1, 30).run(FIRST, fail)
    assert list(answers.values()) == [Unanswered(), *[Authorized()] * (len(FIRST) - 1)]
