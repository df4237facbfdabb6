"""Whether orders move: what waits, for how long, and in words what stands still."""

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
    """Lines on the outbox, the orders, the lag and the dead letters. A line says so if a store does not answer.

    Returns within ANSWER_SECONDS, even while a store hangs.
    """
    answers: dict[str, list[str]] = {}

    def ask(store: str, question: Callable[[Settings], list[str]]) -> threading.Thread:
        def run() -> None:
            try:
                answers[store] = question(settings)
            except Exception as error:  # noqa: BLE001 - the operator reads it
                answers[store] = [f"{store} refuses: {masked(' '.join(str(error).split()))}"]

        # A daemon: one that hangs does not keep the command from ending.
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


def _orders(settings: Settings) -> list[str]:
    from orderstream.postgres.connect import connect  # noqa: PLC0415 - slow to load

    with connect(settings.postgres_url, "status") as connection:
        connection.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'".encode())
        row = connection.execute(SQL["progress"]).fetchone()
    assert row is not None
    return in_words(*(Waiting(*row[place : place + 2]) for place in range(0, len(row), 2)))


class Waiting(Struct, frozen=True):
    """How many wait, counted up to COUNTED_MAX, and for how long the oldest of them has; None where none does."""

    number: int
    oldest_seconds: float | None

    def text(self, what: str) -> str:
        """Say it, for instance as `12 events, the oldest for 3 s`."""
        if self.oldest_seconds is None:
            return f"0 {what}"
        return f"{self.count} {what}, the oldest for {_age(self.oldest_seconds)}"

    @property
    def count(self) -> str:
        """The number, or that there are more."""
        return f"{COUNTED_MAX} or more" if self.number >= COUNTED_MAX else str(self.number)

    def late(self, seconds: float) -> str | None:
        """Return the age of the oldest if it is over `seconds`."""
        return _age(self.oldest_seconds) if self.oldest_seconds is not None and self.oldest_seconds > seconds else None


def in_words(outbox: Waiting, unfinished: Waiting, aborted: Waiting, refused: Waiting) -> list[str]:
    """Say what waits in Postgres, and after it what waits too long."""
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
