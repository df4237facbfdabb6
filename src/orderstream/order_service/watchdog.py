"""Looks after orders that nothing happens to: nudges them, ends them at their deadline, repeats aborts (P5).

All it does is to emit an order's own events again, through the outbox: every worker answers a repetition with what it
had decided, so whatever was lost on the way is healed by that, and nothing happens twice.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from orderstream.domain.events import OrderCreated, build, order_aborted, order_updated
from orderstream.domain.order import settled, time_out
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import SQL as ORDERS
from orderstream.postgres.orders import changes, items_of, locked
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics
from orderstream.worker.handler import Timer

SQL = load("orderstream.order_service")
EVERY_SECONDS = 1.0
ROWS_PER_RUN = 200
"""Rate cap: so many nudges, and as many repeated aborts, a second, however many orders are stalled."""

log = logs.get()


class Patience(Struct, frozen=True):
    """How long the watchdog waits, in seconds: for a nudge, doubling; and until an order nudged in vain is ended."""

    first_seconds: float = 30
    longest_seconds: float = 300
    deadline_seconds: float = 900
    deadline_nudges: int = 3


class Watchdog:
    """The timers of the order service."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.timers: Sequence[Timer] = (
            Timer("nudge", EVERY_SECONDS, self.nudge),
            Timer("end_overdue", EVERY_SECONDS, self.end_overdue),
            Timer("repeat_aborts", EVERY_SECONDS, self.repeat_aborts),
        )

    def nudge(self, connection: Connection) -> bool:
        """Emit order.created again for orders that are stalled."""
        patience = self._patience
        parameters = {
            "limit": ROWS_PER_RUN,
            "first_seconds": patience.first_seconds,
            "longest_seconds": patience.longest_seconds,
        }
        with connection.transaction():
            rows = connection.execute(SQL["claim_stalled"], parameters).fetchall()
            items = items_of(connection, [order_id for order_id, *_ in rows])
            append(
                connection,
                [
                    OutboxRow(
                        build(
                            OrderCreated(
                                order_id=order_id,
                                user_id=user_id,
                                items=items.get(order_id, ()),
                                amount=amount,
                                currency=currency,
                            ),
                            created_at,
                        ),
                        *carrier,
                    )
                    for order_id, user_id, amount, currency, created_at, *carrier in rows
                ],
            )
        if rows:
            log.warning("stalled_orders_nudged", orders=len(rows), order_id=rows[0][0])
        return False

    def end_overdue(self, connection: Connection) -> bool:
        """Fail open orders whose deadline has passed although they were nudged, and have them undone."""
        patience = self._patience
        parameters = {
            "limit": ROWS_PER_RUN,
            "deadline_seconds": patience.deadline_seconds,
            "nudges": patience.deadline_nudges,
        }
        with connection.transaction():
            carriers = carriers_of(connection.execute(SQL["claim_overdue"], parameters))
            if not carriers:
                return False
            orders, now = locked(connection.execute(ORDERS["lock_orders"], {"ids": list(carriers)}))
            ended = [
                order.moved(time_out(order.state), now, abort=True)
                for order in orders.values()
                if now is not None and not settled(order.state.status)
            ]
            connection.execute(ORDERS["update_orders"], changes(ended))
            append(
                connection,
                [
                    OutboxRow(event(order), *carriers[order.order_id])
                    for order in ended
                    for event in (order_updated, order_aborted)
                ],
            )
        log.warning("overdue_orders_failed", orders=len(ended), order_id=next(iter(carriers)))
        return len(carriers) == ROWS_PER_RUN

    def repeat_aborts(self, connection: Connection) -> bool:
        """Emit order.aborted again for orders that are not compensated, without end; and measure the oldest."""
        with connection.transaction():
            carriers = carriers_of(connection.execute(SQL["claim_uncompensated"], {"limit": ROWS_PER_RUN}))
            if carriers:
                orders, _ = locked(connection.execute(ORDERS["lock_orders"], {"ids": list(carriers)}))
                append(connection, [OutboxRow(order_aborted(one), *carriers[key]) for key, one in orders.items()])
        if carriers:
            log.warning("aborts_repeated", orders=len(carriers), order_id=next(iter(carriers)))
        oldest = connection.execute(SQL["oldest_uncompensated"]).fetchone()
        metrics.UNCOMPENSATED_OLDEST_SECONDS.set(oldest[0] if oldest else 0)
        return False


def carriers_of(rows: Iterable[Sequence[Any]]) -> dict[str, tuple[str | None, str | None]]:
    """Turn rows of order id, traceparent and tracestate into the trace contexts by order id."""
    return {order_id: (traceparent, tracestate) for order_id, traceparent, tracestate in rows}
