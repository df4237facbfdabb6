"""The status table cell by cell, and the rules around it: merge, freeze, version, abort (P4, P5, P6)."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import get_args

import pytest

from orderstream.domain.order import (
    PAYMENT_RANK,
    STOCK_RANK,
    Facts,
    FactUpdate,
    FailureReason,
    OrderState,
    PaymentFact,
    Status,
    StockFact,
    aborts,
    apply,
    derive,
    fold,
    may_hold_money_or_stock,
    merge,
    settled,
)

EARLY = datetime(2026, 1, 2, tzinfo=UTC)
LATE = EARLY + timedelta(seconds=1)

# The table of docs/architecture.md: a row for each payment fact, a column for each stock fact.
TABLE = """
              none        reserved    failed   released
 none         PROCESSING  PROCESSING  FAILED   FAILED
 authorized   PAID        CONFIRMED   FAILED   FAILED
 failed       FAILED      FAILED      FAILED   FAILED
 voided       FAILED      FAILED      FAILED   FAILED
"""


def _cells() -> list[tuple[str, str, str]]:
    head, *rows = (line.split() for line in TABLE.strip().splitlines())
    return [(row[0], stock, status) for row in rows for stock, status in zip(head, row[1:], strict=True)]


PAYMENTS: tuple[PaymentFact, ...] = get_args(PaymentFact)
STOCKS: tuple[StockFact, ...] = get_args(StockFact)
ALL_FACTS = [Facts(payment, stock) for payment, stock in product(PAYMENTS, STOCKS)]
STATUSES: tuple[Status, ...] = get_args(Status)


@pytest.mark.parametrize(("payment", "stock", "status"), _cells())
def test_the_status_follows_from_payment_and_stock(payment: PaymentFact, stock: StockFact, status: Status) -> None:
    assert derive(payment, stock) == status


def test_the_table_has_every_cell() -> None:
    assert {(payment, stock) for payment, stock, _ in _cells()} == set(product(PAYMENTS, STOCKS))


def test_the_ranks_order_the_facts() -> None:
    assert sorted(PAYMENTS, key=PAYMENT_RANK.__getitem__) == ["none", "authorized", "failed", "voided"]
    assert sorted(STOCKS, key=STOCK_RANK.__getitem__) == ["none", "reserved", "failed", "released"]


@pytest.mark.parametrize(("left", "right"), list(product(ALL_FACTS, ALL_FACTS)))
def test_merge_takes_the_maximum_of_each_fact(left: Facts, right: Facts) -> None:
    merged = merge(left, right)
    assert merged.payment == max(left.payment, right.payment, key=PAYMENT_RANK.__getitem__)
    assert merged.stock == max(left.stock, right.stock, key=STOCK_RANK.__getitem__)


def test_a_fact_keeps_its_own_time() -> None:
    authorized = Facts(payment="authorized", payment_at=LATE)
    assert merge(authorized, Facts(stock="reserved", stock_at=EARLY)) == Facts("authorized", "reserved", LATE, EARLY)
    assert merge(authorized, Facts(payment="voided", payment_at=EARLY)).payment_at == EARLY


def test_the_earlier_time_of_two_equal_facts_stays() -> None:
    early, late, undated = (Facts(stock="reserved", stock_at=at) for at in (EARLY, LATE, None))
    assert merge(early, late) == merge(late, early) == early
    assert merge(undated, late) == merge(late, undated) == late


@pytest.mark.parametrize("status", ["CONFIRMED", "FAILED", "CANCELLED"])
def test_a_settled_status_stays_with_any_new_fact(status: Status) -> None:
    for facts in ALL_FACTS:
        after = apply(OrderState(status, Facts(), version=7), FactUpdate(facts))
        assert after.status == status
        assert (after.facts.payment, after.facts.stock) == (facts.payment, facts.stock)


def test_open_statuses_are_processing_and_paid() -> None:
    assert [status for status in STATUSES if not settled(status)] == ["PROCESSING", "PAID"]


@pytest.mark.parametrize("before", ALL_FACTS)
def test_the_version_grows_by_one_exactly_if_something_changes(before: Facts) -> None:
    order = OrderState(derive(before.payment, before.stock), before, version=3)
    for facts in ALL_FACTS:
        after = apply(order, FactUpdate(facts))
        changed = (after.status, after.facts, after.failure_reason) != (order.status, order.facts, order.failure_reason)
        assert after.version == order.version + (1 if changed else 0)
        assert changed or after is order


def test_a_failed_order_has_the_reason_of_the_fact_that_failed_it() -> None:
    order = OrderState("PROCESSING", Facts())
    declined = FactUpdate(Facts(payment="failed"), payment_reason="PAYMENT_DECLINED")
    refused = FactUpdate(Facts(stock="failed"), stock_reason="OUT_OF_STOCK")
    assert apply(order, declined).failure_reason == "PAYMENT_DECLINED"
    assert apply(order, refused).failure_reason == "OUT_OF_STOCK"
    assert apply(apply(order, refused), declined).failure_reason == "OUT_OF_STOCK"
    assert apply(order, fold(FactUpdate(Facts(payment="authorized")), refused)).failure_reason == "OUT_OF_STOCK"


def test_only_a_failed_order_has_a_failure_reason() -> None:
    for before, facts, reason in product(ALL_FACTS, ALL_FACTS, get_args(FailureReason)):
        order = OrderState(derive(before.payment, before.stock), before)
        after = apply(order, FactUpdate(facts, payment_reason=reason, stock_reason=reason))
        assert after.status == "FAILED" or after.failure_reason is None


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_an_order_may_hold_money_until_the_payment_ends_and_stock_while_it_is_reserved(facts: Facts) -> None:
    assert may_hold_money_or_stock(facts) == (facts.payment in ("none", "authorized") or facts.stock == "reserved")


def _aborts(status: Status, known: Facts, learned: Facts) -> bool:
    before = OrderState(status, known)
    update = FactUpdate(learned)
    return aborts(before, apply(before, update), update)


def test_a_decline_alone_aborts_nothing() -> None:
    assert not _aborts("PROCESSING", Facts(), Facts(payment="failed"))


@pytest.mark.parametrize("refused", [Facts(stock="failed"), Facts("authorized", "failed")])
@pytest.mark.parametrize(("status", "known"), [("PROCESSING", Facts()), ("PAID", Facts(payment="authorized"))])
def test_an_order_that_fails_with_something_to_undo_is_aborted(status: Status, known: Facts, refused: Facts) -> None:
    assert _aborts(status, known, refused)


def test_a_declined_payment_aborts_an_order_with_reserved_stock() -> None:
    assert _aborts("PROCESSING", Facts(stock="reserved"), Facts(payment="failed"))


def test_an_order_that_stays_open_or_is_confirmed_aborts_nothing() -> None:
    for known, learned in product(ALL_FACTS, ALL_FACTS):
        before = OrderState(derive(known.payment, known.stock), known)
        after = apply(before, FactUpdate(learned))
        if after.status not in ("FAILED", "CANCELLED"):
            assert not aborts(before, after, FactUpdate(learned))


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
@pytest.mark.parametrize("step", [Facts(payment="authorized"), Facts(stock="reserved"), Facts(stock="failed")])
def test_a_late_step_of_an_aborted_order_aborts_again_while_the_order_may_hold_something(
    status: Status, step: Facts
) -> None:
    for known in ALL_FACTS:
        assert _aborts(status, known, step) == may_hold_money_or_stock(merge(known, step))


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
@pytest.mark.parametrize("answer", [Facts(payment="failed"), Facts(payment="voided"), Facts(stock="released")])
def test_an_answer_to_an_abort_never_aborts_again(status: Status, answer: Facts) -> None:
    assert not any(_aborts(status, known, answer) for known in ALL_FACTS)
