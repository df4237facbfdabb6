"""The story of one order as lines of text. Text that others wrote is safe for a terminal."""

from collections.abc import Iterator
from datetime import datetime

from orderstream.console.orders.story import OrderStory
from orderstream.dead_letters.printable import in_one_line

SHOWN_MAX = 200
"""Lines, events, log lines and actions that are printed, of each kind. `--json` has all that were found."""


def in_lines(story: OrderStory) -> Iterator[str]:
    """Yield the lines."""
    for line in _lines(story):
        yield in_one_line(line)


def _lines(story: OrderStory) -> Iterator[str]:
    order, payment, reservation = story.order, story.payment, story.reservation
    reason = f" {order.failure_reason}" if order.failure_reason else ""
    yield f"order        {order.order_id}"
    yield f"status       {order.status}{reason}, payment {order.payment}, stock {order.stock}, version {order.version}"
    yield f"user         {order.user_id}"
    yield f"amount       {order.amount:f} {order.currency}"
    for line in order.lines[:SHOWN_MAX]:
        yield f"line         {line.qty} x {line.sku} at {line.price:f}"
    yield f"accepted     {_time(order.created_at)}"
    yield f"changed      {_time(order.updated_at)}"
    if order.idempotency_key:
        yield f"key          {order.idempotency_key}"
    if payment is not None:
        why = f" {payment.reason}" if payment.reason else ""
        yield f"payment      {payment.state}{why}, {payment.attempts} attempts, decided {_time(payment.decided_at)}"
    if reservation is not None:
        why = f" {reservation.reason}" if reservation.reason else ""
        yield f"reservation  {reservation.state}{why}, decided {_time(reservation.decided_at)}"
    if story.waiting_for is not None:
        yield f"waits for    {story.waiting_for.kind}: {story.waiting_for.sentence}"
    yield from _happened(story)
    for sentence in story.limits.sentences:
        yield f"note         {sentence}"


def _happened(story: OrderStory) -> Iterator[str]:
    """Yield events, log lines and actions."""
    for event in story.events[:SHOWN_MAX]:
        place = "in the outbox" if event.offset is None else f"{event.topic} {event.partition} {event.offset}"
        yield f"event        {_time(event.occurred_at)}  {event.type}  {place}"
    for line in story.logs[:SHOWN_MAX]:
        yield f"log          {_time(line.at)}  {line.service}  {line.level}  {line.event}"
    for action in story.actions[:SHOWN_MAX]:
        yield f"action       {_time(action.at)}  {action.actor}  {action.kind}  {action.state}  {action.reason}"


def _time(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3]
