"""The checks of the benchmark detect every way in which an order or a unit of stock can be lost."""

from orderstream.postgres.connect import Connection
from tests.load.bench import checks
from tests.load.bench.generator_job import Report

USER, SKU = "bench-test", "BENCH-1"


def placed(connection: Connection, order_id: str, status: str = "CONFIRMED", qty: int = 1) -> None:
    facts = ("authorized", "reserved") if status == "CONFIRMED" else ("none", "none")
    connection.execute(
        "INSERT INTO orders (id, user_id, amount, currency, status, payment, stock)"
        " VALUES (%s, %s, 1, 'USD', %s, %s, %s)",
        (order_id, USER, status, *facts),
    )
    connection.execute("INSERT INTO order_items VALUES (%s, %s, %s, 1)", (order_id, SKU, qty))


def stocked(connection: Connection, available: int, reserved: int) -> None:
    connection.execute("INSERT INTO inventory VALUES (%s, %s, %s)", (SKU, available, reserved))


def answers(accepted: int, unanswered: int = 0) -> Report:
    return Report(
        accepted=accepted,
        refused=0,
        unanswered=unanswered,
        statuses={},
        latency_ms=[],
        late_ms=[],
        seconds=0,
        cpu_seconds=0,
    )


def test_orders_and_stock_that_agree_pass(connection: Connection) -> None:
    placed(connection, "o-1")
    placed(connection, "o-2", qty=2)
    stocked(connection, 7, 3)
    assert checks.orders(connection, USER, answers(2)) == []
    assert checks.orders(connection, USER, answers(1, unanswered=1)) == []
    assert checks.stock(connection, SKU, 10) == []


def test_a_missing_order_is_reported(connection: Connection) -> None:
    placed(connection, "o-1")
    (problem,) = checks.orders(connection, USER, answers(2))
    assert problem == "bench-test: 2 orders were accepted (0 unanswered), 1 exist"


def test_an_order_without_an_answer_is_reported(connection: Connection) -> None:
    placed(connection, "o-1")
    placed(connection, "o-2")
    assert len(checks.orders(connection, USER, answers(1))) == 1


def test_an_order_that_is_not_confirmed_is_reported(connection: Connection) -> None:
    placed(connection, "o-1", "PROCESSING")
    (problem,) = checks.orders(connection, USER, answers(1))
    assert problem == "bench-test: 1 orders exist, 0 are CONFIRMED"


def test_lost_units_and_units_reserved_without_an_order_are_reported(connection: Connection) -> None:
    placed(connection, "o-1")
    stocked(connection, 7, 2)
    assert checks.stock(connection, SKU, 10) == [
        "BENCH-1: 10 units were stocked, 7 + 2 exist",
        "BENCH-1: 2 units are reserved, the confirmed orders hold 1",
    ]
