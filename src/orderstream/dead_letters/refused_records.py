"""Keeps records that Kafka permanently refuses in PostgreSQL, with the reason, so that they block no other record (P9).

A refused record is an event of the relay or of a worker, or a dead letter. `orderstream refused` lists and redrives
them. The watchdog treats the order like an order with a lost event: it nudges the order, aborts it again, or fails it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from orderstream.dead_letters.printable import in_one_line, printable
from orderstream.domain.events import TOPICS
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.sql import load
from orderstream.settings import Settings
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import TraceContext, trace_id

REDRIVE_ROWS = 100
"""Records that a redrive sends in one transaction."""
REASON_MAX_CHARACTERS = 1_000
ID_SHOWN_CHARACTERS = 12

UNKNOWN_TOPIC = "UNKNOWN_TOPIC: Kafka has no topic of this name"

SQL = load("orderstream.dead_letters")
_OUR_TOPICS = {*TOPICS, *map(dead_letter_topic, CONSUMER_GROUPS)}
_IDENTITY = ("event-id", "dlq-topic", "dlq-partition", "dlq-offset")
"""Headers that do not change if the same event or dead letter is published again."""

log = logs.get()


class RefusedRecord(Struct, frozen=True):
    """A record that Kafka refused: a row of `refused_records`. `times` counts the refusals."""

    record_id: str
    publication: Publication
    service: str
    reason: str
    times: int
    refused_at: datetime

    @classmethod
    def of(cls, row: Sequence[Any]) -> "RefusedRecord":
        """Convert a row."""
        record_id, topic, key, value, headers, service, reason, times, refused_at = row
        pairs = [(name, content) for name, content in msgspec.msgpack.decode(headers)]
        return cls(record_id, Publication(topic, key, value, pairs), service, reason, times, refused_at)

    @property
    def line(self) -> str:
        """Return the record in one line: id, time, service, topic, key, number of refusals, and reason."""
        at = self.refused_at.isoformat(timespec="milliseconds")
        return in_one_line(
            f"{self.record_id[:ID_SHOWN_CHARACTERS]}  {at}  {self.service}  {self.publication.topic:.100}"
            f"  {_key_text(_bytes(self.publication.key))}  {self.times}x  {self.reason}"
        )

    @property
    def text(self) -> str:
        """Return the whole record. Bytes that are not UTF-8 are shown as escapes."""
        headers = [in_one_line(f"{name}: {_shown(value)}") for name, value in self.publication.headers]
        return "\n".join([self.line, "", *headers, "", printable(_shown(self.publication.value))])


class RefusedHead(Struct, frozen=True, rename="camel"):
    """A record that Kafka refused to take, without its value. Its texts are printable. `times` counts the refusals."""

    id: str
    refused_at: datetime
    service: str
    topic: str
    key: str
    times: int
    reason: str


def keep(tx: Connection, service: str, refused: Iterable[tuple[Publication, str]]) -> None:
    """Store records that `service` could not publish, each with its reason. Raises psycopg.Error."""
    rows = {_record_id(record): (record, reason) for record, reason in refused}
    if not rows:
        return
    ordered = [(record_id, *rows[record_id]) for record_id in sorted(rows)]
    tx.execute(
        SQL["keep_refused"],
        {
            "record_ids": [record_id for record_id, _, _ in ordered],
            "topics": [record.topic for _, record, _ in ordered],
            "keys": [_bytes(record.key) for _, record, _ in ordered],
            "values": [_bytes(record.value) for _, record, _ in ordered],
            "headers": [msgspec.msgpack.encode(record.headers) for _, record, _ in ordered],
            "services": [service] * len(ordered),
            "reasons": [reason[:REASON_MAX_CHARACTERS] for _, _, reason in ordered],
        },
    )
    for _, record, reason in ordered:
        key = _bytes(record.key) or b""
        log.error(
            "record_refused",
            topic=record.topic[:250],
            order_id=key.decode("utf-8", "replace")[:100],
            trace_id=_trace_id(record),
            reason=reason[:REASON_MAX_CHARACTERS],
        )
        metrics.REFUSED.labels(service, topic_label(record.topic)).inc()


def _trace_id(record: Publication) -> str | None:
    """Return the trace id in the headers of a record."""
    traceparent = next((value for name, value in record.headers if name == "traceparent"), None)
    return trace_id(TraceContext((_bytes(traceparent) or b"").decode("ascii", "replace"), None))


def count_from_zero(service: str, topics: Iterable[str]) -> None:
    """Create the counters of `service` at 0, so that the first refusal is an increase."""
    for topic in topics:
        metrics.REFUSED.labels(service, topic_label(topic))


def measure(connection: Connection, kept_hours: int) -> int:
    """Delete records that were refused more than `kept_hours` ago, and return the number of the others."""
    connection.execute(SQL["forget_refused"], {"hours": kept_hours})
    row = connection.execute(SQL["count_refused"]).fetchone()
    number: int = row[0] if row else 0
    return number


def newest(postgres_url: str, limit: int) -> list[RefusedRecord]:
    """Return the records that were refused last, at most `limit`, oldest first. Raises psycopg.Error."""
    with connect(postgres_url, "refused") as connection:
        rows = connection.execute(SQL["newest_refused"], {"limit": limit}).fetchall()
    return [RefusedRecord.of(row) for row in reversed(rows)]


def heads(connection: Connection, limit: int) -> list[RefusedHead]:
    """Return the records that were refused last, at most `limit`, newest first. Raises psycopg.Error."""
    return [
        RefusedHead(record_id, at, service, in_one_line(topic), _key_text(key), times, in_one_line(reason))
        for record_id, at, service, topic, key, times, reason in connection.execute(
            SQL["refused_heads"], {"limit": limit}
        )
    ]


def find(postgres_url: str, id_prefix: str) -> RefusedRecord | None:
    """Return the record whose id begins with `id_prefix`; None if no or more than one id does. Raises psycopg.Error."""
    with connect(postgres_url, "refused") as connection:
        rows = connection.execute(SQL["refused_record"], {"prefix": id_prefix}).fetchall()
    return RefusedRecord.of(rows[0]) if len(rows) == 1 else None


def redrive(settings: Settings) -> tuple[int, int]:
    """Publish all kept records again. Return how many Kafka acknowledged, and how many it refused again.

    Raises PublishError if Kafka does not answer, and psycopg.Error. Records that were acknowledged before are deleted.
    """
    publisher = Publisher(settings, "redrive")
    sent = refused = 0
    with connect(settings.postgres_url, "redrive") as connection:
        (begun,) = connection.execute("SELECT now()").fetchall()
        while True:
            with connection.transaction():
                parameters = {"before": begun[0], "limit": REDRIVE_ROWS}
                rows = connection.execute(SQL["lock_refused"], parameters).fetchall()
                records = [RefusedRecord.of(row) for row in rows]
                delivery = deliver(publisher, [record.publication for record in records])
                again = [(records[index].publication, reason) for index, reason in delivery.refused.items()]
                keep(connection, "redrive", again)
                left = {*delivery.refused, *delivery.unacknowledged}
                done = [record.record_id for index, record in enumerate(records) if index not in left]
                connection.execute(SQL["remove_refused"], {"record_ids": done})
            sent, refused = sent + len(done), refused + len(again)
            if delivery.error:
                raise delivery.error
            if len(records) < REDRIVE_ROWS:
                return sent, refused


class Delivery(Struct, frozen=True):
    """The records that Kafka did not acknowledge, by their index. `error` is set if a retry may help."""

    refused: dict[int, str]
    unacknowledged: frozenset[int]
    error: PublishError | None


def deliver(publisher: Publisher, records: Sequence[Publication]) -> Delivery:
    """Publish the records and return the result. A record for a foreign topic that does not exist is refused.

    Raises PublishError if the state of all records is unknown.
    """
    foreign = {record.topic for record in records} - _OUR_TOPICS
    absent = publisher.absent(foreign) if foreign else set()
    refused = {index: UNKNOWN_TOPIC for index, record in enumerate(records) if record.topic in absent}
    sent = [index for index in range(len(records)) if index not in refused] if refused else range(len(records))
    try:
        publisher.publish([records[index] for index in sent] if refused else records)
    except PublishError as error:
        refused |= {sent[position]: reason for position, reason in error.refused.items()}
        waiting = range(len(sent)) if error.unacknowledged is None else error.unacknowledged
        unacknowledged = frozenset(sent[position] for position in waiting) - refused.keys()
        return Delivery(refused, unacknowledged, error if unacknowledged else None)
    return Delivery(refused, frozenset(), None)


def topic_label(topic: str) -> str:
    """Return the label of a topic for metrics. All foreign topics share one label, since their number is unbounded."""
    return topic if topic in _OUR_TOPICS else "other"


def _record_id(record: Publication) -> str:
    headers = dict(record.headers)
    identity = [_bytes(headers.get(name)) for name in _IDENTITY]
    parts = (record.topic, _bytes(record.key), _bytes(record.value), identity)
    return sha256(msgspec.msgpack.encode(parts)).hexdigest()


def _key_text(key: bytes | None) -> str:
    """Return the first 100 characters of a key."""
    return in_one_line(f"{(key or b'').decode('utf-8', 'replace'):.100}")


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _shown(value: str | bytes | None) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value or "")
