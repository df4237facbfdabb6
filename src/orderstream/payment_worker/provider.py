"""The payment provider, as OrderStream sees it, and the simulated one that runs until there is a real one."""

import random
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from hashlib import blake2b
from threading import Lock
from time import monotonic
from typing import Protocol, TypeVar

from orderstream.domain.payment import (
    Authorized,
    Charge,
    Declined,
    NotAsked,
    NothingToVoid,
    Pending,
    Unanswered,
    Voided,
)
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


class ProviderUnavailableError(Exception):
    """The provider gave no answer: whether it charged is unknown, and must be asked again with the same key."""


class PaymentProvider(Protocol):
    """What a real provider's adapter implements. Called from several threads. The order id is the idempotency key."""

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined | Pending:
        """Hold the amount, or say what was decided the first time this key was used.

        Raises ProviderUnavailableError when no answer came within `timeout_seconds`.
        """
        ...

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        """Undo the charge of a key. Returns only when that key can never carry a charge again.

        Raises ProviderUnavailableError when no answer came within `timeout_seconds`.
        """
        ...


class SimulatedProvider:
    """Decides by a hash of the order id, so that asking again never changes the answer.

    `success_rate` is the share of orders authorized; `throw_rate` the share of authorization attempts left unanswered.
    """

    def __init__(self, success_rate: float, throw_rate: float) -> None:
        self._success_rate = success_rate
        self._throw_rate = throw_rate

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined:
        """Answer at once, or raise ProviderUnavailableError at once."""
        del timeout_seconds
        if self._throw_rate and random.random() < self._throw_rate:  # noqa: S311 - a simulated fault, not a secret
            raise ProviderUnavailableError("simulated fault")
        return Authorized() if draw(charge.order_id) < self._success_rate else Declined()

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        """Answer at once."""
        del timeout_seconds
        return Voided() if draw(order_id) < self._success_rate else NothingToVoid()


def draw(order_id: str) -> float:
    """Return a number in [0, 1) that is always the same for an order and evenly spread over orders."""
    return int.from_bytes(blake2b(order_id.encode(), digest_size=7).digest(), "big") / 2**56


Q = TypeVar("Q")
A = TypeVar("A")


class Desk:
    """Asks the provider many things at once, within a budget of time, from a bounded number of threads."""

    def __init__(self, concurrency: int, budget_seconds: float) -> None:
        self._concurrency = concurrency
        self._budget_seconds = budget_seconds
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="provider")

    def ask(
        self, questions: Iterable[tuple[str, Q]], call: Callable[[Q, float], A]
    ) -> dict[str, A | Unanswered | NotAsked]:
        """Call `call(question, seconds left)` for each (order id, question) and return the answers by order id.

        What raised, or is not answered when the budget is spent, is Unanswered: nobody knows, ask again. What was not
        begun by then is NotAsked; all of it, if calls that ignore their time hold every thread.
        """
        waiting = list(questions)
        answers: dict[str, A | Unanswered | NotAsked] = {order_id: NotAsked() for order_id, _ in waiting}
        deadline = monotonic() + self._budget_seconds
        queue, lock = iter(waiting), Lock()

        def work() -> None:
            while (left := deadline - monotonic()) > 0:
                with lock:
                    order_id, question = next(queue, (None, None))
                if order_id is None or question is None:
                    return
                answers[order_id] = Unanswered()
                try:
                    answers[order_id] = call(question, left)
                except ProviderUnavailableError:
                    continue
                except Exception as error:  # noqa: BLE001 - whatever an adapter raises, the outcome is unknown
                    log.warning("provider_failed", order_id=order_id, error=repr(error)[:300])

        works = [self._pool.submit(work) for _ in range(min(self._concurrency, len(waiting)))]
        wait(works, self._budget_seconds)
        if works and all(one.cancel() for one in works):
            log.error("provider_calls_stuck", calls=self._concurrency)
        found = dict(answers)
        for answer, number in Tally(map(type, found.values())).items():
            metrics.PROVIDER_ANSWERS.labels(_OUTCOMES[answer]).inc(number)
        return found
