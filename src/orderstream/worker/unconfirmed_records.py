"""Rejects records that the tables do not confirm: anyone with access to a topic can write a forged event (P9)."""

from collections.abc import Sequence

from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import aborts_of
from orderstream.worker.handler import Rejected


def reject_unconfirmed(connection: Connection, unconfirmed: Sequence[Received]) -> list[Rejected]:
    """Return each record with its reason: the order does not exist, or no service has made this decision."""
    if not unconfirmed:
        return []
    existing = aborts_of(connection, sorted({record.order_id for record in unconfirmed}))
    return [
        Rejected(record, "NOT_DECIDED", f"the tables do not confirm {record.event.type}")
        if record.order_id in existing
        else Rejected(record, "UNKNOWN_ORDER", record.order_id)
        for record in unconfirmed
    ]
