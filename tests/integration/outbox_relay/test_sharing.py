"""Several relays on one outbox: none waits for rows that another holds, and released rows are published (P1)."""

from collections.abc import Sequence
from uuid import uuid4

from orderstream.domain.events import Event, Payload, topic_of
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.settings import Settings
from tests.integration.decisions.orders import created
from tests.integration.outbox_relay.running import running
from tests.support.topics import Letter, Tap

CREATED = topic_of("order.created")


def _ids(letters: Sequence[Letter]) -> set[object]:
    return {letter.event().id for letter in letters}


def test_rows_that_another_relay_locks_are_skipped_and_published_after_their_unlock(
    settings: Settings, connection: Connection, postgres_url: str
) -> None:
    held, *free = [created(str(uuid4())) for _ in range(3)]
    events: list[Event[Payload]] = [held, *free]
    with connection.transaction():
        append(connection, [OutboxRow(event) for event in events])
    with Tap(settings.kafka_brokers, [CREATED]) as tap, connect(postgres_url, "another") as another:
        with another.transaction():
            another.execute("SELECT FROM outbox WHERE order_id = %s FOR UPDATE", (held.correlation_id,))
            with running(settings):
                tap.until(lambda seen: _ids(seen) == {event.id for event in free}, 20, "the free rows are published")
        with running(settings):
            tap.until(lambda seen: _ids(seen) == {event.id for event in events}, 30, "the released rows are published")
    assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
