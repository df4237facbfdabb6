"""Records that failed before. The watchdog repeats an abort until it is answered: one that fails each time is one dead
letter an hour and not one each time (P9).
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

from orderstream.worker.dead_letters import DeadLetter

REPEAT_SECONDS = 3_600.0
REMEMBERED_MAX = 10_000
_DIGEST_BYTES = 16


class Repeats:
    """Remembers which records became dead letters, by their bytes; the oldest are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._noted: dict[bytes, float] = {}

    def new(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Return those letters whose record did not become one in the last REPEAT_SECONDS, each record once."""
        oldest = self._clock() - REPEAT_SECONDS
        by_record: dict[bytes, DeadLetter] = {}
        for letter in letters:
            by_record.setdefault(_digest(letter), letter)
        return [letter for digest, letter in by_record.items() if self._noted.get(digest, oldest) <= oldest]

    def note(self, letters: Sequence[DeadLetter]) -> None:
        """Remember letters that are safe in their topic."""
        for letter in letters:
            digest = _digest(letter)
            self._noted.pop(digest, None)
            self._noted[digest] = self._clock()
            if len(self._noted) > REMEMBERED_MAX:
                del self._noted[next(iter(self._noted))]


def _digest(letter: DeadLetter) -> bytes:
    """Return the digest of the record's topic, key and value: a repeated event has the same."""
    record = letter.record
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for part in (record.topic.encode(), record.key or b"", record.value or b""):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
