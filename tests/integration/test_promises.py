"""The checks of docs/promises.md are SQL that runs on the schema, and find what they are there to find."""

import re

import pytest

from orderstream.postgres.connect import Connection
from orderstream.stack.state import checkout

_BLOCK = re.compile(r"^### (P\d+)$.*?(?=^### |\Z)", re.MULTILINE | re.DOTALL)
_SQL = re.compile(r"^```sql\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PAGE = (checkout() / "docs" / "promises.md").read_text(encoding="utf-8")
CHECKS = {section[1]: "".join(_SQL.findall(section[0])) for section in _BLOCK.finditer(PAGE)}

# One transaction, so that the times of the facts are those of the decisions.
ORDER = """
INSERT INTO orders (id, user_id, amount, currency, status, failure_reason, payment, stock, payment_at, stock_at)
VALUES ('o-1', 'u-1', 5, 'USD', 'CONFIRMED', NULL, 'authorized', 'reserved', now(), now());
INSERT INTO order_items (order_id, sku, qty, price) VALUES ('o-1', 'SKU-1', 2, 2.5);
INSERT INTO inventory (sku, available, reserved) VALUES ('SKU-1', 8, 2);
INSERT INTO payments (order_id, state, amount) SELECT id, 'AUTHORIZED', amount FROM orders;
INSERT INTO reservations (order_id, state, lines) VALUES ('o-1', 'RESERVED', '{"SKU-1": 2}');
"""

# What is done to the confirmed order, and the promises that are broken by it.
BREACHES: dict[str, tuple[str, set[str]]] = {
    "nothing": ("", set()),
    "its event was lost": (
        """
        DELETE FROM payments; DELETE FROM reservations; UPDATE inventory SET available = 10, reserved = 0;
        UPDATE orders SET status = 'PROCESSING', payment = 'none', stock = 'none', payment_at = NULL, stock_at = NULL
        """,
        {"P1", "P5"},
    ),
    "it has no items": ("DELETE FROM order_items", {"P1", "P3"}),
    "charged too much": ("UPDATE payments SET amount = 6", {"P2"}),
    "reserved too little": ("UPDATE inventory SET reserved = 1", {"P3"}),
    "reserved a line in part": (
        """UPDATE reservations SET lines = '{"SKU-1": 1}'; UPDATE inventory SET reserved = 1""",
        {"P3"},
    ),
    "paid and reserved, and still open": ("UPDATE orders SET status = 'PAID'", {"P4", "P5", "P7"}),
    "failed, and nothing undone": ("UPDATE orders SET status = 'FAILED'", {"P2", "P5", "P7"}),
    "a fact that nobody decided": ("UPDATE payments SET state = 'VOIDED'", {"P7"}),
    "a fact of another time": ("UPDATE orders SET stock_at = stock_at - interval '1 second'", {"P7"}),
    "a payment known before it was decided": (
        "UPDATE payments SET decided_at = decided_at - interval '1 second'",
        {"P7"},
    ),
}


def broken(connection: Connection) -> set[str]:
    """Run the checks that look at the present, and return the promises for which a row comes back."""
    found = set()
    for name in ("P1", "P2", "P3", "P4", "P5", "P7", "P10"):
        cursor = connection.execute(CHECKS[name].encode(), prepare=False)
        while True:
            if cursor.fetchall():
                found.add(name)
            if not cursor.nextset():
                break
    return found


def test_every_check_runs(connection: Connection) -> None:
    assert sorted(CHECKS) == sorted(f"P{number}" for number in range(1, 12))
    assert [name for name, text in CHECKS.items() if not text] == ["P9"]
    for text in CHECKS.values():
        if text:
            connection.execute(text.encode(), prepare=False)


@pytest.mark.parametrize("breach", BREACHES)
def test_a_check_finds_what_it_is_there_to_find(connection: Connection, breach: str) -> None:
    change, promises = BREACHES[breach]
    connection.execute(ORDER.encode(), prepare=False)
    if change:
        connection.execute(change.encode(), prepare=False)
    assert broken(connection) == promises


def test_a_settled_status_that_changed_is_found(connection: Connection) -> None:
    remember, look, *_ = CHECKS["P6"].split(";")
    connection.execute(ORDER.encode(), prepare=False)
    connection.execute(remember.encode())
    assert connection.execute(look.encode()).fetchall() == []
    connection.execute("UPDATE orders SET status = 'CANCELLED'")
    assert connection.execute(look.encode()).fetchall() == []
    connection.execute("UPDATE orders SET status = 'FAILED'")
    assert connection.execute(look.encode()).fetchall() == [("o-1", "CONFIRMED", "FAILED")]
