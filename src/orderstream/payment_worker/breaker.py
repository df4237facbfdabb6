"""Stops the calls to a provider that is down, and finds out when it is back.

Closed: all calls may begin. Open: no call may begin. Half-open: a few calls may begin as probes. Times are monotonic
seconds that the caller passes in.
"""

import random
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from orderstream.payment_worker.lanes import LANES, Lane

FAILURES_MAX = 10
"""Failures in a row after which the breaker opens."""
OPEN_SECONDS = 0.5
OPEN_MAX_SECONDS = 2.0
"""The first opening lasts OPEN_SECONDS. The time doubles up to this limit while no probe succeeds."""
PROBES_MAX = 5
"""Probes at the same time. One is reserved for each lane, so that probes that hang cannot block another lane."""
RETRY_AFTER_MAX_SECONDS = 300.0
"""The longest time for which the worker obeys one Retry-After."""

State = Literal["closed", "open", "half_open"]


class Ticket(Struct, frozen=True):
    """The state of the breaker when a call began. The caller returns it with the result of the call."""

    successes: int
    epoch: int
    probe: Lane | None


class Breaker:
    """Counts the failures of calls. Not thread-safe.

    A failure counts only if no other call succeeded while the failed call ran. So calls that time out together do not
    open the breaker if the provider answered other calls meanwhile.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._successes = 0
        self._epoch = 0
        self._failures = 0
        self._openings = 0
        self._not_before = 0.0
        self._probes = dict.fromkeys(LANES, 0)
        self._open_until = 0.0
        self.open_since: float | None = None
        """When the breaker opened. None while it is closed. A failed probe does not change it."""

    def state(self, now: float) -> State:
        """Return the state at a time."""
        if self.open_since is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def open_seconds(self, now: float) -> float:
        """Return how long the breaker has been open or half-open at a time. 0 while it is closed."""
        return 0.0 if self.open_since is None else now - self.open_since

    def room(self, lane: Lane, now: float) -> int | None:
        """Return how many calls of the lane may begin. None means: no limit."""
        match self.state(now):
            case "closed":
                return None
            case "open":
                return 0
            case "half_open":
                kept = sum(self._probes[other] == 0 for other in LANES if other != lane)
                return max(0, PROBES_MAX - sum(self._probes.values()) - kept)

    def admit(self, lane: Lane, now: float) -> Ticket:
        """Count a call that begins. The caller has checked that there is room."""
        if self.open_since is None:
            return Ticket(self._successes, self._epoch, None)
        assert self.room(lane, now)
        self._probes[lane] += 1
        return Ticket(self._successes, self._epoch, lane)

    def succeed(self, ticket: Ticket) -> None:
        """The provider answered: close the breaker."""
        self.drop(ticket)
        self._successes += 1
        self._failures = self._openings = 0
        self._not_before = 0.0
        self.open_since = None

    def fail(self, ticket: Ticket, now: float, retry_after_seconds: float = 0.0) -> None:
        """The provider refused the call or did not answer in time.

        After FAILURES_MAX failures in a row, or if a probe fails, open the breaker. It stays open at least for
        `retry_after_seconds`. Failures of calls that began before the breaker opened have no effect.
        """
        self.drop(ticket)
        if ticket.epoch != self._epoch or self.has_succeeded_since(ticket):
            return
        self._failures += 1
        self._not_before = max(self._not_before, now + retry_after_limited(retry_after_seconds))
        if self._failures >= FAILURES_MAX or self.open_since is not None:
            self._open(now)

    def has_succeeded_since(self, ticket: Ticket) -> bool:
        """Say whether a call succeeded after the call of the ticket began."""
        return ticket.successes != self._successes

    def drop(self, ticket: Ticket) -> None:
        """The call ended without a result that says anything about the provider."""
        if ticket.probe is not None:
            assert self._probes[ticket.probe] > 0
            self._probes[ticket.probe] -= 1

    def _open(self, now: float) -> None:
        longest = min(OPEN_MAX_SECONDS, OPEN_SECONDS * 2 ** min(self._openings, 30))
        self._open_until = max(now + self._uniform(longest / 2, longest), self._not_before)
        self._openings += 1
        self._epoch += 1
        self._failures = 0
        self._not_before = 0.0
        if self.open_since is None:
            self.open_since = now


def retry_after_limited(seconds: object) -> float:
    """Return the time for which the worker obeys a Retry-After. A value that is not a valid time counts as 0.

    An adapter may give a value of any type.
    """
    try:
        wait = float(seconds)  # type: ignore[arg-type]
    except (TypeError, ValueError, ArithmeticError):
        return 0.0
    return min(wait, RETRY_AFTER_MAX_SECONDS) if wait > 0 else 0.0
