"""Reports whether orders make progress: how much work waits, for how long, and which component does not keep up."""

import threading
import time
from collections.abc import Callable

from msgspec import Struct

from orderstream.local.processes.masking import masked
from orderstream.postgres.sql import load
from orderstream.settings import Settings

ANSWER_SECONDS = 5.0
COUNTED_MAX = 1_000
OUTBOX_LATE_SECONDS = 10.0
ORDER_LATE_SECONDS = 60.0
_STATEMENT_SECONDS = 3
SQL = load("orderstream.local")


def report(settings: Settings) -> list[str]:
    """Return lines on the outbox, the orders, the lag and the dead letters.

    Takes ANSWER_SECONDS at most. If PostgreSQL or Kafka hangs or fails, a line says so.
    """
    answers: dict[str, list[str]] = {}

    def ask(store: str, question: Callable[[Settings], list[str]]) -> threading.Thread:
        def run() -> None:
            try:
                answers[store] = question(settings)
            except Exception as error:  # noqa: BLE001 - the operator reads it
                answers[store] = [f"{store} refuses: {masked(' '.join(str(error).split()))}"]

        # A daemon thread does not keep the command from ending while it hangs.
        thread = threading.Thread(target=run, name=store, daemon=True)
        thread.start()
        return thread

    threads = {"PostgreSQL": ask("PostgreSQL", _orders), "Kafka": ask("Kafka", _lag)}
    lines = []
    deadline = time.monotonic() + ANSWER_SECONDS
    for store, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        lines += answers.get(store, [f"{store} has not answered for {ANSWER_SECONDS:.0f} s"])
    return lines


class Waiting(Struct, frozen=True):
    """How many items wait, counted up to COUNTED_MAX, and the age of the oldest. The age is None if none waits."""

    number: int
    oldest_seconds: float | None

    def text(self, what: str) -> str:
        """Return for example `12 events, the oldest for 3 s`."""
        if self.oldest_seconds is None:
            return f"0 {what}"
        return f"{self.count} {what}, the oldest for {_age(self.oldest_seconds)}"

    @property
    def count(self) -> str:
        """The number, or `1000 or more`."""
        return f"{COUNTED_MAX} or more" if self.number >= COUNTED_MAX else str(self.number)

    def late(self, seconds: float) -> str | None:
        """Return the age of the oldest item if it is over `seconds`."""
        return _age(self.oldest_seconds) if self.oldest_seconds is not None and self.oldest_seconds > seconds else None


def _orders(settings: Settings) -> list[str]:
    from orderstream.postgres.connect import connect  # noqa: PLC0415 - slow to load

    with connect(settings.postgres_url, "status") as connection:
        connection.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'".encode())
        row = connection.execute(SQL["progress"]).fetchone()
    assert row is not None
    numbers, ages = row[0::2], row[1::2]
    return in_words(*map(Waiting, numbers, ages))


def in_words(outbox: Waiting, unfinished: Waiting, aborted: Waiting, refused: Waiting) -> list[str]:
    """Return lines on what waits in Postgres, followed by a line for each kind of work that waits too long."""
    lines = [
        f"{'outbox':<20} {outbox.text('events')}",
        f"{'open orders':<20} {unfinished.text('orders')}",
        f"{'uncompensated':<20} {aborted.text('aborted orders')}",
        f"{'refused by Kafka':<20} {refused.text('records')}",
    ]
    if age := outbox.late(OUTBOX_LATE_SECONDS):
        lines.append(f"  outbox-relay is behind: {outbox.count} events wait to be published, the oldest for {age}")
    if age := unfinished.late(ORDER_LATE_SECONDS):
        lines.append(f"  an order has been open for {age}; most settle within a second")
    if age := aborted.late(ORDER_LATE_SECONDS):
        lines.append(f"  an abort has not been compensated for {age}: payment or stock has not answered")
    return lines


def _lag(settings: Settings) -> list[str]:
    from orderstream.inventory_worker.handler import InventoryHandler  # noqa: PLC0415 - slow to load
    from orderstream.kafka.client import consumer  # noqa: PLC0415
    from orderstream.kafka.group_offsets import group_offsets  # noqa: PLC0415
    from orderstream.kafka.topics import dead_letter_topic  # noqa: PLC0415
    from orderstream.order_service.handler import OrderHandler  # noqa: PLC0415
    from orderstream.payment_worker.handler import PaymentHandler  # noqa: PLC0415

    lines, deadline = [], time.monotonic() + ANSWER_SECONDS
    for handler in (PaymentHandler, InventoryHandler, OrderHandler):
        prefix = settings.kafka_topic_prefix
        letters = prefix + dead_letter_topic(handler.group)
        topics = [letters, *(prefix + name for name in handler.topics)]
        found = group_offsets(consumer(settings, handler.group), topics, deadline)
        lag = sum(offsets.end - offsets.next for (topic, _), offsets in found.items() if topic != letters)
        dead = sum(offsets.end - offsets.first for (topic, _), offsets in found.items() if topic == letters)
        lines.append(f"{handler.group:<20} {lag} records behind, {dead} dead letters")
    return lines


def _age(seconds: float) -> str:
    whole = int(max(0.0, seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7_200 else f"{whole // 3_600} h"
