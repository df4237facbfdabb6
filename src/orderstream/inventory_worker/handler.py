"""Reserves all lines of a paid order or none, and gives them back when the order is aborted (P3).

One row in `reservations` is the decision for an order, for as long as the order is kept; whatever comes again is
answered from it (P7). An event is believed only as far as `payments` or `orders` say the same, and the lines are those
of `order_items`: anyone with access to a topic can write an event.
"""

from collections.abc import Container, Sequence
from datetime import datetime
from typing import assert_never

import msgspec
from msgspec import Struct

from orderstream.domain.events import (
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    OrderAborted,
    Payload,
    build,
    stock_lines,
    topic_of,
)
from orderstream.domain.order import AnyReason
from orderstream.domain.stock import Lines, Refused, Reserved, allocate, give_back, net
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import aborts_of
from orderstream.postgres.sql import load
from orderstream.worker.handler import Decision, Outgoing, RepeatBatchError, Timer
from orderstream.worker.unconfirmed_records import reject_unconfirmed

SQL = load("orderstream.inventory_worker")
DECIDED = ("RESERVED", "FAILED")
"""States that an abort turns into RELEASED. A state that a newer version has added is left to that version."""

_encode = msgspec.json.Encoder().encode
_decode_lines = msgspec.json.Decoder(dict[str, int]).decode


class _Row(Struct, frozen=True):
    """A row of `reservations`."""

    state: str
    lines: dict[str, int]
    reason: AnyReason | None
    skus: tuple[str, ...]
    decided_at: datetime


class _Payment(Struct, frozen=True):
    """A row of `payments`, with the lines of its order."""

    state: str
    lines: dict[str, int]


class _New(Struct, frozen=True):
    """A decision about to be recorded."""

    order_id: str
    state: str
    lines: Lines
    reason: AnyReason | None = None
    skus: tuple[str, ...] = ()


class InventoryHandler:
    """Decides stock for batches of payment.authorized and order.aborted."""

    group = "inventory-worker"
    topics: tuple[str, ...] = (topic_of("payment.authorized"), topic_of("order.aborted"))
    emits: tuple[str, ...] = ("inventory.reserved", "inventory.failed", "inventory.released")
    timers: Sequence[Timer] = ()

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Nothing to do outside the transaction."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> Decision:
        """Reserve, refuse or release, each order once, and answer every record from what is then recorded.

        An order whose abort is in the batch is not reserved. Records that the tables refute are rejected.
        Raises RepeatBatchError.
        """
        authorized, aborted = _sort(batch)
        rows = self._recorded(tx, sorted({*authorized, *aborted}))
        aborts = {key: abort.reason for key, abort in aborts_of(tx, aborted).items() if abort.aborted}
        payments = self._payments(tx, [key for key in authorized if key not in rows and key not in aborts])
        wants = {key: payment.lines for key, payment in payments.items() if payment.state == "AUTHORIZED"}
        decided = {key: reason for key, reason in aborts.items() if key in rows and rows[key].state in DECIDED}
        held = [rows[key].lines for key in decided if rows[key].state == "RESERVED"]
        tombstones = [_New(key, "RELEASED", {}, reason) for key, reason in aborts.items() if key not in rows]
        available = self._lock_stock(tx, [*held, *wants.values()])
        for lines in held:
            give_back(available, lines)
        self._release(tx, rows, decided)
        reserved = self._reserve(tx, rows, wants, tombstones, available)
        self._move(tx, net(reserved, held))
        believed, refuted = _part(batch, aborts.keys(), rows.keys() | payments.keys())
        answers = (
            (_event(received.order_id, rows[received.order_id]), received)
            for received in believed
            if received.order_id in rows
        )
        return Decision(
            [Outgoing(event, received) for event, received in answers if event], reject_unconfirmed(tx, refuted)
        )

    @staticmethod
    def _payments(tx: Connection, ids: list[str]) -> dict[str, _Payment]:
        """Return the payments of orders that are paid, or were; in the order of `ids`."""
        found = tx.execute(SQL["payments_with_lines"], {"ids": ids}).fetchall() if ids else []
        payments = {order_id: _Payment(state, _decode_lines(lines)) for order_id, state, lines in found}
        return {order_id: payments[order_id] for order_id in ids if order_id in payments}

    def _recorded(self, tx: Connection, ids: list[str]) -> dict[str, _Row]:
        found = tx.execute(SQL["reservations_of"], {"ids": ids}).fetchall()
        return {
            order_id: _Row(state, lines, reason, tuple(skus or ()), at)
            for order_id, state, lines, reason, skus, at in found
        }

    @staticmethod
    def _lock_stock(tx: Connection, orders: Sequence[Lines]) -> dict[str, int]:
        """Lock the SKUs of these orders, all at once and in order, and return what is available of each."""
        skus = sorted({sku for lines in orders for sku in lines})
        return dict(tx.execute(SQL["stock_of"], {"skus": skus}).fetchall()) if skus else {}

    @staticmethod
    def _release(tx: Connection, rows: dict[str, _Row], reasons: dict[str, AnyReason | None]) -> None:
        """Turn decided rows into released ones, in Postgres and in `rows`."""
        if not reasons:
            return
        parameters = {"ids": list(reasons), "reasons": list(reasons.values())}
        for order_id, decided_at in tx.execute(SQL["release"], parameters).fetchall():
            row = rows[order_id]
            lines = row.lines if row.state == "RESERVED" else {}
            rows[order_id] = _Row("RELEASED", lines, reasons[order_id], (), decided_at)

    def _reserve(
        self,
        tx: Connection,
        rows: dict[str, _Row],
        wants: dict[str, dict[str, int]],
        tombstones: list[_New],
        available: dict[str, int],
    ) -> list[Lines]:
        """Decide new orders in the order of their arrival against one running stock, and add them to `rows`.

        Returns the lines of those that got them.
        """
        if not wants and not tombstones:
            return []
        new = tombstones + [self._allocate(order_id, lines, available) for order_id, lines in wants.items()]
        new.sort(key=lambda row: row.order_id)
        inserted = tx.execute(SQL["insert_reservations"], {"decisions": _encode(new).decode()}).fetchall()
        recorded: dict[str, datetime] = dict(inserted)
        if len(recorded) != len(new):
            raise RepeatBatchError(f"{len(new) - len(recorded)} orders were decided elsewhere meanwhile")
        for row in new:
            rows[row.order_id] = _Row(row.state, dict(row.lines), row.reason, row.skus, recorded[row.order_id])
        return [row.lines for row in new if row.state == "RESERVED"]

    @staticmethod
    def _allocate(order_id: str, lines: dict[str, int], available: dict[str, int]) -> _New:
        match allocate(available, lines):
            case Reserved():
                return _New(order_id, "RESERVED", lines)
            case Refused(reason, skus):
                return _New(order_id, "FAILED", {}, reason, skus)
            case other:
                assert_never(other)

    @staticmethod
    def _move(tx: Connection, quantities: dict[str, int]) -> None:
        if quantities:
            tx.execute(SQL["move_stock"], {"skus": list(quantities), "quantities": list(quantities.values())})


def _sort(batch: Sequence[Received]) -> tuple[list[str], list[str]]:
    """Return the orders that a batch says are authorized, and those that it says are aborted, each once."""
    aborted = {received.order_id: None for received in batch if isinstance(received.event.payload, OrderAborted)}
    authorized = {received.order_id: None for received in batch if not isinstance(received.event.payload, OrderAborted)}
    return list(authorized), list(aborted)


def _part(
    batch: Sequence[Received], aborted: Container[str], paid: Container[str]
) -> tuple[list[Received], list[Received]]:
    """Part a batch into what the tables confirm and what they refute. An order with a reservation counts as paid."""
    believed: list[Received] = []
    refuted: list[Received] = []
    for received in batch:
        confirmed_by = aborted if isinstance(received.event.payload, OrderAborted) else paid
        (believed if received.order_id in confirmed_by else refuted).append(received)
    return believed, refuted


def _event(order_id: str, row: _Row) -> Event[Payload] | None:
    """Return the event of a recorded decision; None for one that only a newer version can tell of."""
    payload: Payload
    match row.state:
        case "RESERVED":
            payload = InventoryReserved(order_id=order_id, items=stock_lines(row.lines))
        case "FAILED":
            payload = InventoryFailed(order_id=order_id, reason=row.reason or "OUT_OF_STOCK", skus=row.skus)
        case "RELEASED":
            payload = InventoryReleased(order_id=order_id, items=stock_lines(row.lines), reason=row.reason)
        case _:
            return None
    return build(payload, row.decided_at)
