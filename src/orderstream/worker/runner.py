"""The one loop that every worker runs: poll, decide in one transaction, publish, and only then move the offsets.

A decision is durable before its events leave (P5), a failing record is found and set aside (P9), and a failing
dependency is waited for: the batch is repeated, and after a minute given back to Kafka.
"""

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from threading import Event as StopSignal
from typing import Generic, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from msgspec import Struct, structs

from orderstream.dead_letters import refused_records
from orderstream.dead_letters.letter import DeadLetter, publication
from orderstream.domain.events import topic_of
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Received, Record, Undecodable, decode, encode
from orderstream.kafka.errors import FENCED, TOPIC_MAY_BE_GONE, UNKNOWN_TOPIC, KafkaRefusedError, PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic, ensure_topics
from orderstream.postgres.connect import Connection
from orderstream.postgres.faults import is_bad_value, is_fatal, is_transient, is_unknown, names_unknown_order
from orderstream.postgres.session import Session
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Tracer, trace_id
from orderstream.worker.consumer_health import Place, Progress, ahead_of_group
from orderstream.worker.failure_limit import MIN_FAILURES, FailureLimit, UnknownOrders
from orderstream.worker.handler import Decision, Handler, RepeatBatchError
from orderstream.worker.meters import WorkerMeters
from orderstream.worker.recent_dead_letters import RecentDeadLetters
from orderstream.worker.traces import BatchTrace

BATCH_RECORDS = 500
POLL_SECONDS = 0.1
GATHER_SECONDS = 0.03
GATHER_BYTES = 8 << 20
"""A batch that weighs so much gathers no more."""
GATHER_FROM = 20
"""A batch this large says that there is a queue: only then is it worth waiting for more."""
RETRY_SECONDS = 60
UNKNOWN_RETRIES = 3
"""Before an error that is not known to be about data is charged to a record, if others of its batch succeed."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
COMMIT_ATTEMPTS = 3
LETTER_FAILURES_MAX = 3
"""Publishes of dead letters that may fail in a row: a topic that takes none must not hold up good records."""
MEASURE_SECONDS = 5.0
TIMER_SECONDS = 0.2
"""After so long one timer makes way for the next batch, however much is due."""
ENSURE_SECONDS = 1.0
"""Missing topics are looked for no more often than this."""

BATCH, KAFKA, POSTGRES = "finished no batch", "had no answer of Kafka", "not reached PostgreSQL"
"""What `readiness` says of this loop."""

P = TypeVar("P")
log = logs.get()


class _Batch(Struct):
    """The records of one poll, and what has become of them."""

    received: list[Received]
    letters: list[DeadLetter]
    failures: list[DeadLetter]
    first: dict[Place, int]
    following: dict[Place, int]
    isolates_unknown: bool = False
    unexplained: int = 0
    """Failures by an error that is not known to be about data, of records that did not fail before."""


class Runner(Generic[P]):
    """Runs a handler until `stop` is set. One thread; the consumer, the producer and the connection are its own."""

    def __init__(self, handler: Handler[P], settings: Settings, tracer: Tracer, stop: StopSignal) -> None:
        self._handler = handler
        self._settings = settings
        self._tracer, self._stop = tracer, stop
        self._prefix = settings.kafka_topic_prefix
        self._topics = [self._prefix + name for name in handler.topics]
        self._meters = WorkerMeters(handler.group, handler.topics)
        written = [*map(topic_of, handler.emits), dead_letter_topic(handler.group)]
        refused_records.count_from_zero(handler.group, written)
        self._limit = FailureLimit(time.monotonic)
        self._unknown_orders = UnknownOrders(time.monotonic)
        self._recent = RecentDeadLetters(time.monotonic)
        self._publisher = Publisher(settings, handler.group, stop)
        self._consumer: Consumer = consumer(settings, handler.group)
        self._session = Session(settings.postgres_url, handler.group)
        self._due = dict.fromkeys((timer.name for timer in handler.timers), 0.0)
        self._last_size = 0
        self._measured = 0.0
        self._ensured = 0.0
        self._letter_failures = 0
        self._progress = Progress(time.monotonic, self._topics)
        self._joined = False
        self._given_back: set[Place] = set()
        self.beat = time.monotonic()
        self.readiness = Readiness()

    @property
    def ready(self) -> bool:
        """Whether Postgres was reached and the group has given us our partitions."""
        return self._joined and self._session.ready

    def run(self) -> None:
        """Consume until `stop` is set, then finish the batch, commit its offsets and leave the group.

        Raises what no retry can help: a missing table or a wrong password, or too many failing records.
        """
        self._subscribe()
        try:
            while not self._stop.is_set():
                self.beat = time.monotonic()
                self._reach_postgres()
                self._run_timers()
                self._measure_lag()
                records = self._poll()
                if records:
                    self._process(records)
        finally:
            self._consumer.close()
            self._session.close()

    def _assigned(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined = True
        # What was tried before may be another worker's by now.
        self.readiness.succeeded(BATCH)
        log.info("partitions_assigned", partitions=sorted(f"{one.topic}/{one.partition}" for one in partitions))

    def _poll(self) -> list[Record]:
        """Wait for a record and take what else is here, at most BATCH_RECORDS; in a queue, wait for more."""
        message = self._consumer.poll(POLL_SECONDS)
        if message is None:
            self._last_size = 0
            return []
        messages = [message, *self._consumer.consume(BATCH_RECORDS - 1, 0)]
        weight = sum(map(len, messages))
        room = min(BATCH_RECORDS, len(messages) * GATHER_BYTES // max(1, weight)) - len(messages)
        if self._last_size >= GATHER_FROM and room > 0:
            messages += self._consumer.consume(room, GATHER_SECONDS)
        records = []
        for one in messages:
            error = one.error()
            if error is None:
                records.append(Record.of(one, self._prefix))
            else:
                self._client_error(error)
        self._last_size = len(records)
        return records

    def _client_error(self, error: KafkaError) -> None:
        """React to an error that the client returns in place of a record."""
        log.warning("consumer_error", code=error.name(), detail=error.str())
        if error.fatal():
            raise KafkaException(error)
        if error.code() in UNKNOWN_TOPIC:
            self._progress.topics_lost()
            self._ensure_topics()

    def _process(self, records: list[Record]) -> None:
        """Bring a batch to its end: decided, published, offsets committed; or given back to Kafka after a minute."""
        started = time.monotonic()
        wait = BACKOFF_FIRST_SECONDS
        self._meters.consumed(record.topic for record in records)
        self.readiness.begin(BATCH)
        for retries in itertools.count():
            try:
                batch = self._decode(records)
                batch.isolates_unknown = retries >= UNKNOWN_RETRIES
                self._settle_all(batch)
            except Exception as error:
                if is_fatal(error) or not self._transient(error):
                    raise
                self._meters.retried(record.topic for record in records)
                self.readiness.failed(BATCH, error)
                log.warning("batch_retry", error=str(error)[:500], records=len(records))
                if time.monotonic() - started > RETRY_SECONDS:
                    if is_unknown(error):
                        raise
                    self._seek_back(records)
                    self._progress.begin_anew()
                    return
                self._recover(error)
                if self._stop.wait(wait):
                    return
                wait = min(2 * wait, BACKOFF_MAX_SECONDS)
            else:
                self._commit(batch)
                self.readiness.succeeded(BATCH)
                seconds = time.monotonic() - started
                self._meters.batch(len(records), seconds)
                if seconds > MEASURE_SECONDS:
                    self._progress.begin_anew()
                return

    def _decode(self, records: list[Record]) -> _Batch:
        batch = _Batch([], [], [], {}, {})
        for record in records:
            place = (record.topic, record.partition)
            batch.first[place] = min(batch.first.get(place, record.offset), record.offset)
            batch.following[place] = record.offset + 1
            try:
                batch.received.append(Received(record, decode(record.topic, record.key, record.value)))
            except Undecodable as error:
                batch.letters.append(DeadLetter(record, error.reason, error.detail, 0))
        return batch

    def _settle_all(self, batch: _Batch) -> None:
        trace = BatchTrace(self._tracer, self._handler.group, batch.received)
        try:
            if batch.received:
                self._settle(batch.received, trace, batch, attempts=1)
            new = self._recent.new(batch.failures)
            self._limit.check(len(batch.received), len(new))
            self._bury(batch.letters + new)
            self._limit.note(len(batch.received), len(new))
            self._recent.remember(new)
            self._unknown_orders.note(len(batch.received), batch.letters)
        except Exception as error:
            trace.end(error)
            raise
        if again := len(batch.failures) - len(new):
            log.warning("dead_letter_again", records=again, detail=batch.failures[-1].detail[:500])
        trace.end(None)
        self._meters.decided(received.record.topic for received in batch.received)

    def _settle(self, part: Sequence[Received], trace: BatchTrace, batch: _Batch, attempts: int) -> None:
        """Decide and publish `part`; when a record in it is at fault, halve it until that record stands alone."""
        try:
            decision = self._decide(part)
            self._publish(decision, trace)
        except KafkaRefusedError:
            raise
        except Exception as error:
            if is_fatal(error) or (self._transient(error) and not (is_unknown(error) and batch.isolates_unknown)):
                raise
            if len(part) == 1:
                letter = DeadLetter(part[0].record, "FAILED", f"{type(error).__name__}: {error}", attempts)
                if names_unknown_order(error):
                    batch.letters.append(structs.replace(letter, reason="UNKNOWN_ORDER"))
                elif is_bad_value(error):
                    batch.letters.append(structs.replace(letter, reason="BAD_PAYLOAD"))
                else:
                    batch.failures.append(letter)
                    batch.unexplained += is_unknown(error) and len(self._recent.new([letter]))
                if batch.unexplained > min(MIN_FAILURES, len(batch.received) - 1):
                    raise
                return
            middle = len(part) // 2
            for half in (part[:middle], part[middle:]):
                self._settle(half, trace, batch, attempts + 1)
        else:
            rejected = [DeadLetter(one.received.record, one.reason, one.detail, attempts) for one in decision.reject]
            batch.letters += rejected

    def _decide(self, part: Sequence[Received]) -> Decision:
        with self._session.use() as connection:
            prepared = self._handler.prepare(connection, part)
            with connection.transaction():
                decision = self._handler.decide(connection, part, prepared)
        decision.after_commit()
        return decision

    def _publish(self, decision: Decision, trace: BatchTrace) -> None:
        """Publish the events of a decision. Those that Kafka refuses for good are kept in Postgres.

        Raises PublishError when a retry may help.
        """
        if not decision.emit:
            return
        records = [trace.publication(outgoing, encode(outgoing.event)) for outgoing in decision.emit]
        refused: Collection[int] = ()
        try:
            self._publisher.publish(records)
        except PublishError as error:
            trace.published(str(error))
            if not error.all_refused:
                raise
            refused = error.refused
            self._keep_refused([(records[index], reason) for index, reason in refused.items()])
        except Exception as error:
            trace.published(str(error))
            raise
        trace.published()
        self._meters.produced(record.topic for index, record in enumerate(records) if index not in refused)

    def _keep_refused(self, refused: list[tuple[Publication, str]]) -> None:
        if refused:
            with self._session.use() as connection:
                refused_records.keep(connection, self._handler.group, refused)

    def _bury(self, letters: list[DeadLetter]) -> None:
        """Publish dead letters. Postgres keeps those that Kafka refuses, or after LETTER_FAILURES_MAX failures."""
        if not letters:
            return
        records = [publication(self._handler.group, letter) for letter in letters]
        delivery = refused_records.deliver(self._publisher, records)
        if delivery.error:
            self._letter_failures += 1
            if self._letter_failures < LETTER_FAILURES_MAX:
                raise delivery.error
        reasons = dict.fromkeys(delivery.unacknowledged, str(delivery.error)) | delivery.refused
        self._keep_refused([(records[index], reason) for index, reason in reasons.items()])
        self._letter_failures = 0
        for letter in letters:
            record = letter.record
            log.error(
                "dead_letter",
                reason=letter.reason,
                detail=letter.detail[:500],
                record=f"{record.topic}/{record.partition}@{record.offset}",
                order_id=(record.key or b"").decode("utf-8", "replace")[:100],
                trace_id=trace_id(record.trace_context()),
            )
        self._meters.dead_lettered(letter.record.topic for letter in letters)

    def _commit(self, batch: _Batch) -> None:
        """Move the offsets past the batch. When that fails its records come again, which changes nothing (P7)."""
        offsets = [self._place(*place, offset) for place, offset in batch.following.items()]
        self._given_back -= {(one.topic, one.partition) for one in offsets}
        self._commit_offsets(offsets)

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

    def _measure_lag(self) -> None:
        """Say how many records of each of our partitions wait; a consumer that takes none of them is replaced.

        So is one that was given no partition, if nobody takes what waits, or if topics were gone: a group that forms
        then may stay so.
        """
        if time.monotonic() - self._measured < MEASURE_SECONDS:
            return
        try:
            waiting = self._progress.waiting(self._consumer)
            self._commit_offsets(ahead_of_group(self._consumer, waiting, self._given_back))
        except KafkaException as error:
            log.debug("lag_unknown", detail=str(error)[:300])
            self.readiness.failed(KAFKA, error)
            self._progress.begin_anew()
            waiting = {}
        else:
            self.readiness.succeeded(KAFKA)
        self._measured = time.monotonic()
        self._meters.lag({(name.removeprefix(self._prefix), number): lag for (name, number), lag in waiting.items()})
        deaf = self._progress.deaf()
        if self._joined and (deaf or self._progress.left_out()):
            log.warning("consumer_replaced", partitions=[f"{name}/{partition}" for name, partition in deaf])
            self._progress = Progress(time.monotonic, self._topics)
            self._joined = False
            self._consumer.close()
            self._consumer = consumer(self._settings, self._handler.group)
            self._subscribe()

    def _subscribe(self) -> None:
        self._consumer.subscribe(self._topics, on_assign=self._assigned)

    def _seek_back(self, records: list[Record]) -> None:
        """Have the records polled again, so that polling, and with it the group membership, goes on meanwhile."""
        for (name, partition), offset in self._decode(records).first.items():
            self._given_back.add((self._prefix + name, partition))
            try:
                self._consumer.seek(self._place(name, partition, offset))
            except KafkaException as error:
                log.warning("seek_back_refused", topic=name, partition=partition, detail=str(error)[:300])

    def _place(self, name: str, partition: int, offset: int) -> TopicPartition:
        return TopicPartition(self._prefix + name, partition, offset)

    def _recover(self, error: Exception) -> None:
        if isinstance(error, PublishError) and error.code in TOPIC_MAY_BE_GONE:
            self._ensure_topics()

    def _ensure_topics(self) -> None:
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

    def _reach_postgres(self) -> None:
        """Connect ahead of the first record, so that being ready means being able to work."""
        try:
            self._session.open()
        except Exception as error:
            if not is_transient(error):
                raise
            self.readiness.failed(POSTGRES, error)
            log.warning("postgres_unreachable", error=str(error)[:500])
        else:
            self.readiness.succeeded(POSTGRES)

    def _run_timers(self) -> None:
        """Run every timer whose time has come. One that fails is left for its next time, and stops no order."""
        for timer in self._handler.timers:
            if time.monotonic() < self._due[timer.name]:
                continue
            activity = f"not run its timer {timer.name}"
            self.readiness.begin(activity)
            try:
                self._run_timer(timer.run)
                self.readiness.succeeded(activity)
            except Exception as error:
                if is_fatal(error) or isinstance(error, KafkaRefusedError):
                    raise
                self.readiness.failed(activity, error)
                log.warning("timer_retry", timer=timer.name, exc_info=None if self._transient(error) else error)
                self._recover(error)
            self._due[timer.name] = time.monotonic() + timer.every_seconds

    def _run_timer(self, run: Callable[[Connection], bool]) -> None:
        started = time.monotonic()
        with self._session.use() as connection:
            while run(connection) and time.monotonic() - started < TIMER_SECONDS and not self._stop.is_set():
                continue

    @staticmethod
    def _transient(error: Exception) -> bool:
        return isinstance(error, RepeatBatchError | PublishError) or is_transient(error)
