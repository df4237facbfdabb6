"""Limits the requests of each visitor, of visitors without a session, and of all together."""

from collections import OrderedDict
from collections.abc import Callable

from orderstream.http_server.problems import Problem
from orderstream.telemetry.tracing import TokenBucket

ALL_PER_SECOND = 300.0
"""Requests of all visitors together. A page with live parts sends about two a second."""
VISITOR_PER_SECOND = 150.0
"""Requests of one session, or of one token."""
UNKNOWN_PER_SECOND = 50.0
"""Requests of all visitors together that have neither a session nor a token: the log-in page and its files."""
REFUSED_PER_SECOND = 5.0
"""Answers to wrong tokens. Further attempts are answered with 429, so that a log of them stays short."""
VISITORS_MAX = 1_000
"""Visitors that are counted separately. The one that was idle for the longest time is forgotten first."""
RETRY_AFTER_SECONDS = 1


class RequestLimits:
    """The rates of one process. `clock` returns monotonic time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = TokenBucket(ALL_PER_SECOND, clock)
        self._unknown = TokenBucket(UNKNOWN_PER_SECOND, clock)
        self._refused = TokenBucket(REFUSED_PER_SECOND, clock)
        self._visitors: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, visitor: str | None) -> None:
        """Count a request of a visitor, given by a key that is no secret. Raises Problem 429.

        A visitor that sends too much does not use up what all visitors together may send.
        """
        if not (self._unknown if visitor is None else self._of(visitor)).take() or not self._all.take():
            raise too_many()

    def may_refuse(self) -> bool:
        """Count an attempt with a wrong token. Return False if there were too many of them."""
        return self._refused.take()

    def _of(self, visitor: str) -> TokenBucket:
        bucket = self._visitors.pop(visitor, None) or TokenBucket(VISITOR_PER_SECOND, self._clock)
        self._visitors[visitor] = bucket
        if len(self._visitors) > VISITORS_MAX:
            self._visitors.popitem(last=False)
        return bucket


def too_many() -> Problem:
    """429: the visitor sends too many requests."""
    headers = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
    detail = f"Wait for {RETRY_AFTER_SECONDS} s, then try again."
    return Problem(429, "too-many-requests", "Too many requests", detail, headers=headers)
