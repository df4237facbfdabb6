"""Whether a soak left anything wrong: each check holds ledger, Postgres and Kafka against a promise."""

import time
from collections.abc import Iterator, Mapping

import psycopg
from confluent_kafka import Message, TopicPartition

from orderstream.audit.check import audit
from orderstream.audit.under_way import under_way
from orderstream.dead_letters.reader import newest
from orderstream.domain.events import OrderUpdated, topic_of
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Record, Undecodable, decode
from orderstream.settings import Settings
from tests.load.soak.faults import Target
from tests.load.soak.ledger import SETTLED, Ledger
from tests.load.soak.load import STOCKED
from tests.load.soak.poison import CONSUMERS, HEADER, Poison

SHOWN = 5
LETTERS_MAX = 1_000_000
READ_SECONDS = 60.0
UNSURE_SECONDS = 30.0
"""A record put in so soon after its topic was lost may be passed over: nobody can tell the new topic from the old."""

Checks = Mapping[str, list[str]]
"""What was checked, and a line for everything that breaks it."""


def await_quiet(connection: psycopg.Connection, limit_seconds: float) -> tuple[float, str]:
    """Wait until all is settled, compensated and published; returns how long it took, and what is left if anything."""
    began = time.monotonic()
    while True:
        left = under_way(connection)
        if left.is_quiet:
            return time.monotonic() - began, ""
        if time.monotonic() - began > limit_seconds:
            return limit_seconds, (
                f"{left.open.number} open, {left.uncompensated.number} not compensated,"
                f" {left.outbox.number} not published"
            )
        time.sleep(0.2)


def check(connection: psycopg.Connection, target: Target, ledger: Ledger, poison: list[Poison]) -> Checks:
    """Run every check; an empty list means that it holds."""
    found: dict[str, list[str]] = {"what clients were told": ledger.problems}
    for promise, violations in audit(target.postgres_url, grace_seconds=0).items():
        found[f"audit {promise}"] = [f"{one.subject}: {one.detail}" for one in violations]
    rows = {row[0]: row[1:] for row in connection.execute("SELECT id, status, version, idempotency_key FROM orders")}
    found["every 201 is an order, and settled"] = [
        f"{one}: {rows[one][0] if one in rows else 'is not there'}"
        for one in ledger.orders
        if one not in rows or rows[one][0] not in SETTLED
    ]
    unknown = [one for one, (_, _, key) in rows.items() if one not in ledger.orders and key is None]
    found["no order that nobody asked for"] = (
        [f"{len(unknown)} orders, but {ledger.unanswered_posts} POSTs without an answer"]
        if len(unknown) > ledger.unanswered_posts
        else []
    )
    found["one order for one key"] = [f"{key}: {sorted(ids)}" for key, ids in ledger.keys.items() if len(ids) > 1]
    for order_id, event in _updates(target.settings):
        if order_id in ledger.orders:
            ledger.tell(ledger.orders[order_id], event.version, event.status)
    for order_id, seen in ledger.orders.items():
        if order_id in rows:
            ledger.tell(seen, rows[order_id][1], rows[order_id][0])
    found["settled stays, but for a cancel"] = ledger.changed_after_settling()
    found["no read older than one before it"] = [
        one.what
        for one in ledger.older
        if not any(one.began < end and one.ended > begin for begin, end in target.redis_away)
    ]
    found["stocked = available + reserved"] = _stock(connection)
    found |= _dead_letters(target, poison)
    return found


def _stock(connection: psycopg.Connection) -> list[str]:
    found = []
    for sku, stocked in STOCKED.items():
        row = connection.execute("SELECT available, reserved FROM inventory WHERE sku = %s", (sku,)).fetchone()
        if row is None or sum(row) != stocked:
            found.append(f"{sku}: {stocked} units were stocked, {row} are there")
    return found


def _dead_letters(target: Target, poison: list[Poison]) -> dict[str, list[str]]:
    """Hold the dead letters against the poison: nothing else may be there, and none of it may be missing."""
    unexplained, arrived = [], set()
    for group in CONSUMERS:
        for letter in newest(target.settings, group, LETTERS_MAX):
            name = letter.headers.get(HEADER)
            if name is None:
                unexplained.append(letter.line)
            arrived.add((group, name))
    sure = target.topics_lost + UNSURE_SECONDS if target.topics_lost else 0.0
    missing = [
        f"{one.name} in {one.topic} is not in the dead letters of {group}"
        for one in poison
        for group, topics in CONSUMERS.items()
        if one.acknowledged > sure and one.topic in topics and (group, one.name) not in arrived
    ]
    return {"no dead letter but poison": unexplained, "all poison in the dead letters": missing}


def _updates(settings: Settings) -> Iterator[tuple[str, OrderUpdated]]:
    """Yield every order.updated that Kafka still has."""
    for message in _records(settings, topic_of("order.updated")):
        record = Record.of(message)
        try:
            event = decode(record.topic, record.key, record.value)
        except Undecodable:
            continue
        if isinstance(event.payload, OrderUpdated):
            yield event.correlation_id, event.payload


def _records(settings: Settings, name: str) -> Iterator[Message]:
    reader = consumer(settings, "soak-books")
    try:
        ends = {}
        for number in reader.list_topics(name, timeout=10).topics[name].partitions:
            low, high = reader.get_watermark_offsets(TopicPartition(name, number), timeout=10)
            if low < high:
                ends[number] = high - 1
        reader.assign([TopicPartition(name, number, 0) for number in ends])
        deadline = time.monotonic() + READ_SECONDS
        while ends and time.monotonic() < deadline:
            for message in reader.consume(1_000, 0.5):
                if message.error() is None:
                    yield message
                    if (message.offset() or 0) >= ends.get(message.partition() or 0, 1 << 62):
                        del ends[message.partition() or 0]
        if ends:
            raise TimeoutError(f"{name} could not be read to its end in {READ_SECONDS:.0f} s")
    finally:
        reader.close()


def table(figures: Mapping[str, str], checks: Checks) -> str:
    """Return figures and checks for a person to read, with the first few lines of what is wrong."""
    lines = ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())]
    lines += ["", "| check | result |", "|---|---|"]
    lines += [f"| {name} | {f'{len(wrong)} WRONG' if wrong else 'holds'} |" for name, wrong in checks.items()]
    for name, wrong in checks.items():
        if wrong:
            lines += ["", f"{name}:", *(f"  {one}" for one in wrong[:SHOWN])]
            if len(wrong) > SHOWN:
                lines.append(f"  and {len(wrong) - SHOWN} more")
    return "\n".join(lines)
