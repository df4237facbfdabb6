"""The checks after a soak: each compares the answers to the clients, Postgres and Kafka with a promise."""

import time
from collections.abc import Iterator, Mapping

import psycopg
from confluent_kafka import Message, TopicPartition

from orderstream.audit.charges import audit_charges
from orderstream.audit.check import audit
from orderstream.audit.provider_ledger import Ledger as ProviderLedger
from orderstream.audit.under_way import under_way
from orderstream.dead_letters.reader import as_text, newest
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
"""A consumer may skip a record that was written so soon after its topic was lost: the new topic looks the same."""

Checks = Mapping[str, list[str]]
"""The name of each check, and a line for each violation."""


def await_quiet(connection: psycopg.Connection, limit_seconds: float) -> tuple[float, str]:
    """Wait until every order is settled and compensated and every event published.

    Return the seconds that this took, and a text that describes the remaining work, or an empty text.
    """
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
    """Run every check. A check with an empty list has passed."""
    found: dict[str, list[str]] = {"the answers to the clients": ledger.problems}
    with ProviderLedger(target.ledger_url) as provider_ledger:
        of_ledger = audit_charges(target.postgres_url, provider_ledger, grace_seconds=0)
    for promise, violations in (audit(target.postgres_url, grace_seconds=0) | of_ledger).items():
        found[f"audit {promise}"] = [f"{violation.subject}: {violation.detail}" for violation in violations]
    rows = {row[0]: row[1:] for row in connection.execute("SELECT id, status, version, idempotency_key FROM orders")}
    found["every 201 is a settled order"] = [
        f"{order_id}: {rows[order_id][0] if order_id in rows else 'does not exist'}"
        for order_id in ledger.orders
        if order_id not in rows or rows[order_id][0] not in SETTLED
    ]
    unknown = [order_id for order_id, (_, _, key) in rows.items() if order_id not in ledger.orders and key is None]
    found["no order without a request"] = (
        [f"{len(unknown)} orders, but {ledger.unanswered_posts} POSTs without an answer"]
        if len(unknown) > ledger.unanswered_posts
        else []
    )
    found["one order for one key"] = [f"{key}: {sorted(ids)}" for key, ids in ledger.keys.items() if len(ids) > 1]
    for order_id, event in _updates(target.settings):
        if order_id in ledger.orders:
            ledger.record_status(ledger.orders[order_id], event.version, event.status)
    for order_id, seen in ledger.orders.items():
        if order_id in rows:
            ledger.record_status(seen, rows[order_id][1], rows[order_id][0])
    found["a settled order changes only by a cancel"] = ledger.changed_after_settling()
    found["no read is older than an earlier read"] = [
        older.what
        for older in ledger.older
        if not any(older.began < end and older.ended > begin for begin, end in target.redis_away)
    ]
    found["stocked = available + reserved"] = _stock(connection)
    found |= _dead_letters(target, poison)
    return found


def _stock(connection: psycopg.Connection) -> list[str]:
    found = []
    for sku, stocked in STOCKED.items():
        row = connection.execute("SELECT available, reserved FROM inventory WHERE sku = %s", (sku,)).fetchone()
        if row is None or sum(row) != stocked:
            found.append(f"{sku}: {stocked} units were stocked, {row} exist")
    return found


def _dead_letters(target: Target, poison: list[Poison]) -> dict[str, list[str]]:
    """Compare the dead letters with the poison: all poison must be there, and nothing else."""
    unexplained, arrived = [], set()
    for group in CONSUMERS:
        for letter in newest(target.settings, group, LETTERS_MAX):
            value = dict(letter.headers).get(HEADER)
            name = None if value is None else as_text(value)
            if name is None:
                unexplained.append(letter.line)
            arrived.add((group, name))
    sure = target.topics_lost + UNSURE_SECONDS if target.topics_lost else 0.0
    missing = [
        f"{record.name} in {record.topic} is not in the dead letters of {group}"
        for record in poison
        for group, topics in CONSUMERS.items()
        if record.acknowledged > sure and record.topic in topics and (group, record.name) not in arrived
    ]
    return {"every dead letter is poison": unexplained, "all poison is in the dead letters": missing}


def _updates(settings: Settings) -> Iterator[tuple[str, OrderUpdated]]:
    """Yield every order.updated event that Kafka still has, with its order id."""
    for message in _records(settings, topic_of("order.updated")):
        record = Record.of(message)
        try:
            event = decode(record.topic, record.key, record.value)
        except Undecodable:
            continue
        if isinstance(event.payload, OrderUpdated):
            yield event.correlation_id, event.payload


def _records(settings: Settings, name: str) -> Iterator[Message]:
    reader = consumer(settings, "soak-checks")
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
            raise TimeoutError(f"{name} could not be read to its end within {READ_SECONDS:.0f} s")
    finally:
        reader.close()


def table(figures: Mapping[str, str], checks: Checks) -> str:
    """Return a table of the figures and the checks, with the first violations of each check."""
    lines = ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())]
    lines += ["", "| check | result |", "|---|---|"]
    lines += [f"| {name} | {f'{len(wrong)} WRONG' if wrong else 'passed'} |" for name, wrong in checks.items()]
    for name, wrong in checks.items():
        if wrong:
            lines += ["", f"{name}:", *(f"  {line}" for line in wrong[:SHOWN])]
            if len(wrong) > SHOWN:
                lines.append(f"  and {len(wrong) - SHOWN} more")
    return "\n".join(lines)
