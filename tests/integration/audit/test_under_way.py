"""The work that is still under way is counted, exactly or up to a limit."""

from uuid import uuid4

from orderstream.audit.under_way import Backlog, PaymentsUnderWay, UnderWay, payments_under_way, under_way
from orderstream.postgres.connect import Connection
from tests.integration.decisions.orders import place

NONE = Backlog(0, None)


def _event(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value, created_at)"
        " VALUES ('order.created.v1', %s, gen_random_uuid(), '{}', now() - interval '10 seconds')",
        [str(uuid4())],
    )


def _numbers(found: UnderWay) -> tuple[int, int, int, int]:
    return found.outbox.number, found.open.number, found.uncompensated.number, found.refused.number


def test_a_system_with_an_empty_database_has_no_work_under_way(connection: Connection) -> None:
    found = under_way(connection)
    assert found == UnderWay(NONE, NONE, NONE, NONE)
    assert found.is_quiet


def test_each_kind_of_work_is_counted_with_the_age_of_its_oldest_row(connection: Connection) -> None:
    _event(connection)
    place(connection)
    aborted = place(connection)
    connection.execute(
        "UPDATE orders SET status = 'CANCELLED', aborted_at = now() - interval '1 minute' WHERE id = %s", [aborted]
    )
    connection.execute(
        "INSERT INTO refused_records (record_id, topic, headers, service, reason) VALUES ('r', 't', '', 's', 'why')"
    )
    found = under_way(connection)
    assert _numbers(found) == (1, 1, 1, 1)
    assert 10 <= (found.outbox.oldest_seconds or 0) < 50
    assert 60 <= (found.uncompensated.oldest_seconds or 0) < 100
    assert not found.is_quiet


def test_the_system_is_not_quiet_with_an_event_an_open_order_or_a_compensation() -> None:
    some = Backlog(1, 0.0)
    assert not UnderWay(some, NONE, NONE, NONE).is_quiet
    assert not UnderWay(NONE, some, NONE, NONE).is_quiet
    assert not UnderWay(NONE, NONE, some, NONE).is_quiet
    assert UnderWay(NONE, NONE, NONE, some).is_quiet


def test_the_count_of_each_kind_of_work_stops_at_a_given_limit(connection: Connection) -> None:
    for _ in range(3):
        _event(connection)
        place(connection)
    assert _numbers(under_way(connection, 2)) == (2, 2, 0, 0)


def test_events_below_the_outbox_floor_are_counted_only_without_a_limit(connection: Connection) -> None:
    _event(connection)
    connection.execute("UPDATE outbox_floor SET id = (SELECT max(id) FROM outbox)")
    assert under_way(connection, 1_000).outbox == NONE
    assert under_way(connection).outbox.number == 1


def test_payments_that_are_not_finished_are_counted_by_what_they_wait_for(connection: Connection) -> None:
    for state, pending, attempts, number in (
        ("PENDING", False, 1, 4), ("PENDING", True, 1, 3), ("VOIDING", False, 0, 2), ("VOIDING", False, 5, 1)
    ):  # fmt: skip
        for _ in range(number):
            connection.execute(
                "INSERT INTO payments (order_id, state, attempts, next_attempt_at, pending_since)"
                " VALUES (%s, %s, %s, now(), CASE WHEN %s THEN now() END)",
                [place(connection), state, attempts, pending],
            )
    connection.execute("INSERT INTO payments (order_id, state) VALUES (%s, 'AUTHORIZED')", [place(connection)])
    assert payments_under_way(connection, 100) == PaymentsUnderWay(without_answer=4, pending=3, voiding=3)
    assert payments_under_way(connection, 1) == PaymentsUnderWay(without_answer=1, pending=0, voiding=2)
