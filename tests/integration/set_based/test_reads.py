"""A page of orders and the audit of the provider's ledger need a constant number of statements."""

from collections.abc import Iterator
from decimal import Decimal
from uuid import uuid4

import pytest

from orderstream.audit.charges import CHECK, audit_charges
from orderstream.audit.provider_ledger import Ledger, LedgerPayment
from orderstream.console.orders.filters import OrderFilter
from orderstream.console.orders.listing import list_orders
from tests.integration.decisions.orders import place
from tests.integration.set_based.counting import MANY, Case, Counting, Work, assert_set_based


class _Charged(Ledger):
    """A ledger that has charged each of these keys twice."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys
        self.name = "the ledger"

    def payments(self) -> Iterator[LedgerPayment]:
        for key in sorted(self._keys):
            yield self.payment(key)

    def payment(self, key: str) -> LedgerPayment:
        return LedgerPayment(key, Decimal("129.00"), "USD", 2, Decimal("129.00"))


def _listed(counting: Counting, number: int) -> Work:
    counting.tables.execute("TRUNCATE orders CASCADE")
    for _ in range(number):
        place(counting.tables)
    return lambda: len(list_orders(counting.work, OrderFilter(), limit=MANY).orders)


def _charged(counting: Counting, number: int) -> Work:
    counting.tables.execute("TRUNCATE orders CASCADE")
    ledger = _Charged([place(counting.tables, order_id=str(uuid4())) for _ in range(number)])
    return lambda: len(audit_charges(counting.settings.postgres_url, ledger, 0)[CHECK])


READS = {"a page of orders": _listed, "orders that were charged twice": _charged}


@pytest.mark.parametrize("case", READS.values(), ids=READS)
def test_reads(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)
