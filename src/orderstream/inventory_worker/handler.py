"""Reserves all lines of a paid order or none, and gives them back when the order is aborted (P3).

One row in `reservations` is the decision for an order, for as long as the order is kept; whatever comes again is
answered from it (P7).
"""

from collections.abc import Sequence
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
    PaymentAuthorized,
    build,
    stock_lines,
    topic,
    wanted,
)
from orderstream.domain.order import FailureReason
from orderstream.domain.stock import Lines, Refused, Reserved, allocate, give_back, net
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.worker.handler import Decision, Outgoing, RepeatBatchError, Timer

SQL = load("orderstream.inventory_worker")
_encode = msgspec.json.Encoder().encode


class _Row(Struct, frozen=True):
    """A row of `reservations`."""

    state: str
    lines: dict[str, int]
    reason: FailureReason | None
    skus: tuple[str, ...]
    decided_at: datetime


class _New(Struct, frozen=True):
    """A decision about to be recorded."""

    order_id: str
    state: str
    lines: Lines
    reason: FailureReason | None = None
    skus: tuple[str, ...] = ()


class InventoryHandler:
    """Decides stock for batches of payment.authorized and order.aborted."""

    group = "inventory-worker"
    topics: tuple[str, ...] = (topic("payment.authorized"), topic("order.aborted"))
    emits: tuple[str, ...] = ("inventory.reserved", "inventory.failed", "inventory.released")
    timers: Sequence[Timer] = ()

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Nothing to do outside the transaction."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> Decision:
        """Reserve, refuse or release, each order once, and answer every record from what is then recorded.

        An order whose abort is in the batch is not reserved. Raises RepeatBatchError.
        """
        aborts: dict[str, OrderAborted] = {}
        authorized: dict[str, PaymentAuthorized] = {}
        for received in batch:
            payload = received.event.payload
            if isinstance(payload, OrderAborted):
                aborts[received.order_id] = payload
            elif isinstance(payload, PaymentAuthorized):
                authorized[received.order_id] = payload
        rows = self._recorded(tx, sorted(aborts.keys() | authorized.keys()))
        decided = {key: one.reason for key, one in aborts.items() if key in rows and rows[key].state != "RELEASED"}
        held = [rows[key].lines for key in decided if rows[key].state == "RESERVED"]
        wants = {key: wanted(one.items) for key, one in authorized.items() if key not in rows and key not in aborts}
        tombstones = [_New(key, "RELEASED", {}, one.reason) for key, one in aborts.items() if key not in rows]
        available = self._lock_stock(tx, [*held, *wants.values()])
        for lines in held:
            give_back(available, lines)
        self._release(tx, rows, decided)
        reserved = self._reserve(tx, rows, wants, tombstones, available)
        self._move(tx, net(reserved, held))
        return Decision([Outgoing(self._event(one.order_id, rows[one.order_id]), one) for one in batch])

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
    def _release(tx: Connection, rows: dict[str, _Row], reasons: dict[str, FailureReason | None]) -> None:
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
        new.sort(key=lambda one: one.order_id)
        inserted = tx.execute(SQL["insert_reservations"], {"decisions": _encode(new).decode()}).fetchall()
        recorded: dict[str, datetime] = dict(inserted)
        if len(recorded) != len(new):
            raise RepeatBatchError(f"{len(new) - len(recorded)} orders were decided elsewhere meanwhile")
        for one in new:
            rows[one.order_id] = _Row(one.state, dict(one.lines), one.reason, one.skus, recorded[one.order_id])
        return [one.lines for one in new if one.state == "RESERVED"]

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

    @staticmethod
    def _event(order_id: str, row: _Row) -> Event[Payload]:
        payload: Payload
        match row.state:
            case "RESERVED":
                payload = InventoryReserved(order_id=order_id, items=stock_lines(row.lines))
            case "FAILED":
                assert row.reason is not None
                payload = InventoryFailed(order_id=order_id, reason=row.reason, skus=row.skus)
            case _:
                payload = InventoryReleased(order_id=order_id, items=stock_lines(row.lines), reason=row.reason)
        return build(payload, row.decided_at)
