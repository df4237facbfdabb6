"""A worker service for tests. It records a decision for each order in its own table, and publishes events from the
table.

It consumes payment.authorized and publishes inventory.reserved for every order. A test can inject faults.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Event as Signal
from threading import Lock

from orderstream.domain.events import Event, InventoryReserved, Payload, StockLine, build, topic_of
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.process.gathering import OF_RECORDS
from orderstream.worker.handler import BatchResult, Outgoing, Timer, nothing

SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions (
    order_id   TEXT PRIMARY KEY,
    decided_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    seen       INT NOT NULL DEFAULT 1
)
"""
_RECORD = """
INSERT INTO decisions AS d (order_id)
SELECT DISTINCT unnest(%(ids)s::text[]) ORDER BY 1
ON CONFLICT (order_id) DO UPDATE SET seen = d.seen + 1
RETURNING order_id, decided_at
"""
IN, OUT = topic_of("payment.authorized"), topic_of("inventory.reserved")

Hook = Callable[[Connection, Sequence[Received]], None]


def _no_fault(_connection: Connection, _batch: Sequence[Received]) -> None:
    """Do nothing."""


class Recorder:
    """A handler. `fault` runs first in every decision, and `after_commit` after its commit."""

    topics: tuple[str, ...] = (IN,)
    emits: tuple[str, ...] = ("inventory.reserved",)

    def __init__(
        self,
        group: str,
        fault: Hook = _no_fault,
        after_commit: Callable[[], None] = nothing,
        timers: Sequence[Timer] = (),
    ) -> None:
        self.group = group
        self.timers = timers
        self.gathering = OF_RECORDS
        self.wake = Signal()
        self._fault = fault
        self._after_commit = after_commit
        self._lock = Lock()
        self._batches: list[list[str]] = []

    @property
    def batches(self) -> list[list[str]]:
        """The order ids of every decision so far, including failed decisions."""
        with self._lock:
            return list(self._batches)

    def room(self) -> Mapping[str, int]:
        """Take every record."""
        return {}

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Do nothing."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> BatchResult:
        """Record each order once and return an event for every record."""
        with self._lock:
            self._batches.append([received.order_id for received in batch])
        self._fault(tx, batch)
        rows = tx.execute(_RECORD.encode(), {"ids": [received.order_id for received in batch]}).fetchall()
        decided: dict[str, datetime] = dict(rows)
        return BatchResult(
            emit=[Outgoing(_answer(received.order_id, decided[received.order_id]), received) for received in batch],
            after_commit=self._after_commit,
        )


def _answer(order_id: str, decided_at: datetime) -> Event[Payload]:
    lines = (StockLine(sku="SKU-1", qty=1),)
    return build(InventoryReserved(order_id=order_id, items=lines), decided_at)
