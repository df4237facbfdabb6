"""`orderstream status` reports work that waits, with real servers, and answers in time while one of them hangs."""

from uuid import uuid4

import msgspec
import pytest

from orderstream.audit.under_way import Backlog, UnderWay
from orderstream.local import backlog
from orderstream.local.backlog import in_words
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.support.servers import Servers
from tests.support.topics import publish
from tests.support.waiting import wait_until

LATE = {
    "outbox": (310, 42.0, "outbox-relay is behind: 310 events wait to be published, the oldest for 42 s"),
    "open": (1_000, 190.0, "an order has been open for 3 min; most settle within a second"),
    "uncompensated": (7, 7_300.0, "an abort has not been compensated for 2 h: payment or stock has not answered"),
}
NOTHING = UnderWay(*[Backlog(0, None)] * 4)


@pytest.mark.parametrize("kind", LATE)
def test_status_reports_work_that_waits_too_long(kind: str) -> None:
    number, seconds, words = LATE[kind]
    lines = in_words(msgspec.structs.replace(NOTHING, **{kind: Backlog(number, seconds)}))
    assert [line.strip() for line in lines if line.startswith(" ")] == [words]


def test_status_only_counts_work_that_makes_progress() -> None:
    assert [line.split()[-2:] for line in in_words(NOTHING)] == [
        ["0", "events"],
        ["0", "orders"],
        ["aborted", "orders"],
        ["0", "records"],
    ]
    assert not [line for line in in_words(UnderWay(*[Backlog(3, 1.0)] * 4)) if line.startswith(" ")]


def test_status_reads_its_numbers_from_postgres_and_kafka(settings: Settings, connection: Connection) -> None:
    wait_until(lambda: _lag(backlog.report(settings)) is not None, 20, "the lag is reported")
    before = _lag(backlog.report(settings)) or 0
    order_id = str(uuid4())
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value, created_at)"
        " SELECT 'order.created.v1', %s, gen_random_uuid(), '{}', now() - interval '10 minutes'"
        " FROM generate_series(1, 310)",
        [order_id],
    )
    publish(settings.kafka_brokers, [("order.created.v1", order_id.encode(), b"{}")])
    lines = backlog.report(settings)
    assert "outbox               310 events, the oldest for 10 min" in lines
    assert "  outbox-relay is behind: 310 events wait to be published, the oldest for 10 min" in lines
    assert "open orders          0 orders" in lines
    assert "payments             0 without an answer, 0 pending at the provider, 0 to void" in lines

    wait_until(lambda: _lag(backlog.report(settings)) == before + 1, 20, "the record adds one to the lag")
    (line,) = [line for line in backlog.report(settings) if line.startswith("payment-worker ")]
    assert " of order.created.v1" in line, "the topic in which records wait is named"


def _lag(report: list[str]) -> int | None:
    """Return the lag of payment-worker. None: Kafka still elects the leaders of new topics."""
    found = [line.split()[1] for line in report if line.startswith("payment-worker ")]
    return int(found[0]) if found else None


@pytest.mark.parametrize("store", ["postgres", "kafka"])
def test_the_status_answers_in_time_while_a_server_hangs(
    servers: Servers, settings: Settings, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "ANSWER_SECONDS", 2.0)
    name = {"postgres": "PostgreSQL", "kafka": "Kafka"}[store]
    server = getattr(servers, store)
    server.pause()
    try:
        lines = backlog.report(settings)
    finally:
        server.resume()
    assert [line for line in lines if line.startswith((f"{name} has not answered", f"{name} refuses"))]
