"""What `orderstream status` says of orders that do not move, on real stores, and while a store hangs."""

from uuid import uuid4

import pytest

from orderstream.local import backlog as progress
from orderstream.local.backlog import Waiting, in_words
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.support.servers import Servers
from tests.support.topics import publish
from tests.support.waiting import wait_until

STILL = [
    ("outbox", "outbox-relay is behind: 310 events wait to be published, the oldest for 42 s", (310, 42.0)),
    ("open", "an order has been open for 3 min; most settle within a second", (1_000, 190.0)),
    ("aborted", "an abort has not been compensated for 2 h: payment or stock has not answered", (7, 7_300.0)),
]


@pytest.mark.parametrize(("which", "words", "waiting"), STILL)
def test_what_waits_too_long_is_said_in_words(which: str, words: str, waiting: tuple[int, float]) -> None:
    none, late = Waiting(0, None), Waiting(*waiting)
    outbox, unfinished, aborted = (late if name == which else none for name, _, _ in STILL)
    lines = in_words(outbox, unfinished, aborted, none)
    assert [line.strip() for line in lines if line.startswith(" ")] == [words]


def test_nothing_is_said_of_what_moves() -> None:
    assert [line.split()[-2:] for line in in_words(*[Waiting(0, None)] * 4)] == [
        ["0", "events"],
        ["0", "orders"],
        ["aborted", "orders"],
        ["0", "records"],
    ]
    assert not [line for line in in_words(*[Waiting(3, 1.0)] * 4) if line.startswith(" ")]


def test_the_figures_come_from_the_stores(settings: Settings, connection: Connection) -> None:
    wait_until(lambda: _lag(progress.report(settings)) is not None, 20, "Kafka tells the lag")
    before = _lag(progress.report(settings)) or 0
    order_id = str(uuid4())
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value, created_at)"
        " SELECT 'order.created.v1', %s, gen_random_uuid(), '{}', now() - interval '10 minutes'"
        " FROM generate_series(1, 310)",
        [order_id],
    )
    publish(settings.kafka_brokers, [("order.created.v1", order_id.encode(), b"{}")])
    lines = progress.report(settings)
    assert "outbox               310 events, the oldest for 10 min" in lines
    assert "  outbox-relay is behind: 310 events wait to be published, the oldest for 10 min" in lines
    assert "open orders          0 orders" in lines

    wait_until(lambda: _lag(progress.report(settings)) == before + 1, 20, "the lag has grown by the record")


def _lag(report: list[str]) -> int | None:
    """What is left for payment-worker to take; None while Kafka elects leaders of new topics."""
    found = [line.split()[1] for line in report if line.startswith("payment-worker ")]
    return int(found[0]) if found else None


@pytest.mark.parametrize("store", ["postgres", "kafka"])
def test_a_store_that_hangs_costs_a_bounded_time(
    servers: Servers, settings: Settings, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "ANSWER_SECONDS", 2.0)
    name = {"postgres": "PostgreSQL", "kafka": "Kafka"}[store]
    server = getattr(servers, store)
    server.pause()
    try:
        lines = progress.report(settings)
    finally:
        server.resume()
    assert [line for line in lines if line.startswith((f"{name} has not answered", f"{name} refuses"))]
