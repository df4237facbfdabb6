"""Calls to the payment provider: many at once, from a bounded number of threads, within one budget of time (P2)."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from time import monotonic
from typing import TypeVar

from orderstream.domain.payment import Authorized, Declined, NotAsked, NothingToVoid, Pending, Unanswered, Voided
from orderstream.payment_worker.provider import ProviderUnavailableError
from orderstream.telemetry import logs, metrics

log = logs.get()

_OUTCOMES: dict[type, str] = {
    Authorized: "authorized",
    Declined: "declined",
    Pending: "pending",
    Voided: "voided",
    NothingToVoid: "nothing_to_void",
    Unanswered: "unanswered",
    NotAsked: "not_asked",
}

R = TypeVar("R")
A = TypeVar("A")


class ProviderCalls:
    """Makes many calls to the provider at once, from at most `concurrency` threads and for at most `budget_seconds`."""

    def __init__(self, concurrency: int, budget_seconds: float) -> None:
        self._concurrency = concurrency
        self._budget_seconds = budget_seconds
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="provider")

    def run(
        self, requests: Iterable[tuple[str, R]], call: Callable[[R, float], A]
    ) -> dict[str, A | Unanswered | NotAsked]:
        """Call `call(request, seconds left)` for each (order id, request) and return the answers by order id.

        A call that raises, or that runs beyond the budget, is Unanswered: its outcome is unknown and the caller must
        retry it. A call that did not begin within the budget is NotAsked. If earlier calls that ignore their time limit
        hold every thread, all calls are NotAsked.
        """
        waiting = list(requests)
        answers: dict[str, A | Unanswered | NotAsked] = {order_id: NotAsked() for order_id, _ in waiting}
        deadline = monotonic() + self._budget_seconds
        queue, lock = iter(waiting), Lock()

        def work() -> None:
            while (left := deadline - monotonic()) > 0:
                with lock:
                    order_id, request = next(queue, (None, None))
                if order_id is None or request is None:
                    return
                answers[order_id] = Unanswered()
                try:
                    answers[order_id] = call(request, left)
                except ProviderUnavailableError:
                    continue
                except Exception as error:  # noqa: BLE001 - after any error of an adapter the outcome is unknown
                    log.warning("provider_failed", order_id=order_id, error=repr(error)[:300])

        threads = [self._pool.submit(work) for _ in range(min(self._concurrency, len(waiting)))]
        wait(threads, self._budget_seconds)
        if threads and all(thread.cancel() for thread in threads):
            log.error("provider_calls_stuck", calls=self._concurrency)
        found = dict(answers)
        for answer, number in Tally(map(type, found.values())).items():
            metrics.PROVIDER_ANSWERS.labels(_OUTCOMES[answer]).inc(number)
        return found
