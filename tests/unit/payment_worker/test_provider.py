"""The desk asks a provider from so many threads and no more, also when it is slower than its budget (P2)."""

import threading
from collections.abc import Callable

from orderstream.domain.payment import Authorized, NotAsked, Unanswered
from orderstream.payment_worker.provider import Desk

LIMIT = 4
FIRST, SECOND = ([(f"{batch}-{number}", number) for number in range(3 * LIMIT)] for batch in range(2))


class Calls:
    """Counts the calls under way, each of which lasts as long as `hold` does; `most` is how many there were at once."""

    def __init__(self, hold: Callable[[], object]) -> None:
        self.begun = self.most = self._under_way = 0
        self._hold = hold
        self._lock = threading.Lock()

    def __call__(self, _question: int, _seconds_left: float) -> Authorized:
        with self._lock:
            self.begun += 1
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        self._hold()
        with self._lock:
            self._under_way -= 1
        return Authorized()


def test_the_limit_is_made_use_of_and_kept() -> None:
    together = threading.Barrier(LIMIT, timeout=10)
    calls = Calls(together.wait)
    assert Desk(LIMIT, 30).ask(FIRST, calls) == dict.fromkeys(dict(FIRST), Authorized())
    assert calls.most == LIMIT


def test_calls_that_outlast_their_batch_count_with_the_next() -> None:
    gate = threading.Event()
    calls = Calls(lambda: gate.wait(20))
    desk = Desk(LIMIT, 0.3)
    try:
        first, second = desk.ask(FIRST, calls), desk.ask(SECOND, calls)
    finally:
        gate.set()
    # What has ended by now was too late: it changes no answer, and begins nothing more.
    desk._pool.shutdown()
    assert list(first.values()) == [Unanswered()] * LIMIT + [NotAsked()] * 2 * LIMIT
    assert set(second.values()) == {NotAsked()}
    assert calls.begun == LIMIT


def test_a_question_that_fails_takes_no_turn_of_another() -> None:
    def fail(question: int, _seconds_left: float) -> Authorized:
        if question == 0:
            raise ZeroDivisionError
        return Authorized()

    answers = Desk(1, 30).ask(FIRST, fail)
    assert list(answers.values()) == [Unanswered(), *[Authorized()] * (len(FIRST) - 1)]
