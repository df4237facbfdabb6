"""Reads the bytes of dead letters by their positions, for a redrive. Keeps one consumer, which commits no offsets."""

import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from msgspec import Struct

from orderstream.dead_letters.entries import entry_of
from orderstream.dead_letters.reader import StoredLetter, stored_letter
from orderstream.kafka.client import consumer
from orderstream.kafka.errors import UNKNOWN_TOPIC
from orderstream.kafka.topics import dead_letter_topic
from orderstream.settings import Settings

READ_SECONDS = 10.0
"""Longest wait for the next letter."""
SKIP_MAX = 1_000
"""Records that are read past. A larger distance is jumped over."""


class Wanted(Struct, frozen=True):
    """A letter that a job is about to send, as the index has it. `at` to `source_offset` identify its record."""

    action_id: int
    service: str
    partition: int
    offset: int
    at: datetime | None
    size: int | None
    source_topic: str | None
    source_offset: int | None


class LetterBytes:
    """Reads letters in the order of their offsets, in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Consumer | None = None
        self._next: tuple[str, int, int] | None = None

    def read(self, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, StoredLetter | None]]:
        """Yield each letter with its record; None if Kafka has another record or none at its position.

        `wanted` is sorted by service, partition and offset. Raises KafkaException if Kafka does not answer in time.
        """
        for (service, number), group in groupby(wanted, lambda letter: (letter.service, letter.partition)):
            letters = list(group)
            first, end = self._ends(service, number)
            for letter in letters:
                if letter.size is None or not first <= letter.offset < end:
                    yield letter, None
                    continue
                found = self._at(service, number, letter.offset)
                yield letter, found if found is not None and _is_the_same(letter, found) else None

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._next = None

    def _open(self) -> Consumer:
        if self._consumer is None:
            self._consumer = consumer(self._settings, "dead-letter-jobs")
        return self._consumer

    def _topic(self, service: str) -> str:
        return self._settings.kafka_topic_prefix + dead_letter_topic(service)

    def _ends(self, service: str, number: int) -> tuple[int, int]:
        """Return the first offset of a partition and the one after its last record; 0, 0 if it does not exist."""
        try:
            return self._open().get_watermark_offsets(TopicPartition(self._topic(service), number), READ_SECONDS)
        except KafkaException as error:
            if error.args[0].code() in UNKNOWN_TOPIC:
                return 0, 0
            raise

    def _at(self, service: str, number: int, offset: int) -> StoredLetter | None:
        """Return the record at an offset below the end of its partition; None if Kafka has deleted it meanwhile."""
        goes_on = self._next is not None and self._next[:2] == (service, number)
        if goes_on and self._next is not None and 0 <= offset - self._next[2] <= SKIP_MAX:
            found = self._poll_until(service, number, offset)
            if found is None or found.offset == offset:
                return found
            # The consumer is past the offset. Only a read that begins there shows that the record is gone.
        self._open().assign([TopicPartition(self._topic(service), number, offset)])
        found = self._poll_until(service, number, offset)
        return found if found is not None and found.offset == offset else None

    def _poll_until(self, service: str, number: int, offset: int) -> StoredLetter | None:
        """Return the first record from an offset on; None if the topic is gone. Raises KafkaException."""
        self._next = None
        topic, deadline = self._topic(service), time.monotonic() + READ_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            message = self._open().poll(left)
            if message is None:
                break
            if (error := message.error()) is not None:
                if error.code() in UNKNOWN_TOPIC:
                    return None
                raise KafkaException(error)
            if (message.topic(), message.partition()) == (topic, number) and (message.offset() or 0) >= offset:
                self._next = (service, number, (message.offset() or 0) + 1)
                return stored_letter(service, message)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _is_the_same(wanted: Wanted, found: StoredLetter) -> bool:
    """Say whether a record is the one of the index. The topic may have been deleted and created again."""
    entry = entry_of(found, "")
    return (entry.at, entry.size, entry.source_topic, entry.source_offset) == (
        wanted.at,
        wanted.size,
        wanted.source_topic,
        wanted.source_offset,
    )
