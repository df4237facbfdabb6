"""Stops a worker when too many records of the last five minutes fail: a defect is likelier than bad records (P9)."""

from collections import deque
from collections.abc import Callable, Sequence

from orderstream.dead_letters.letter import DeadLetter
from orderstream.process.run import ServiceFailedError
from orderstream.telemetry import logs

WINDOW_SECONDS = 300
MIN_FAILURES = 20
MAX_FAILED_SHARE = 0.10
SHARED_HINT = (
    "Does another deployment publish to the same topics? Give each deployment a KAFKA_TOPIC_PREFIX of its own. "
    "Or was the database restored from an older copy?"
)

log = logs.get()


class TooManyFailuresError(ServiceFailedError):
    """Too many records fail. The service stops before it moves all records of the topic to the dead letters."""


class _Window:
    """Counts the records of the last five minutes, and how many of these records are marked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._batches: deque[tuple[float, int, int]] = deque()
        self._records = 0
        self._marked = 0

    def add(self, records: int, marked: int) -> None:
        self._batches.append((self._clock(), records, marked))
        self._records += records
        self._marked += marked

    def totals(self) -> tuple[int, int]:
        while self._batches and self._batches[0][0] < self._clock() - WINDOW_SECONDS:
            _, old_records, old_marked = self._batches.popleft()
            self._records -= old_records
            self._marked -= old_marked
        return self._records, self._marked


def _too_many(marked: int, records: int) -> bool:
    return marked > max(MIN_FAILURES, MAX_FAILED_SHARE * records)


class FailureLimit:
    """Stops a process when more than max(20, 10 %) of the last five minutes' records failed in the handler.

    Records that cannot be decoded or that name an unknown order are bad input. They do not count as failures.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._window = _Window(clock)

    def check(self, records: int, failures: int) -> None:
        """Raise TooManyFailuresError if a batch with these counts would exceed the limit."""
        old_records, old_failures = self._window.totals()
        total, failed = old_records + records, old_failures + failures
        if _too_many(failed, total):
            raise TooManyFailuresError(f"{failed} of {total} records failed within {WINDOW_SECONDS} s")

    def note(self, records: int, failures: int) -> None:
        """Count a batch whose dead letters are stored."""
        self._window.add(records, failures)


class UnknownOrders:
    """Warns when more than max(20, 10 %) of the last five minutes' records name orders that this database lacks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._window = _Window(clock)
        self._warned_at = -float(WINDOW_SECONDS)

    def note(self, records: int, letters: Sequence[DeadLetter]) -> None:
        """Count a batch and its UNKNOWN_ORDER letters. If there are too many, warn, at most once in five minutes."""
        self._window.add(records, sum(letter.reason == "UNKNOWN_ORDER" for letter in letters))
        total, unknown = self._window.totals()
        if _too_many(unknown, total) and self._clock() - self._warned_at >= WINDOW_SECONDS:
            self._warned_at = self._clock()
            log.warning("many_unknown_orders", unknown=unknown, records=total, seconds=WINDOW_SECONDS, hint=SHARED_HINT)
