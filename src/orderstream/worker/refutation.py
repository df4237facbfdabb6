"""Records that the tables refute become dead letters: anyone with access to a topic can write an event (P9)."""

from collections.abc import Sequence

from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import aborts_of
from orderstream.worker.handler import Rejected


def rejected(connection: Connection, refuted: Sequence[Received]) -> list[Rejected]:
    """Return the records with a reason each: the order does not exist, or no service has decided this."""
    if not refuted:
        return []
    known = aborts_of(connection, sorted({record.order_id for record in refuted}))
    return [
        Rejected(record, "NOT_DECIDED", f"the tables do not confirm {record.event.type}")
        if record.order_id in known
        else Rejected(record, "UNKNOWN_ORDER", record.order_id)
        for record in refuted
    ]
