"""The processes of the limit: one writes the rows, one produces the messages, one reads them.

They work on the same number of orders: each waits when it is more than LEAD_MAX batches ahead of the slowest.
"""

import time
from collections.abc import Sequence
from multiprocessing.context import SpawnContext

import psycopg
from confluent_kafka import Consumer, Producer

from tests.load.bench.peers.limit import sample

BATCH = 500
"""Orders that are written in one transaction, and whose messages are produced together."""
LEAD_MAX = 4
_PAUSE_SECONDS = 0.001
_FLUSH_SECONDS = 30.0
_READ_SECONDS = 0.1

_RESERVE = "UPDATE inventory SET available = available - %(units)s, reserved = reserved + %(units)s WHERE sku = %(sku)s"


class Progress:
    """How many orders each process has done. Each process adds only to its own count."""

    def __init__(self, context: SpawnContext) -> None:
        self.written = context.Value("q", 0)
        self.produced = context.Value("q", 0)
        self.read = context.Value("q", 0)
        self.stop = context.Event()

    def done(self) -> int:
        """Return the number of orders that all processes have done."""
        return min(int(count.value) for count in (self.written, self.produced, self.read))

    def may_go_on(self, count: int) -> bool:
        """Wait until a process that has done `count` orders is not too far ahead. Return False when all shall stop."""
        while not self.stop.is_set():
            if count - self.done() <= LEAD_MAX * BATCH:
                return True
            time.sleep(_PAUSE_SECONDS)
        return False


def write_rows(progress: Progress, postgres_url: str) -> None:
    """Write the rows of one batch after the other."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        while progress.may_go_on(progress.written.value):
            write_batch(connection, sample.ids(BATCH))
            progress.written.value += BATCH


def write_batch(connection: psycopg.Connection, order_ids: Sequence[str]) -> None:
    """Write the rows of these orders in one transaction."""
    rows = sample.rows(order_ids)
    with connection.transaction(), connection.cursor() as cursor:
        for table, columns in sample.COLUMNS.items():
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                copy.write(rows[table])
        cursor.execute(_RESERVE, {"units": len(order_ids) * sample.QTY, "sku": sample.SKU})


def produce(progress: Progress, brokers: str) -> None:
    """Send the messages of one batch after the other, and wait for the acknowledgements of each batch."""
    producer = Producer({"bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True, "linger.ms": 5})
    messages = sample.messages()
    while progress.may_go_on(progress.produced.value):
        for order_id in (text.encode() for text in sample.ids(BATCH)):
            for message in messages:
                producer.produce(message.topic, message.value(order_id), order_id, headers=message.headers)
        if producer.flush(_FLUSH_SECONDS):
            raise RuntimeError(f"Kafka did not acknowledge a batch within {_FLUSH_SECONDS:.0f} s")
        progress.produced.value += BATCH


def read(progress: Progress, brokers: str) -> None:
    """Read all messages."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "limit",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": True,
        }
    )
    messages = sample.messages()
    consumer.subscribe([message.topic for message in messages])
    count = 0
    while not progress.stop.is_set():
        for message in consumer.consume(BATCH * len(messages), _READ_SECONDS):
            if (error := message.error()) is not None:
                raise RuntimeError(str(error))
            count += 1
        progress.read.value = count // len(messages)
    consumer.close()
