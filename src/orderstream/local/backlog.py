"""Reports whether orders make progress: how much work waits, for how long, and which component does not keep up."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from orderstream.local.processes.masking import masked
from orderstream.settings import Settings

if TYPE_CHECKING:
    from orderstream.audit.under_way import Backlog, PaymentsUnderWay, UnderWay

ANSWER_SECONDS = 5.0
COUNTED_MAX = 1_000
OUTBOX_LATE_SECONDS = 10.0
ORDER_LATE_SECONDS = 60.0
_STATEMENT_SECONDS = 3


def report(settings: Settings) -> list[str]:
    """Return lines on the outbox, the orders, the lag and the dead letters.

    Takes ANSWER_SECONDS at most. If PostgreSQL or Kafka hangs or fails, a line says so.
    """
    answers: dict[str, list[str]] = {}

    def ask(server: str, question: Callable[[Settings], list[str]]) -> threading.Thread:
        def run() -> None:
            try:
                answers[server] = question(settings)
            except Exception as error:  # noqa: BLE001 - the operator reads it
                answers[server] = [f"{server} refuses: {masked(' '.join(str(error).split()))}"]

        # A daemon thread does not keep the command from ending while it hangs.
        thread = threading.Thread(target=run, name=server, daemon=True)
        thread.start()
        return thread

    threads = {"PostgreSQL": ask("PostgreSQL", _orders), "Kafka": ask("Kafka", _lag)}
    lines = []
    deadline = time.monotonic() + ANSWER_SECONDS
    for server, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        lines += answers.get(server, [f"{server} has not answered for {ANSWER_SECONDS:.0f} s"])
    return lines


def _orders(settings: Settings) -> list[str]:
    from orderstream.audit.under_way import payments_under_way, under_way  # noqa: PLC0415 - slow to load
    from orderstream.postgres.connect import connect  # noqa: PLC0415

    with connect(settings.postgres_url, "status") as connection:
        connection.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'".encode())
        payments = payments_under_way(connection, COUNTED_MAX)
        return [*in_words(under_way(connection, COUNTED_MAX)), payments_in_words(payments)]


def in_words(waiting: "UnderWay") -> list[str]:
    """Return lines on the work that waits in Postgres, followed by a line for each kind that waits too long."""
    lines = [
        f"{'outbox':<20} {_text(waiting.outbox, 'events')}",
        f"{'open orders':<20} {_text(waiting.open, 'orders')}",
        f"{'uncompensated':<20} {_text(waiting.uncompensated, 'aborted orders')}",
        f"{'refused by Kafka':<20} {_text(waiting.refused, 'records')}",
    ]
    if age := _late(waiting.outbox, OUTBOX_LATE_SECONDS):
        count = _count(waiting.outbox)
        lines.append(f"  outbox-relay is behind: {count} events wait to be published, the oldest for {age}")
    if age := _late(waiting.open, ORDER_LATE_SECONDS):
        lines.append(f"  an order has been open for {age}; most settle within a second")
    if age := _late(waiting.uncompensated, ORDER_LATE_SECONDS):
        lines.append(f"  an abort has not been compensated for {age}: payment or stock has not answered")
    return lines


def payments_in_words(payments: "PaymentsUnderWay") -> str:
    """Return a line on the payments that are not finished."""
    without_answer, pending, voiding = map(_number, (payments.without_answer, payments.pending, payments.voiding))
    return f"{'payments':<20} {without_answer} without an answer, {pending} pending at the provider, {voiding} to void"


def _text(backlog: "Backlog", what: str) -> str:
    """Return for example `12 events, the oldest for 3 s`."""
    if backlog.oldest_seconds is None:
        return f"0 {what}"
    return f"{_count(backlog)} {what}, the oldest for {_age(backlog.oldest_seconds)}"


def _count(backlog: "Backlog") -> str:
    return _number(backlog.number)


def _number(number: int) -> str:
    return f"{COUNTED_MAX} or more" if number >= COUNTED_MAX else str(number)


def _late(backlog: "Backlog", seconds: float) -> str | None:
    """Return the age of the oldest row if it is over `seconds`."""
    oldest = backlog.oldest_seconds
    return _age(oldest) if oldest is not None and oldest > seconds else None


def _lag(settings: Settings) -> list[str]:
    from orderstream.domain import saga  # noqa: PLC0415 - slow to load
    from orderstream.kafka.client import consumer  # noqa: PLC0415
    from orderstream.kafka.group_offsets import group_offsets  # noqa: PLC0415
    from orderstream.kafka.topics import dead_letter_topic  # noqa: PLC0415

    lines, deadline = [], time.monotonic() + ANSWER_SECONDS
    for group in saga.CONSUMER_GROUPS:
        prefix = settings.kafka_topic_prefix
        letters = prefix + dead_letter_topic(group)
        topics = [letters, *(prefix + topic for topic in saga.topics_of(group))]
        found = group_offsets(consumer(settings, group), topics, deadline)
        lag = Counter[str]()
        for (topic, _), offsets in found.items():
            lag[topic] += 0 if topic == letters else offsets.end - offsets.next
        dead = sum(offsets.end - offsets.first for (topic, _), offsets in found.items() if topic == letters)
        lines.append(f"{group:<20} {lag.total()} records behind{_topics(lag)}, {dead} dead letters")
    return lines


def _topics(lag: Counter[str]) -> str:
    """Return for example ` (300 of order.created.v1, 2 of order.aborted.v1)`, or nothing without lag."""
    parts = [f"{records} of {topic}" for topic, records in lag.most_common() if records > 0]
    return f" ({', '.join(parts)})" if parts else ""


def _age(seconds: float) -> str:
    whole = int(max(0.0, seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7_200 else f"{whole // 3_600} h"
