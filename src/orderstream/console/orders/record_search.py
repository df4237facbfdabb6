"""Finds the records of one order in Kafka: by the partition of its key, around known times, and within limits.

One consumer is shared by all callers and kept open between searches. It joins no group and commits nothing.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from msgspec import Struct

from orderstream.domain.events import TOPICS
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Headers, headers_of
from orderstream.kafka.errors import UNKNOWN_TOPIC, KafkaRefusedError
from orderstream.kafka.partitions import LOG_END, LOG_START, partition_of
from orderstream.settings import Settings

RECORDS_MAX = 5_000
"""Records of one topic that one search reads."""
TOPIC_MAX_BYTES = 8 << 20
"""Bytes of one topic that one search reads."""
MATCHES_MAX = 50
"""Records of the order in one topic that one search returns."""
SEARCH_SECONDS = 2.0
"""Longest time of one search, in all topics together."""
ANSWER_SECONDS = 1.5
"""Longest wait for the topics and offsets of Kafka."""
TURN_SECONDS = 1.0
"""Longest wait for the search of another operator."""
RETRY_SECONDS = 2.0
"""After a search that failed, further searches fail at once for this time, so that they do not use up the threads."""
IDLE_SECONDS = 60.0
"""After this time without a search, the consumer is closed."""
WINDOWS_MAX = 8
"""Ranges of time in which one search looks."""
BEFORE = timedelta(seconds=2)
"""A search begins this long before a known time: the clocks of Kafka and PostgreSQL may differ."""
AFTER = timedelta(seconds=8)
"""A search ends this long after a known time. An event is in Kafka within milliseconds, or later if Kafka was down."""
BATCH_RECORDS = 500

_OPTIONS = {
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "fetch.message.max.bytes": 524_288,
    "queued.max.messages.kbytes": 4_096,
}


class Window(Struct, frozen=True):
    """A range of time in which records are searched."""

    after: datetime
    until: datetime


class FoundRecord(Struct, frozen=True):
    """A record of the order. The topic is named without KAFKA_TOPIC_PREFIX."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    headers: Headers
    recorded_at: datetime | None


class TopicSearch(Struct, frozen=True, kw_only=True, rename="camel"):
    """What one search read of one topic. `sentence` says it in words.

    `complete`: all records of the windows were read. `stopped`: a limit was reached. `missing`: Kafka has no such
    topic. `failed`: Kafka did not answer for it. To go on, search from `nextOffset`.
    """

    topic: str
    partition: int | None = None
    state: Literal["complete", "stopped", "missing", "failed"]
    records: int = 0
    first_offset: int | None = None
    """The oldest record that Kafka still has."""
    next_offset: int | None = None
    end_offset: int | None = None
    searched_until: datetime | None = None
    sentence: str


class Found(Struct, frozen=True):
    """The result of a search. `error` says why Kafka could not be searched at all."""

    records: Sequence[FoundRecord]
    topics: Sequence[TopicSearch]
    error: str | None = None


def windows_around(times: Collection[datetime]) -> list[Window]:
    """Return the windows around known times, merged, in the order of time: at most WINDOWS_MAX, the first and the last.

    If there are more, the first half and the last half are kept.
    """
    merged: list[Window] = []
    for at in sorted(times):
        window = Window(at - BEFORE, at + AFTER)
        if merged and window.after <= merged[-1].until:
            merged[-1] = Window(merged[-1].after, max(merged[-1].until, window.until))
        else:
            merged.append(window)
    half = WINDOWS_MAX // 2
    return merged if len(merged) <= WINDOWS_MAX else [*merged[:half], *merged[-half:]]


class _Progress:
    """The search of one topic while it runs.

    `ranges` are the offsets to read: the first, and that after the last. A range without records has both equal.
    """

    def __init__(self, topic: str, partition: int, first: int, end: int, ranges: list[tuple[int, int]]) -> None:
        self.topic = topic
        self.partition = partition
        self.first = first
        self.end = end
        self.begin = self.next = ranges[0][0] if ranges else end
        self.ranges = [(begin, until) for begin, until in ranges if begin < until]
        if ranges and not self.ranges:
            self.next = ranges[-1][1]
        self.records = 0
        self.bytes = 0
        self.matches: list[FoundRecord] = []
        self.last_at: datetime | None = None
        self.stopped: str | None = None
        self.failed: str | None = None
        self.is_read = False

    @property
    def is_done(self) -> bool:
        return bool(self.stopped or self.failed or not self.ranges)

    def begin_range(self) -> int:
        """Return the offset at which the first range begins."""
        self.next = max(self.next, self.ranges[0][0])
        self.is_read = False
        return self.next

    def goes_on(self, expected: Collection[str]) -> bool:
        """Say whether to read on to the end, because an expected record was not found, and make it so.

        If Kafka has removed the records of that time, a search behind the windows is in vain.
        """
        is_removed = self.begin == self.first > 0
        if self.topic in expected and not self.matches and not (self.stopped or self.failed or is_removed):
            self.ranges = [(self.next, self.end)] if self.next < self.end else []
        return bool(self.ranges) and not self.is_done

    def take(self, record: FoundRecord | None, at: datetime | None, offset: int, size: int) -> None:
        """Count a record of the first range. `record` is set if it is one of the order."""
        self.next, self.last_at = offset + 1, at
        self.records += 1
        self.bytes += size
        if record is not None:
            self.matches.append(record)
        self.end_range()
        if len(self.matches) >= MATCHES_MAX:
            self.stop(f"found {MATCHES_MAX} records of the order")
        elif self.records >= RECORDS_MAX:
            self.stop(f"searched {RECORDS_MAX:,} records")
        elif self.bytes >= TOPIC_MAX_BYTES:
            self.stop(f"searched {TOPIC_MAX_BYTES >> 20} MiB")

    def stop(self, why: str) -> None:
        """Stop before the last range is read. Without a further range, nothing changes."""
        if not self.is_done:
            self.next = max(self.next, self.ranges[0][0])
            self.stopped, self.is_read = why, True

    def fail(self, why: str) -> None:
        """Give the topic up."""
        self.failed, self.is_read = why, True

    def end_range(self, *, at_end: bool = False) -> None:
        """Drop the ranges that are read. `at_end` says that Kafka has no further record."""
        if at_end:
            self.next = max(self.next, self.end)
        while self.ranges and self.next >= self.ranges[0][1]:
            self.ranges.pop(0)
            self.is_read = True

    def result(self) -> TopicSearch:
        """Return what was read."""
        state: Literal["complete", "stopped", "failed"] = "complete"
        until = f" until {self.last_at:%H:%M:%S} UTC" if self.last_at else ""
        sentence = f"Searched {self.records:,} {'record' if self.records == 1 else 'records'} of {self.topic}."
        if self.failed:
            state, sentence = "failed", f"Kafka did not give the records of {self.topic}: {self.failed}"
        elif self.stopped:
            state, sentence = "stopped", f"Stopped in {self.topic}: {self.stopped}{until}."
        return TopicSearch(
            topic=self.topic,
            partition=self.partition,
            state=state,
            records=self.records,
            first_offset=self.first,
            next_offset=self.next,
            end_offset=self.end,
            searched_until=self.last_at,
            sentence=sentence,
        )


class RecordSearch:
    """Searches the topics of the saga. Thread-safe: one search runs at a time, and the others wait for their turn."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = settings.kafka_topic_prefix
        self._turn = Lock()
        self._client: Consumer | None = None
        self._used_at = 0.0
        self._failure: tuple[float, str] | None = None

    def around(self, key: bytes, windows: Sequence[Window], expected: Collection[str] = ()) -> Found:
        """Return the records with this key in the windows, in all topics, in the order of topic and offset.

        If an `expected` topic has no such record in the windows, the search goes on behind them: the event may be late.
        """
        return self._search(key, TOPICS, windows, expected)

    def onwards(self, key: bytes, topic: str, offset: int) -> Found:
        """Return the records with this key in one topic, from an offset on."""
        return self._search(key, (topic,), offset)

    def close_if_idle(self, idle_seconds: float = IDLE_SECONDS) -> bool:
        """Close the consumer if no search has used it for `idle_seconds`. Return whether none is open."""
        if self._turn.acquire(blocking=False):
            try:
                if self._client is not None and time.monotonic() - self._used_at >= idle_seconds:
                    self._client.close()
                    self._client = None
            finally:
                self._turn.release()
        return self._client is None

    def close(self) -> None:
        """Close the consumer after the running search. A later search opens another one."""
        with self._turn:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _search(
        self, key: bytes, topics: Sequence[str], begin: Sequence[Window] | int, expected: Collection[str] = ()
    ) -> Found:
        if not self._turn.acquire(timeout=TURN_SECONDS):
            return Found((), (), "Other operators are searching. Try again.")
        try:
            if self._failure and time.monotonic() - self._failure[0] < RETRY_SECONDS:
                return Found((), (), self._failure[1])
            if self._client is None:
                self._client = consumer(self._settings, "console-search", _OPTIONS)
            plan = _Plan(self._client, self._prefix, time.monotonic() + ANSWER_SECONDS)
            progress, missing = plan.make(key, topics, begin)
            deadline = time.monotonic() + SEARCH_SECONDS
            self._read(self._client, key, progress, deadline)
            self._read(self._client, key, [topic for topic in progress if topic.goes_on(expected)], deadline)
        except (KafkaException, KafkaRefusedError) as error:
            self._failure = (time.monotonic(), f"Kafka did not answer: {_text(error)}.")
            return Found((), (), self._failure[1])
        finally:
            self._used_at = time.monotonic()
            self._turn.release()
        records = [record for topic in progress for record in topic.matches]
        return Found(records, [*(topic.result() for topic in progress), *missing])

    def _read(self, client: Consumer, key: bytes, progress: Sequence[_Progress], deadline: float) -> None:
        """Read the ranges of all topics, the first range of each topic first. Stop at the deadline."""
        topics = {self._prefix + topic.topic: topic for topic in progress}
        try:
            while reading := {name: topic for name, topic in topics.items() if not topic.is_done}:
                client.assign(
                    [TopicPartition(name, topic.partition, topic.begin_range()) for name, topic in reading.items()]
                )
                while reading:
                    if time.monotonic() >= deadline:
                        for topic in topics.values():
                            topic.stop(f"the search took {SEARCH_SECONDS:g} s")
                        return
                    self._take(client, key, reading)
                    if read := [name for name, topic in reading.items() if topic.is_read]:
                        client.incremental_unassign(
                            [TopicPartition(name, reading.pop(name).partition) for name in read]
                        )
        finally:
            client.unassign()

    def _take(self, client: Consumer, key: bytes, reading: Mapping[str, _Progress]) -> None:
        """Take the records that are ready, and wait for the first one."""
        first = client.poll(0.05)
        if first is None:
            return
        for message in (first, *client.consume(BATCH_RECORDS, 0)):
            topic = reading.get(message.topic() or "")
            if topic is None or topic.is_read:
                continue
            error = message.error()
            if error is None:
                _note(topic, message, key, self._prefix)
            elif error.code() == KafkaError._PARTITION_EOF:
                topic.end_range(at_end=True)
            elif error.code() in (*UNKNOWN_TOPIC, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                topic.fail(error.str()[:200])


class _Plan:
    """Finds out which offsets to read, with one client, until the deadline. Raises KafkaException."""

    def __init__(self, client: Consumer, prefix: str, deadline: float) -> None:
        self._client = client
        self._prefix = prefix
        self._deadline = deadline
        self._failed: dict[str, str] = {}

    def make(
        self, key: bytes, topics: Sequence[str], begin: Sequence[Window] | int
    ) -> tuple[list[_Progress], list[TopicSearch]]:
        """Return the ranges to read in each topic, and the topics that Kafka does not have.

        The ranges are those of the windows, or that from an offset to the end.
        """
        self._client.poll(0)  # Delivers pending log lines and errors.
        known = self._client.list_topics(timeout=_left(self._deadline)).topics
        partitions = {
            topic: len(metadata.partitions)
            for topic in topics
            if (metadata := known.get(self._prefix + topic)) is not None and metadata.partitions
        }
        missing = [
            TopicSearch(topic=topic, state="missing", sentence=f"Kafka has no topic {topic}.")
            for topic in topics
            if topic not in partitions
        ]
        places = {topic: partition_of(key, number) for topic, number in partitions.items()}
        if not places:
            return [], missing
        firsts, ends = self._offsets(places, LOG_START), self._offsets(places, LOG_END)
        ranges: dict[str, list[tuple[int, int]]]
        if isinstance(begin, int):
            ranges = {topic: [(min(max(begin, firsts[topic]), ends[topic]), ends[topic])] for topic in places}
        else:
            ranges = {topic: [] for topic in places}
            for window in begin:
                after, until = (self._offsets(places, _milliseconds(at)) for at in (window.after, window.until))
                for topic, end in ends.items():
                    ranges[topic].append((_at(after[topic], end), _at(until[topic], end)))
        return [
            self._progress(topic, place, firsts[topic], ends[topic], ranges[topic]) for topic, place in places.items()
        ], missing

    def _progress(self, topic: str, partition: int, first: int, end: int, ranges: list[tuple[int, int]]) -> _Progress:
        progress = _Progress(topic, partition, first, end, ranges)
        if topic in self._failed:
            progress.fail(self._failed[topic])
        return progress

    def _offsets(self, places: Mapping[str, int], when: int) -> dict[str, int]:
        """Return the offset of each topic's partition at a time in milliseconds. Note the topics that have none."""
        wanted = [TopicPartition(self._prefix + topic, number, when) for topic, number in places.items()]
        offsets = {}
        for answer in self._client.offsets_for_times(wanted, timeout=_left(self._deadline)):
            topic = answer.topic.removeprefix(self._prefix)
            offsets[topic] = answer.offset
            if answer.error is not None:
                self._failed[topic] = answer.error.str()[:200]
        return offsets


def _note(topic: _Progress, message: Message, key: bytes, prefix: str) -> None:
    offset = message.offset() or 0
    if offset < topic.next:
        return
    if offset >= topic.ranges[0][1]:
        topic.next = offset
        topic.end_range()
        return
    at = _time(int(message.timestamp()[1]))
    value = message.value()
    record = None
    if message.key() == key:
        record = FoundRecord(
            (message.topic() or "").removeprefix(prefix),
            message.partition() or 0,
            offset,
            value,
            headers_of(message),
            at,
        )
    topic.take(record, at, offset, len(message))


def _at(offset: int, end: int) -> int:
    """Return the offset of the first record at a time. If there is none yet, Kafka returns a negative offset."""
    return offset if 0 <= offset <= end else end


def _milliseconds(at: datetime) -> int:
    return max(0, int(at.timestamp() * 1_000))


def _time(milliseconds: int) -> datetime | None:
    """Return the time of a record; None if its producer set an invalid time."""
    try:
        return datetime.fromtimestamp(milliseconds / 1_000, UTC) if milliseconds > 0 else None
    except (ValueError, OverflowError):
        return None


def _left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises KafkaException after it: for librdkafka, 0 is "no limit"."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return seconds


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return (reason.str() if isinstance(reason, KafkaError) else str(reason))[:300]
