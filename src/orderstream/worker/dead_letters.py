"""Dead letters: what cannot be processed is kept, whole, with its reason, and never blocks its partition (P9)."""

from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from orderstream.kafka.client import MAX_MESSAGE_BYTES, Publication
from orderstream.kafka.envelope import Reason, Record
from orderstream.kafka.topics import dead_letter_topic
from orderstream.process.run import ServiceFailedError
from orderstream.telemetry import logs

WINDOW_SECONDS = 300
MIN_FAILURES = 20
MAX_FAILED_SHARE = 0.10
SHARED_HINT = (
    "Does another deployment publish to the same topics? Give each deployment a KAFKA_TOPIC_PREFIX of its own. "
    "Or was the database restored from an older copy?"
)
LETTER_MAX_BYTES = MAX_MESSAGE_BYTES - (64 << 10)
KEY_MAX_BYTES = 1 << 10
"""What is kept of the key of a record that does not fit into a letter."""

log = logs.get()


class DeadLetter(Struct, frozen=True):
    """A record that was given up, and why; `attempts` counts how often it was handed to the handler."""

    record: Record
    reason: Reason
    detail: str
    attempts: int


class TooManyFailuresError(ServiceFailedError):
    """So many records fail that a defect is likelier than bad records: stop before the topic is drained."""


def publication(group: str, letter: DeadLetter) -> Publication:
    """Return the dead letter as a record: key, value and headers as they were, and headers that say what happened.

    A record of more than LETTER_MAX_BYTES loses its headers and is cut; `dlq-cut-from` says how many bytes it had.
    There are such: a topic's limit is on what is compressed.
    """
    record = letter.record
    key, value, headers = record.key, record.value, record.headers
    notes = {
        "dlq-topic": record.topic,
        "dlq-partition": str(record.partition),
        "dlq-offset": str(record.offset),
        "dlq-reason": letter.reason,
        "dlq-error": letter.detail[:1_000],
        "dlq-attempts": str(letter.attempts),
    }
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(one or b"") for name, one in headers)
    if size > LETTER_MAX_BYTES:
        notes["dlq-cut-from"] = str(size)
        key, headers = key and key[:KEY_MAX_BYTES], []
        value = value and value[: LETTER_MAX_BYTES - KEY_MAX_BYTES]
    return Publication(dead_letter_topic(group), key, value, [*headers, *notes.items()])


class _Window:
    """Counts records of the last five minutes, and those of them that are marked."""

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

    Undecodable records and unknown orders are bad input, not failures, and do not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._window = _Window(clock)

    def check(self, records: int, failures: int) -> None:
        """Raise TooManyFailuresError if a batch with so many failures would pass the limit."""
        old_records, old_failures = self._window.totals()
        total, failed = old_records + records, old_failures + failures
        if _too_many(failed, total):
            raise TooManyFailuresError(f"{failed} of {total} records failed within {WINDOW_SECONDS} s")

    def note(self, records: int, failures: int) -> None:
        """Count a batch whose dead letters are safe."""
        self._window.add(records, failures)


class UnknownOrders:
    """Warns when more than max(20, 10 %) of the last five minutes' records name orders that this database lacks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._window = _Window(clock)
        self._warned_at = -float(WINDOW_SECONDS)

    def note(self, records: int, letters: Sequence[DeadLetter]) -> None:
        """Count a batch and its dead letters, and warn at most once in five minutes."""
        self._window.add(records, sum(letter.reason == "UNKNOWN_ORDER" for letter in letters))
        total, unknown = self._window.totals()
        if _too_many(unknown, total) and self._clock() - self._warned_at >= WINDOW_SECONDS:
            self._warned_at = self._clock()
            log.warning("many_unknown_orders", unknown=unknown, records=total, seconds=WINDOW_SECONDS, hint=SHARED_HINT)
