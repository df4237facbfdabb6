"""Reads a few records of a topic. It never joins a group and never commits, and every read has limits."""

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from msgspec import Struct

from orderstream.console.flow.topics import READER
from orderstream.dead_letters.printable import in_one_line, printable
from orderstream.http_server.problems import Problem
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import headers_of
from orderstream.kafka.group_offsets import log_offsets
from orderstream.kafka.partitions import LOG_END, LOG_START, partition_of
from orderstream.settings import Settings

READ_SECONDS = 3.0
SCANNED_MAX = 5_000
"""Records that one look reads at most, to find those with a key."""
READ_MAX_BYTES = 16 << 20
CONSUMED_AT_ONCE = 50
LIMIT_MAX = 100
PARTITIONS_MAX = 16
"""Partitions that a look without a partition reads: those with the most records."""
KEY_MAX_BYTES = 200
VALUE_MAX_BYTES = 8 << 10
HEADERS_MAX = 50
HEADER_MAX_BYTES = 500
AT_ONCE_MAX = 2

_at_once = threading.BoundedSemaphore(AT_ONCE_MAX)


class TextAnswer(Struct, frozen=True, rename="camel"):
    """Bytes as text. Control characters and bytes that are not UTF-8 are escapes. `cutBytes` are not shown."""

    text: str
    bytes: int
    cut_bytes: int = 0
    is_json: bool = False


class HeaderAnswer(Struct, frozen=True, rename="camel"):
    """A header of a record."""

    name: str
    value: TextAnswer | None


class RecordAnswer(Struct, frozen=True, rename="camel"):
    """A record. `orderId` is its key if that is the id of an order."""

    partition: int
    offset: int
    at: datetime | None
    key: TextAnswer | None
    value: TextAnswer | None
    headers: tuple[HeaderAnswer, ...]
    headers_left_out: int
    order_id: str | None


class RecordsAnswer(Struct, frozen=True, rename="camel"):
    """Records of a topic, newest first, or by offset if an offset was asked for.

    `read` is the number of records that were read. `stopped` says why the look ended early.
    """

    topic: str
    records: tuple[RecordAnswer, ...]
    read: int
    stopped: str | None
    partitions: dict[int, tuple[int, int]]
    """The partitions that were read: the first offset, and the offset after the last record, of the log."""


class Look(Struct, frozen=True):
    """What to read: `limit` records of a partition from an offset on, or the newest ones; perhaps those of one key."""

    topic: str
    partition: int | None = None
    offset: int | None = None
    limit: int = 20
    key: str | None = None


def read(settings: Settings, look: Look, partitions: int) -> RecordsAnswer:
    """Read the records. `partitions` is the number of partitions of the topic.

    Raises KafkaException, KafkaRefusedError, and Problem 400 for a partition that does not exist, 503 if others read.
    """
    if look.partition is not None and not 0 <= look.partition < partitions:
        raise Problem(400, "invalid-query", "The query is not valid", f"The topic has no partition {look.partition}.")
    if not _at_once.acquire(blocking=False):
        raise Problem(503, "unavailable", "Try again", "Others read records now.", headers=[(b"retry-after", b"1")])
    try:
        client = consumer(settings, READER)
        try:
            return _read(client, look, partitions)
        finally:
            client.close()
    finally:
        _at_once.release()


def _read(client: Consumer, look: Look, partitions: int) -> RecordsAnswer:
    deadline = time.monotonic() + READ_SECONDS
    numbers = range(partitions)
    if look.partition is not None:
        numbers = range(look.partition, look.partition + 1)
    elif look.key is not None:
        number = partition_of(look.key.encode(), partitions)
        numbers = range(number, number + 1)
    keys = [(look.topic, number) for number in numbers]
    firsts = log_offsets(client, keys, LOG_START, deadline)
    ends = log_offsets(client, keys, LOG_END, deadline)
    fullest = sorted(keys, key=lambda key: firsts[key] - ends[key])[:PARTITIONS_MAX]
    stopped = None if len(fullest) == len(keys) else f"Only the {len(fullest)} fullest partitions were read."
    span = look.limit if look.key is None else SCANNED_MAX
    begins, upto = {}, {}
    for key in fullest:
        begin = ends[key] - span if look.offset is None else look.offset
        begins[key[1]] = max(begin, firsts[key])
        upto[key[1]] = min(ends[key], begins[key[1]] + span)
    scan = _Scan(look, upto)
    why = scan.run(client, begins, deadline)
    stopped = stopped or why
    if look.key is not None and stopped is None and any(begin > firsts[look.topic, n] for n, begin in begins.items()):
        stopped = f"Only {SCANNED_MAX:,} records of the partition were searched."
    by_offset = look.partition is not None or look.key is not None
    found = sorted(scan.found, key=_by_offset if by_offset else _by_time, reverse=look.offset is None)
    spans = {key[1]: (firsts[key], ends[key]) for key in fullest}
    return RecordsAnswer(look.topic, tuple(map(_record, found[: look.limit])), scan.read, stopped, spans)


def _by_offset(message: Message) -> int:
    return message.offset() or 0


def _by_time(message: Message) -> tuple[int, int, int]:
    return int(message.timestamp()[1]), message.partition() or 0, message.offset() or 0


class _Scan:
    """Collects the wanted messages of some partitions up to the offset `upto` of each."""

    def __init__(self, look: Look, upto: Mapping[int, int]) -> None:
        self.found: list[Message] = []
        self.read = 0
        self._look = look
        self._key = None if look.key is None else look.key.encode()
        self._upto = upto
        self._left: set[int] = set()
        self._bytes = 0

    def run(self, client: Consumer, begins: Mapping[int, int], deadline: float) -> str | None:
        """Read from `begins` on. Return why it ended early, or None."""
        self._left = {number for number in begins if begins[number] < self._upto[number]}
        if self._left:
            client.assign([TopicPartition(self._look.topic, number, begins[number]) for number in self._left])
        while self._left:
            if time.monotonic() > deadline:
                return f"Kafka did not send all records within {READ_SECONDS:.0f} s."
            for message in client.consume(CONSUMED_AT_ONCE, 0.1):
                if message.error() is None and (message.partition() or 0) in self._left:
                    self._take(message)
            if self._bytes > READ_MAX_BYTES:
                return f"The look ended after {READ_MAX_BYTES >> 20} MiB of records."
            if self._look.offset is not None and self._key is not None and len(self.found) >= self._look.limit:
                return None
        return None

    def _take(self, message: Message) -> None:
        number, offset = message.partition() or 0, message.offset() or 0
        if offset >= self._upto[number] - 1:
            self._left.discard(number)
        if offset < self._upto[number]:
            self.read += 1
            self._bytes += len(message.value() or b"") + len(message.key() or b"")
            if self._key is None or message.key() == self._key:
                self.found.append(message)


def _record(message: Message) -> RecordAnswer:
    headers = headers_of(message)
    key = message.key()
    return RecordAnswer(
        message.partition() or 0,
        message.offset() or 0,
        _time(int(message.timestamp()[1])),
        None if key is None else text_of(key, KEY_MAX_BYTES, one_line=True),
        None if message.value() is None else value_of(message.value() or b""),
        tuple(
            HeaderAnswer(
                in_one_line(name[:HEADER_MAX_BYTES]),
                None if value is None else text_of(value, HEADER_MAX_BYTES, one_line=True),
            )
            for name, value in headers[:HEADERS_MAX]
        ),
        max(0, len(headers) - HEADERS_MAX),
        _order_id(key),
    )


def text_of(content: bytes, most: int, *, one_line: bool = False) -> TextAnswer:
    """Return bytes as text that is safe to show, cut at `most` bytes."""
    text = content[:most].decode("utf-8", "backslashreplace")
    return TextAnswer((in_one_line if one_line else printable)(text), len(content), max(0, len(content) - most))


def value_of(content: bytes) -> TextAnswer:
    """Return a value as text: indented if it is JSON that is shown whole."""
    if len(content) <= VALUE_MAX_BYTES:
        try:
            return TextAnswer(printable(msgspec.json.format(content, indent=2).decode()), len(content), is_json=True)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return text_of(content, VALUE_MAX_BYTES)


def _order_id(key: bytes | None) -> str | None:
    """Return the order id that a key is, in its canonical form."""
    text = (key or b"")[:KEY_MAX_BYTES].decode("ascii", "replace")
    parts = text.split("-")
    if [len(part) for part in parts] != [8, 4, 4, 4, 12]:
        return None
    return text if all(set(part) <= set("0123456789abcdef") for part in parts) else None


def _time(milliseconds: int) -> datetime | None:
    """Return the time of a record; None if its producer set an invalid time."""
    try:
        return datetime.fromtimestamp(milliseconds / 1_000, UTC) if milliseconds > 0 else None
    except (ValueError, OverflowError, OSError):
        return None
