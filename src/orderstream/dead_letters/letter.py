"""Dead letters: a record that a worker cannot process goes to the dead-letter topic, whole and with its reason (P9)."""

from msgspec import Struct

from orderstream.kafka.client import MAX_MESSAGE_BYTES
from orderstream.kafka.envelope import Reason, Record
from orderstream.kafka.publication import Publication
from orderstream.kafka.topics import dead_letter_topic

LETTER_MAX_BYTES = MAX_MESSAGE_BYTES - (64 << 10)
KEY_MAX_BYTES = 1 << 10
"""Bytes of the key that are kept of a record that does not fit into a dead letter."""
ERROR_MAX_CHARACTERS = 1_000
FROM_HEADER = "redriven-from"
"""Header with the position of the dead letter from which a record was redriven. Each redrive adds one."""
JOB_HEADER = "redrive-job"


class DeadLetter(Struct, frozen=True):
    """A record that the worker gave up, and why. `attempts` counts how often the handler received the record."""

    record: Record
    reason: Reason
    detail: str
    attempts: int

    @property
    def origins(self) -> list[bytes]:
        """Return the positions of the dead letters from which the record was redriven, the oldest first."""
        return [value or b"" for name, value in self.record.headers if name == FROM_HEADER]


def publication(group: str, letter: DeadLetter) -> Publication:
    """Return the dead letter as a record: the original key, value and headers, and `dlq-` headers with the reason.

    If the record has more than LETTER_MAX_BYTES, its headers are dropped and its key and value are cut. The header
    `dlq-cut-from` then has the original size. Such records exist because a topic limits the compressed size.
    """
    record = letter.record
    key, value, headers = record.key, record.value, record.headers
    notes = {
        "dlq-topic": record.topic,
        "dlq-partition": str(record.partition),
        "dlq-offset": str(record.offset),
        "dlq-reason": letter.reason,
        "dlq-error": letter.detail[:ERROR_MAX_CHARACTERS],
        "dlq-attempts": str(letter.attempts),
    }
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in headers)
    if size > LETTER_MAX_BYTES:
        notes["dlq-cut-from"] = str(size)
        key, headers = key and key[:KEY_MAX_BYTES], []
        value = value and value[: LETTER_MAX_BYTES - KEY_MAX_BYTES]
    return Publication(dead_letter_topic(group), key, value, [*headers, *notes.items()])
