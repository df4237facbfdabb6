"""Compares the ledger of the payment provider with the orders, and finds charges that break P2.

The audit reads two stores, one after the other, while both may change. It merges two streams in the order of the keys,
with one page of each in memory. A pair that looks like a breach gets a second look: the audit reads the order, then the
ledger, then the order again. If the order did not change meanwhile, the result holds for the moment between.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from msgspec import Struct

from orderstream.audit.check import SHOWN_PER_PROMISE, Breach, Progress, Report, no_report
from orderstream.audit.provider_ledger import Ledger, LedgerError, LedgerPayment
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.sql import load

CHECK = "p2_provider_ledger"
"""The name of this check, beside those of promises.sql."""
PIECE_ORDERS = 5_000
"""Orders that one statement reads."""
LOOK_KEYS = 500
"""Pairs that get their second look together."""
LOOKS_MAX = 3
"""Second looks at a pair whose order changes meanwhile. Then the pair is left to the next audit."""
NEWER_PAYMENTS_MAX = 1_000_000
"""Payments of orders that were accepted after the audit began."""

NOTHING_PAID = LedgerPayment("", None, None, 0, Decimal(0))

SQL = load("orderstream.audit", "charges.sql")
_ORDER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class Order(Struct, frozen=True):
    """An order as the audit reads it. `is_at_rest` says that it has not changed within the grace period."""

    id: str
    amount: Decimal
    currency: str
    status: str
    version: int
    is_at_rest: bool


class Pair(Struct, frozen=True):
    """An order and the payment with its id as key. One of the two may be missing."""

    order: Order | None
    payment: LedgerPayment | None

    @property
    def key(self) -> str:
        """The order id."""
        found = self.payment.key if self.payment else self.order.id if self.order else None
        assert found is not None, "a pair has at least one side"
        return found


def problem_of(order: Order | None, payment: LedgerPayment | None) -> str | None:
    """Return how a payment in the ledger contradicts its order, or None. Without a payment, nothing was charged."""
    paid = payment or NOTHING_PAID
    if paid.charges > 1:
        return f"charged {paid.charges} times"
    if paid.charges and order is None:
        return f"charged {paid.amount} {paid.currency}, and there is no such order"
    if order is None:
        return None
    if paid.charges and (paid.amount, paid.currency) != (order.amount, order.currency):
        return f"charged {paid.amount} {paid.currency}, accepted {order.amount} {order.currency}"
    return _held_problem_of(order, paid)


def _held_problem_of(order: Order, paid: LedgerPayment) -> str | None:
    """Return how the amount that is held now contradicts the status of the order, or None."""
    if paid.held not in (0, order.amount) or (paid.held and not paid.charges):
        return f"the provider holds {paid.held} after {paid.charges} charges, accepted {order.amount} {order.currency}"
    if order.status == "CONFIRMED" and not paid.held:
        return "CONFIRMED, and the provider holds nothing"
    if order.status in ("FAILED", "CANCELLED") and paid.held and order.is_at_rest:
        return f"{order.status}, and the provider still holds {paid.held} {order.currency}"
    return None


def merged(orders: Iterator[Order], payments: Iterator[LedgerPayment]) -> Iterator[Pair]:
    """Yield each order with its payment, and each order and payment that is alone. Both come in ascending order."""
    order, payment = next(orders, None), next(payments, None)
    while order is not None or payment is not None:
        if payment is None or (order is not None and order.id < payment.key):
            yield Pair(order, None)
            order = next(orders, None)
        elif order is None or payment.key < order.id:
            yield Pair(None, payment)
            payment = next(payments, None)
        else:
            yield Pair(order, payment)
            order, payment = next(orders, None), next(payments, None)


def audit_charges(
    postgres_url: str, ledger: Ledger, grace_seconds: float, retention_days: int = 0, report: Report = no_report
) -> dict[str, list[Breach]]:
    """Return the breaches of P2 that the ledger shows, at most 100, under the name of this check.

    Orders that changed within `grace_seconds` may still have a charge that is to be voided. `retention_days` is
    ORDER_RETENTION_DAYS of the relays: a charge that is older may belong to an order that was removed.

    Raises LedgerError, psycopg.Error, and what `report` raises.
    """
    with connect(postgres_url, "audit") as connection:
        comparison = _Comparison(connection, ledger, grace_seconds, retention_days, report)
        return {CHECK: list(itertools.islice(comparison.breaches(), SHOWN_PER_PROMISE))}


class _Comparison:
    """One comparison of the ledger with the orders that exist when it begins."""

    def __init__(
        self, connection: Connection, ledger: Ledger, grace_seconds: float, retention_days: int, report: Report
    ) -> None:
        self._connection = connection
        self._report = report
        self._ledger = ledger
        self._grace_seconds = grace_seconds
        row = connection.execute(SQL["scope"], {"days": retention_days}).fetchone()
        assert row is not None
        self._upto: str = row[0] or ""
        self._kept_from: str = row[1]

    def breaches(self) -> Iterator[Breach]:
        """Yield every breach. The order of a newer payment is read here, because the stream of orders ends before."""
        suspects = (
            pair for pair in merged(self._orders(), self._payments()) if self._problem(pair.order, pair.payment)
        )
        while batch := list(itertools.islice(suspects, LOOK_KEYS)):
            orders = self._orders_of([pair.key for pair in batch])
            yield from self._second_look(
                [pair.key for pair in batch if self._problem(orders.get(pair.key), pair.payment)]
            )

    def _orders(self) -> Iterator[Order]:
        """Yield the orders piece by piece. No snapshot is held between two pieces."""
        after = ""
        for done in itertools.count():
            self._report(Progress(0, 1, CHECK, done))
            piece = {"after": after, "upto": self._upto, "limit": PIECE_ORDERS, "grace_seconds": self._grace_seconds}
            rows = self._connection.execute(SQL["orders_after"], piece).fetchall()
            yield from (Order(*row) for row in rows)
            if len(rows) < PIECE_ORDERS:
                return
            after = rows[-1][0]

    def _payments(self) -> Iterator[LedgerPayment]:
        """Yield the payments. Raises LedgerError if more orders arrive than the audit can read."""
        newer = 0
        for payment in self._ledger.payments():
            newer += payment.key > self._upto
            if newer > NEWER_PAYMENTS_MAX:
                raise LedgerError(
                    f"{self._ledger.name} received more than {NEWER_PAYMENTS_MAX} payments during the audit:"
                    " run it again when fewer orders arrive"
                )
            yield payment

    def _orders_of(self, keys: Sequence[str]) -> dict[str, Order]:
        parameters = {"ids": list(keys), "grace_seconds": self._grace_seconds}
        return {row[0]: Order(*row) for row in self._connection.execute(SQL["orders_of"], parameters)}

    def _second_look(self, keys: Sequence[str]) -> Iterator[Breach]:
        """Yield the breaches among these keys. A key whose order changes during LOOKS_MAX looks is left out."""
        before = self._orders_of(keys)
        for _ in range(LOOKS_MAX):
            payments = {key: self._ledger.payment(key) for key in keys}
            after = self._orders_of(keys)
            changed = [key for key in keys if _version(before.get(key)) != _version(after.get(key))]
            for key in keys:
                problem = None if key in changed else self._problem(before.get(key), payments[key])
                if problem is not None:
                    yield Breach(CHECK, key, problem)
            keys, before = changed, after

    def _problem(self, order: Order | None, payment: LedgerPayment | None) -> str | None:
        """Return the problem of a pair. The order of one old charge may be missing, because retention removed it."""
        is_old = payment is not None and _ORDER_ID.fullmatch(payment.key) and payment.key < self._kept_from
        if order is None and payment is not None and is_old and payment.charges == 1:
            return None
        return problem_of(order, payment)


def _version(order: Order | None) -> int | None:
    return order.version if order else None
