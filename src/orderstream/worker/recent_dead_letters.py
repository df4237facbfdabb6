"""Remembers the records that became dead letters in the last hour (P9).

The watchdog repeats an abort until payment and stock have answered. If the abort fails each time, the worker writes one
dead letter an hour for it instead of one each time. A record that an operator redrives becomes a dead letter each time
that it fails, so that the operator sees the result.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

from orderstream.dead_letters.letter import DeadLetter

REPEAT_SECONDS = 3_600.0
REMEMBERED_MAX = 10_000
_DIGEST_BYTES = 16


class RecentDeadLetters:
    """Remembers records by a digest of their bytes. At REMEMBERED_MAX it forgets the oldest."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._remembered: dict[bytes, float] = {}

    def new(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Return the letters whose record had no dead letter in the last REPEAT_SECONDS, each record once."""
        oldest = self._clock() - REPEAT_SECONDS
        by_record: dict[bytes, DeadLetter] = {}
        for letter in letters:
            by_record.setdefault(_digest(letter), letter)
        return [letter for digest, letter in by_record.items() if self._remembered.get(digest, oldest) <= oldest]

    def remember(self, letters: Sequence[DeadLetter]) -> None:
        """Remember letters that are stored in their topic or in Postgres."""
        for letter in letters:
            digest = _digest(letter)
            self._remembered.pop(digest, None)
            self._remembered[digest] = self._clock()
            if len(self._remembered) > REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]


def _digest(letter: DeadLetter) -> bytes:
    """Return the digest of topic, key, value and origins of a record: a repeated event has the same, a redrive not."""
    record = letter.record
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for part in (record.topic.encode(), record.key or b"", record.value or b"", *letter.origins):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
