"""Reserves all lines of a paid order or none, and gives them back when the order is aborted (P3).

Each order has at most one row in `reservations`, for as long as the order is kept. A repeated record is answered from
that row (P7). The handler acts on an event only if `payments` or `orders` confirm it, and reads the lines from
`order_items`, because anyone with access to a topic can write an event.
"""

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from threading import Event as Signal
from typing import assert_never

import msgspec
from msgspec import Struct
from psycopg.errors import UniqueViolation

from orderstream.domain import saga
from orderstream.domain.events import (
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    OrderAborted,
    Payload,
    build,
    stock_lines,
)
from orderstream.domain.order import AnyReason
from orderstream.domain.stock import Lines, Reservation, give_back, is_known, net, on_aborted, on_authorized
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import aborts_of
from orderstream.postgres.sql import load
from orderstream.process.gathering import OF_RECORDS
from orderstream.telemetry import databases
from orderstream.worker.handler import BatchResult, Outgoing, RepeatBatchError, Timer
from orderstream.worker.unconfirmed_records import reject_unconfirmed

SQL = load("orderstream.inventory_worker")
_encode = msgspec.json.Encoder().encode
_decode_lines = msgspec.json.Decoder(dict[str, int]).decode


class _Row(Struct, frozen=True):
    """A recorded reservation."""

    order_id: str
    state: str
    lines: Lines
    reason: AnyReason | None
    skus: Sequence[str] | None
    decided_at: datetime


class _Payment(Struct, frozen=True):
    """The state of a payment, and the lines of its order."""

    state: str
    lines: Lines


class _NewReservation(Struct, frozen=True, omit_defaults=True):
    """A row for `record_reservations`. A member that is left out is NULL."""

    order_id: str
    state: str
    lines: Lines
    reason: AnyReason | None = None
    skus: tuple[str, ...] = ()


class InventoryHandler:
    """Decides stock for batches of payment.authorized and order.aborted."""

    group = "inventory-worker"
    topics = saga.topics_of(group)
    emits = saga.answers_of(group)
    gathering = OF_RECORDS
    timers: Sequence[Timer] = ()
    wake = Signal()

    def room(self) -> Mapping[str, int]:
        """Take every record: this service calls no other system."""
        return {}

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Do nothing: this service calls no other system."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> BatchResult:
        """Reserve, refuse or release, each order once, and answer every record from the recorded reservation.

        An order whose abort is in the batch is not reserved. Records that the tables do not confirm are rejected.
        Raises RepeatBatchError.
        """
        authorized, aborted = _sort(batch)
        rows, paid = self._recorded(tx, sorted({*authorized, *aborted}))
        aborts = {key: abort.reason for key, abort in aborts_of(tx, aborted).items() if abort.aborted}
        payments = {key: paid[key] for key in authorized if key in paid and key not in rows and key not in aborts}
        wants = {key: payment.lines for key, payment in payments.items() if payment.state == "AUTHORIZED"}
        releases, tombstones = _released(rows, aborts)
        held = [release.lines for release in releases.values()]
        available = self._lock_stock(tx, [*held, *wants.values()])
        for lines in held:
            give_back(available, lines)
        self._release(tx, rows, releases)
        # Orders get stock in the order of their arrival. Each order takes its lines from `available`.
        reservations = {order_id: on_authorized(available, lines) for order_id, lines in wants.items()}
        reserved = [reservation.lines for reservation in reservations.values() if reservation.state == "RESERVED"]
        self._record(tx, rows, tombstones | reservations, net(reserved, held))
        summary = databases.summary(("UPDATE" if aborts else "INSERT", "reservations"), ("UPDATE", "inventory"))
        return _answered(tx, batch, rows, aborts.keys(), rows.keys() | payments.keys(), summary)

    @staticmethod
    def _recorded(tx: Connection, ids: list[str]) -> tuple[dict[str, _Row], dict[str, _Payment]]:
        """Return the reservations of these orders, and their payments that are or were authorized."""
        rows: dict[str, _Row] = {}
        payments: dict[str, _Payment] = {}
        for order_id, state, *details, payment, lines in tx.execute(SQL["reservations_and_payments"], {"ids": ids}):
            if state is not None:
                rows[order_id] = _Row(order_id, state, *details)
            else:
                payments[order_id] = _Payment(payment, _decode_lines(lines))
        return rows, payments

    @staticmethod
    def _lock_stock(tx: Connection, orders: Sequence[Lines]) -> dict[str, int]:
        """Lock the SKUs of these orders, all at once and in order, and return the available units of each."""
        skus = sorted({sku for lines in orders for sku in lines})
        return dict(tx.execute(SQL["stock_of"], {"skus": skus}).fetchall()) if skus else {}

    @staticmethod
    def _release(tx: Connection, rows: dict[str, _Row], releases: Mapping[str, Reservation]) -> None:
        """Turn recorded reservations into released ones, in Postgres and in `rows`."""
        if not releases:
            return
        parameters = {"ids": list(releases), "reasons": [release.reason for release in releases.values()]}
        for order_id, decided_at in tx.execute(SQL["release"], parameters):
            rows[order_id] = _row(order_id, releases[order_id], decided_at)

    @staticmethod
    def _record(
        tx: Connection, rows: dict[str, _Row], reservations: Mapping[str, Reservation], quantities: Mapping[str, int]
    ) -> None:
        """Insert new reservations, in Postgres and in `rows`, and move the units of SKUs. Raises RepeatBatchError."""
        if not reservations and not quantities:
            return
        new = [
            _NewReservation(order_id, reservation.state, reservation.lines, reservation.reason, reservation.skus)
            for order_id, reservation in sorted(reservations.items())
        ]
        parameters = {
            "reservations": _encode(new).decode(),
            "skus": list(quantities),
            "quantities": list(quantities.values()),
        }
        try:
            inserted = tx.execute(SQL["record_reservations"], parameters).fetchall()
        except UniqueViolation as error:
            raise RepeatBatchError("an order got a reservation elsewhere meanwhile") from error
        for order_id, decided_at in inserted:
            rows[order_id] = _row(order_id, reservations[order_id], decided_at)


def _row(order_id: str, reservation: Reservation, decided_at: datetime) -> _Row:
    return _Row(order_id, reservation.state, reservation.lines, reservation.reason, reservation.skus, decided_at)


def _released(
    rows: Mapping[str, _Row], aborts: Mapping[str, AnyReason | None]
) -> tuple[dict[str, Reservation], dict[str, Reservation]]:
    """Return what the aborts release: recorded reservations, and tombstones for orders that have none yet."""
    releases: dict[str, Reservation] = {}
    tombstones: dict[str, Reservation] = {}
    for order_id, reason in aborts.items():
        row = rows.get(order_id)
        if row is None:
            tombstones[order_id] = on_aborted(None, {}, reason)
        elif is_known(row.state) and (release := on_aborted(row.state, row.lines, reason)):
            releases[order_id] = release
    return releases, tombstones


def _sort(batch: Sequence[Received]) -> tuple[list[str], list[str]]:
    """Return the orders of payment.authorized, and those of order.aborted, each once."""
    authorized: dict[str, None] = {}
    aborted: dict[str, None] = {}
    for received in batch:
        kind = aborted if _is_abort(received) else authorized
        kind[received.order_id] = None
    return list(authorized), list(aborted)


def _is_abort(received: Received) -> bool:
    return isinstance(received.event.payload, OrderAborted)


def _answered(  # noqa: PLR0917 - all of them describe one batch
    tx: Connection,
    batch: Sequence[Received],
    rows: Mapping[str, _Row],
    aborted: Container[str],
    paid: Container[str],
    summary: str,
) -> BatchResult:
    """Answer the records that the tables confirm, and reject the others. An order with a reservation counts as paid."""
    emit, unconfirmed = [], []
    for received in batch:
        order_id = received.order_id
        if order_id not in (aborted if _is_abort(received) else paid):
            unconfirmed.append(received)
        elif (row := rows.get(order_id)) and (event := _event(row)):
            emit.append(Outgoing(event, received))
    return BatchResult(emit, reject_unconfirmed(tx, unconfirmed), summary=summary)


def _event(row: _Row) -> Event[Payload] | None:
    """Return the event of a recorded reservation; None for a state of a newer version, which emits the event itself."""
    if not is_known(row.state):
        return None
    payload: Payload
    match row.state:
        case "RESERVED":
            payload = InventoryReserved(order_id=row.order_id, items=stock_lines(row.lines))
        case "FAILED":
            payload = InventoryFailed(
                order_id=row.order_id, reason=row.reason or "OUT_OF_STOCK", skus=tuple(row.skus or ())
            )
        case "RELEASED":
            payload = InventoryReleased(order_id=row.order_id, items=stock_lines(row.lines), reason=row.reason)
        case _:
            assert_never(row.state)
    return build(payload, row.decided_at)
