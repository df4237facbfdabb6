"""Reads dead letters for an operator: what failed, where it came from, and why (P9). Commits no offsets."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from confluent_kafka import Consumer, Message, TopicPartition
from msgspec import Struct

from orderstream.dead_letters.printable import in_one_line, printable
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Headers, headers_of
from orderstream.kafka.topics import dead_letter_topic
from orderstream.settings import Settings

NOTE = "dlq-"
"""The names of the headers that a worker adds begin with this."""
TIMEOUT_SECONDS = 10.0
"""Longest wait for one response of Kafka."""


class StoredLetter(Struct, frozen=True):
    """A dead letter in its topic. `notes` are the `dlq-*` headers: source, reason, error, attempts.

    `headers` are the other headers, in their order: those of the record that failed.
    """

    group: str
    partition: int
    offset: int
    at: datetime | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    notes: dict[str, str]

    @property
    def size(self) -> int:
        """Return the bytes of key, value and headers, with the notes not counted."""
        headers = sum(len(name.encode("utf-8", "replace")) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    @property
    def line(self) -> str:
        """Return the letter in one line: its position, its time, the reason, the source, and its key."""
        notes = self.notes
        source = f"{notes.get('topic')}/{notes.get('partition')}@{notes.get('offset')}"
        at = self.at.isoformat(timespec="milliseconds") if self.at else "-"
        key = (self.key or b"").decode("utf-8", "replace")
        return in_one_line(
            f"{self.group} {self.partition} {self.offset}  {at}  {notes.get('reason')}  {source}  {key:.100}"
        )

    @property
    def text(self) -> str:
        """Return the whole letter. Bytes that are not UTF-8 are shown as escapes."""
        fields = [self.line, ""]
        fields += [in_one_line(f"{name}: {value}") for name, value in self.notes.items()]
        fields += [in_one_line(f"{name}: {as_text(value)}") for name, value in self.headers]
        return "\n".join([*fields, "", printable((self.value or b"").decode("utf-8", "backslashreplace"))])


def newest(settings: Settings, group: str, limit: int) -> list[StoredLetter]:
    """Return the newest letters of a consumer group, at most `limit`, oldest first.

    Raises KafkaException if Kafka does not answer.
    """
    reader = consumer(settings, f"{group}.dlq-reader")
    try:
        topic = _topic(settings, group)
        found: list[StoredLetter] = []
        partitions = reader.list_topics(topic, timeout=TIMEOUT_SECONDS).topics[topic].partitions
        for partition in partitions:
            low, high = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_SECONDS)
            found += _read(reader, group, TopicPartition(topic, partition, max(low, high - limit)), high)
        found.sort(key=lambda letter: letter.at or datetime.min.replace(tzinfo=UTC))
        return found[-limit:]
    finally:
        reader.close()


def letter_at(settings: Settings, group: str, partition: int, offset: int) -> StoredLetter | None:
    """Return the letter at an offset, or None if there is none. Raises the same errors as `newest`."""
    reader = consumer(settings, f"{group}.dlq-reader")
    try:
        topic = _topic(settings, group)
        low, high = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_SECONDS)
        if not low <= offset < high:
            return None
        return next(_read(reader, group, TopicPartition(topic, partition, offset), offset + 1), None)
    finally:
        reader.close()


def _topic(settings: Settings, group: str) -> str:
    return settings.kafka_topic_prefix + dead_letter_topic(group)


def _read(reader: Consumer, group: str, start: TopicPartition, end: int) -> Iterator[StoredLetter]:
    """Yield the letters of a partition from the offset of `start` up to, but not including, the offset `end`."""
    if start.offset >= end:
        return
    reader.assign([start])
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        message = reader.poll(0.2)
        if message is None or message.error() is not None:
            continue
        if (message.offset() or 0) >= end:
            return
        yield stored_letter(group, message)
        if (message.offset() or 0) == end - 1:
            return


def stored_letter(group: str, message: Message) -> StoredLetter:
    """Convert a message of a dead-letter topic. If a header is repeated among the notes, the last one counts.

    The worker writes its notes last. So a record that had such headers before cannot forge them.
    """
    headers: Headers = []
    notes = {}
    for name, value in headers_of(message):
        if name.startswith(NOTE):
            notes[name.removeprefix(NOTE)] = as_text(value)
        else:
            headers.append((name, value))
    return StoredLetter(
        group,
        message.partition() or 0,
        message.offset() or 0,
        _time(int(message.timestamp()[1])),
        message.key(),
        message.value(),
        headers,
        notes,
    )


def as_text(value: bytes | str | None) -> str:
    """Return the value of a header as text. Bytes that are not UTF-8 are shown as escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _time(milliseconds: int) -> datetime | None:
    """Return the time of a record; None if its producer set an invalid time."""
    try:
        return datetime.fromtimestamp(milliseconds / 1_000, UTC) if milliseconds > 0 else None
    except (ValueError, OverflowError):
        return None
