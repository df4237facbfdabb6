"""A worker's subscription to its topics: polls records, commits and rewinds offsets, and measures the lag (P5, P7).

It commits the offsets of processed batches together, a few times per second. A worker that dies receives the last
records again, which changes nothing (P7). A second thread with a client of its own reads the offsets for the lag, so
that no record waits for the answers. Kafka answers the requests of one connection in turn, and a fetch waits in Kafka
for records. Therefore a request of the consumer itself would wait for its fetch. A call of a consumer also waits for
the calls of other threads, such as a poll.

It pauses the partitions of a topic for which the handler has no room, so that their records wait in Kafka. It replaces
its consumer if the consumer is stalled or has no partitions after its topics were lost.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Record
from orderstream.kafka.errors import FENCED, UNKNOWN_TOPIC, KafkaRefusedError
from orderstream.kafka.group_offsets import GroupOffsets, group_offsets
from orderstream.kafka.partitions import TopicAndPartition, key_of
from orderstream.kafka.topics import ensure_topics
from orderstream.process.gathering import Gathering
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.worker.consumer_health import ANSWER_SECONDS, ConsumerHealth, positions_ahead_of_group, positions_of
from orderstream.worker.meters import WorkerMeters
from orderstream.worker.pauses import Pauses

POLL_SECONDS = 0.5
"""Longest wait for a record. After a signal to stop, the loop ends after this time at the latest."""
POLL_SECONDS_WITHOUT_ROOM = 0.1
"""The same while a topic has no room. The loop looks for room after it."""
GATHER_BYTES = 8 << 20
"""A batch of this size does not wait for more records."""
COMMIT_SECONDS = 0.5
"""Time between two commits of offsets. A commit costs as much as a small batch."""
COMMIT_ATTEMPTS = 3
MEASURE_SECONDS = 5.0
ENSURE_SECONDS = 1.0
"""Shortest time between two checks for missing topics."""

EARLY_SECONDS = 0.02
"""Longest wait of a batch of early records for the record that usually follows them."""
QUICK_FETCH = {"fetch.wait.max.ms": 100}
"""For a handler with limited room. A topic that is resumed after a pause waits for the end of the current fetch."""

KAFKA = "had no response from Kafka"
"""The activity that `readiness` reports while Kafka does not answer."""

log = logs.get()


class Subscription:
    """The consumer of one worker, for one thread. Records name their topics without KAFKA_TOPIC_PREFIX."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Sequence[str],
        meters: WorkerMeters,
        readiness: Readiness,
        *,
        room: Callable[[], Mapping[str, int]],
        gathering: Gathering,
        on_assigned: Callable[[], None],
    ) -> None:
        """`room` and `gathering` are the handler's.

        `on_assigned` is called when the group has assigned partitions.
        """
        self._settings = settings
        self._group = group
        self._prefix = settings.kafka_topic_prefix
        self._topics = [self._prefix + topic for topic in topics]
        self._meters = meters
        self._readiness = readiness
        self._pauses = Pauses(room, settings.kafka_topic_prefix, meters)
        self._gathering = gathering
        self._early_topics = {self._prefix + topic for topic in gathering.early_topics}
        self._on_assigned = on_assigned
        self._options = {**(QUICK_FETCH if room() else {}), "on_commit": self._note_commit}
        self._consumer: Consumer = consumer(settings, group, self._options)
        self._health = ConsumerHealth(time.monotonic, self._topics)
        self._partitions: dict[TopicAndPartition, TopicPartition] = {}
        """The assigned partitions. The client may take up to a second to return them while it is idle."""
        self._rewound: set[TopicAndPartition] = set()
        self._processed: dict[TopicAndPartition, int] = {}
        """The offsets that no commit is known to have stored."""
        self._committed_at = float("-inf")
        self._offsets_client = consumer(settings, group)
        """Reads offsets and never joins the group. Only the thread of `_reader` uses it."""
        self._reader = ThreadPoolExecutor(1, "offsets")
        self._reading: Future[dict[TopicAndPartition, GroupOffsets]] | None = None
        self._positions: dict[TopicAndPartition, int] = {}
        """The positions before the offsets were read."""
        self._last_size = 0
        self._measured = 0.0
        self._ensured = 0.0
        self.joined = False
        """Whether the group has assigned partitions to this consumer."""

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._partitions_lost
        )

    def close(self) -> None:
        """Commit the offsets of the processed records, and leave the group."""
        self._commit_processed(waits=True)
        self._consumer.close()
        self._reader.shutdown()
        self._offsets_client.close()

    def _assigned(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.joined = True
        self._partitions = {key_of(partition): partition for partition in partitions}
        self._pauses.note_assignment()
        self._on_assigned()
        names = sorted(f"{partition.topic}/{partition.partition}" for partition in partitions)
        log.info("partitions_assigned", partitions=names)

    def _revoked(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        """Commit before the group gives the partitions to other consumers."""
        self._partitions = {}
        self._commit_processed(waits=True)

    def _partitions_lost(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        """Forget the offsets: the group has given the partitions to other consumers and refuses a commit."""
        self._partitions = {}
        self._processed.clear()

    def poll(self) -> list[Record]:
        """Wait for a record and return it with the others that are here, at most `records_max` and the smallest room.

        Topics without room are paused. If there is a queue, also wait for more records (process/gathering.py). If there
        are only early records, also wait for the next one that is not.
        Raises KafkaException after a fatal error.
        """
        gather_until = time.monotonic() + self._gathering.seconds(self._last_size)
        room = self._pauses.wait_for_room()
        self._pauses.apply(self._consumer, room)
        message = self._consumer.poll(self._poll_seconds())
        if message is None:
            self._last_size = 0
            return []
        # The group may have assigned partitions during the poll.
        self._pauses.apply(self._consumer, room)
        limit = min([self._gathering.records_max, *(records for records in room.values() if records > 0)])
        messages = self._gather(message, limit, gather_until)
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(Record.of(message, self._prefix))
            else:
                self._client_error(error)
        self._last_size = len(records)
        return self._within(room, records)

    def _poll_seconds(self) -> float:
        """Return the longest wait for a record. Commits the offsets first, if a commit is due."""
        longest = POLL_SECONDS_WITHOUT_ROOM if self._pauses.are_active else POLL_SECONDS
        if not self._processed:
            return longest
        until_commit = self._committed_at + COMMIT_SECONDS - time.monotonic()
        if until_commit > 0:
            return min(longest, until_commit)
        self._commit_processed(waits=False)
        return longest

    def _gather(self, first: Message, limit: int, until: float) -> list[Message]:
        """Return the first message and those that follow it, at most `limit`. Gathers until a monotonic time."""
        messages = [first]
        if limit > 1:
            messages += self._consumer.consume(limit - 1, 0)
        size_bytes = sum(map(len, messages))
        more = min(limit, len(messages) * GATHER_BYTES // max(1, size_bytes)) - len(messages)
        wait_seconds = until - time.monotonic()
        if wait_seconds > 0 and more > 0:
            gathered = self._consumer.consume(more, wait_seconds)
            messages += gathered
            more -= len(gathered)
        return self._await_following(messages, more)

    def _await_following(self, messages: list[Message], more: int) -> list[Message]:
        """Return the messages and up to `more` others.

        If all of them are early, wait up to EARLY_SECONDS for a message that is not.
        """
        deadline = time.monotonic() + EARLY_SECONDS
        following = messages
        while more > 0 and all(message.topic() in self._early_topics for message in following):
            seconds = deadline - time.monotonic()
            if seconds <= 0 or not (following := self._consumer.consume(1, seconds)):
                break
            following += self._consumer.consume(more - 1, 0)
            messages += following
            more -= len(following)
        return messages

    def _within(self, room: Mapping[str, int], records: list[Record]) -> list[Record]:
        """Return the records of topics with room. Move back to the others, of partitions assigned during the poll."""
        late = [record for record in records if room.get(record.topic, 1) <= 0]
        if not late:
            return records
        self.rewind(late)
        return [record for record in records if record not in late]

    def _client_error(self, error: KafkaError) -> None:
        """Handle an error that the client returns in place of a record."""
        log.warning("consumer_error", code=error.name(), detail=error.str())
        if error.fatal():
            raise KafkaException(error)
        if error.code() in UNKNOWN_TOPIC:
            self._health.topics_lost()
            self.ensure_topics()

    def commit(self, records: Iterable[Record]) -> None:
        """Note that a batch is processed. Its offsets are committed within COMMIT_SECONDS, with those of other batches.

        The group may have given partitions of the batch to other consumers meanwhile. Their offsets are left out. These
        records are received again, which is harmless (P7).
        """
        processed = {(self._prefix + record.topic, record.partition): record.offset + 1 for record in records}
        following = {partition: offset for partition, offset in processed.items() if partition in self._partitions}
        self._rewound -= following.keys()
        self._processed |= following

    def _commit_processed(self, *, waits: bool) -> None:
        """Commit the offsets of the processed records. If `waits`, wait for Kafka and repeat a commit that fails."""
        offsets = [TopicPartition(*partition, offset) for partition, offset in self._processed.items()]
        if waits:
            self._processed.clear()
            self._commit_offsets(offsets)
        elif offsets:
            try:
                self._consumer.commit(offsets=offsets)
            except KafkaException as error:
                self._note_commit(error.args[0], offsets)
        self._committed_at = time.monotonic()

    def _note_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Note the result of a commit for which the loop did not wait. The next commit repeats one that failed."""
        failure = error or next((partition.error for partition in partitions if partition.error), None)
        if failure:
            log.warning("offset_commit_failed", detail=failure.str()[:300])
            if failure.code() not in FENCED:
                return
        for partition in partitions:
            if self._processed.get(key_of(partition)) == partition.offset:
                del self._processed[key_of(partition)]

    def _commit_offsets(self, offsets: list[TopicPartition]) -> None:
        for _ in range(COMMIT_ATTEMPTS if offsets else 0):
            try:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                code = error.args[0].code()
                log.warning("offset_commit_failed", detail=str(error)[:300])
                if code in FENCED:
                    return
            else:
                return

    def rewind(self, records: Iterable[Record]) -> None:
        """Move back to the first record of a batch in each partition, so that its records are polled again.

        Polling goes on meanwhile, and with it the membership in the group.
        """
        first: dict[TopicAndPartition, int] = {}
        for record in records:
            partition = (record.topic, record.partition)
            first[partition] = min(first.get(partition, record.offset), record.offset)
        for (topic, number), offset in first.items():
            self._rewound.add((self._prefix + topic, number))
            try:
                self._consumer.seek(self._offset(topic, number, offset))
            except KafkaException as error:
                log.warning("seek_back_refused", topic=topic, partition=number, detail=str(error)[:300])
        self._health.reset()

    def _offset(self, topic: str, partition: int, offset: int) -> TopicPartition:
        return TopicPartition(self._prefix + topic, partition, offset)

    def polling_paused(self, seconds: float) -> None:
        """Note that the loop did not poll for `seconds`, as while it processed a batch."""
        if seconds > MEASURE_SECONDS:
            self._health.reset()

    def measure_lag(self) -> None:
        """Begin to measure the lag every MEASURE_SECONDS, and use the result of the last measurement once it is there.

        Does not wait for Kafka, except to replace an unhealthy consumer. A consumer is replaced if it is stalled. It is
        also replaced if it has no partition after topics were lost, because the group may have formed while the topics
        were missing, and then gives it no partition.
        """
        if self._reading is None:
            if time.monotonic() - self._measured >= MEASURE_SECONDS:
                self._positions = positions_of(self._consumer, list(self._partitions.values()))
                self._reading = self._reader.submit(self._read_offsets)
        elif self._reading.done():
            reading, self._reading = self._reading, None
            self._note_measurement(reading)

    def _read_offsets(self) -> dict[TopicAndPartition, GroupOffsets]:
        return group_offsets(self._offsets_client, self._topics, time.monotonic() + ANSWER_SECONDS)

    def _note_measurement(self, reading: Future[dict[TopicAndPartition, GroupOffsets]]) -> None:
        """Show the lag, note positions to commit that are ahead of the group, and replace an unhealthy consumer."""
        try:
            offsets = reading.result()
        except (KafkaException, KafkaRefusedError) as error:
            log.debug("lag_unknown", detail=str(error)[:300])
            self._readiness.failed(KAFKA, error)
            self._health.reset()
            lag = {}
        else:
            self._readiness.succeeded(KAFKA)
            lag = self._health.lag(self._positions, offsets, self._pauses.may_wait(assigned=bool(self._partitions)))
            # The position may have moved since, to records that are processed by now.
            positions = positions_of(self._consumer, list(self._partitions.values()))
            self._processed |= positions_ahead_of_group(positions, offsets, self._rewound)
        self._measured = time.monotonic()
        self._pauses.note_measurement()
        self._meters.lag(
            {(topic.removeprefix(self._prefix), number): records for (topic, number), records in lag.items()}
        )
        stalled = self._health.stalled()
        if self.joined and (stalled or self._health.unassigned()):
            log.warning("consumer_replaced", partitions=[f"{topic}/{number}" for topic, number in stalled])
            self._replace_consumer()

    def _replace_consumer(self) -> None:
        self._health = ConsumerHealth(time.monotonic, self._topics)
        self.joined = False
        self._partitions = {}
        self._commit_processed(waits=True)
        self._consumer.close()
        self._consumer = consumer(self._settings, self._group, self._options)
        self.subscribe()

    def ensure_topics(self) -> None:
        """Create missing topics, at most once every ENSURE_SECONDS. Logs an error of Kafka instead of raising it."""
        if time.monotonic() - self._ensured < ENSURE_SECONDS:
            return
        self._ensured = time.monotonic()
        try:
            created = ensure_topics(self._settings)
        except KafkaException as error:
            log.warning("ensure_topics_failed", detail=str(error)[:300])
        else:
            if created:
                log.warning("topics_created", topics=created)
