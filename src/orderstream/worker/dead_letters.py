"""Dead letters: what cannot be processed is kept, whole, with its reason, and never blocks its partition (P9)."""

from collections import deque
from collections.abc import Callable

from msgspec import Struct

from orderstream.kafka.client import MAX_MESSAGE_BYTES, Publication
from orderstream.kafka.envelope import Reason, Record
from orderstream.kafka.topics import dead_letter_topic

WINDOW_SECONDS = 300
MIN_FAILURES = 20
MAX_FAILED_SHARE = 0.10
LETTER_MAX_BYTES = MAX_MESSAGE_BYTES - (64 << 10)
KEY_MAX_BYTES = 1 << 10
"""What is kept of the key of a record that does not fit into a letter."""


class DeadLetter(Struct, frozen=True):
    """A record that was given up, and why; `attempts` counts how often it was handed to the handler."""

    record: Record
    reason: Reason
    detail: str
    attempts: int


class TooManyFailuresError(Exception):
    """So many records fail that a defect is likelier than bad records: stop before the topic is drained."""


def publication(group: str, letter: DeadLetter) -> Publication:
    """Return the dead letter as a record: key, value and headers as they were, and headers that say what happened.

    A record that is larger than a letter may be loses its headers and is cut; `dlq-cut-from` says how many bytes it
    had. There are such: a topic's limit is on what is compressed.
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


class FailureLimit:
    """Stops a process when more than max(20, 10 %) of the last five minutes' records failed in the handler.

    Undecodable records and unknown orders are bad input, not failures, and do not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._batches: deque[tuple[float, int, int]] = deque()
        self._records = 0
        self._failures = 0

    def check(self, records: int, failures: int) -> None:
        """Raise TooManyFailuresError if a batch with so many failures would pass the limit."""
        while self._batches and self._batches[0][0] < self._clock() - WINDOW_SECONDS:
            _, old_records, old_failures = self._batches.popleft()
            self._records -= old_records
            self._failures -= old_failures
        total, failed = self._records + records, self._failures + failures
        if failed > max(MIN_FAILURES, MAX_FAILED_SHARE * total):
            raise TooManyFailuresError(f"{failed} of {total} records failed within {WINDOW_SECONDS} s")

    def note(self, records: int, failures: int) -> None:
        """Count a batch whose dead letters are safe."""
        self._batches.append((self._clock(), records, failures))
        self._records += records
        self._failures += failures
