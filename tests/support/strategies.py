"""Hypothesis strategies for the types of the domain."""

from datetime import UTC, datetime
from typing import get_args

from hypothesis import strategies as st

from orderstream.domain.events import (
    PAYLOADS,
    Decided,
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    Item,
    OrderAborted,
    OrderCreated,
    OrderUpdated,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    StockLine,
    build,
)
from orderstream.domain.money import MINOR_DIGITS, in_currency, parse
from orderstream.domain.order import Facts, FactUpdate, FailureReason, PaymentFact, Status, StockFact

TIMES = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1)).map(  # noqa: DTZ001
    lambda naive: naive.replace(tzinfo=UTC)
)
REASONS: st.SearchStrategy[FailureReason] = st.sampled_from(get_args(FailureReason))
# Every text that a JSON string and Postgres can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
QUANTITIES = st.integers(1, 1_000_000)
CURRENCIES = st.sampled_from(sorted(MINOR_DIGITS))
MONEY = CURRENCIES.flatmap(
    lambda currency: st.tuples(
        st.just(currency),
        st.decimals(0, 999_999_999_999, places=MINOR_DIGITS[currency])
        .filter(bool)
        .map(lambda amount: in_currency(parse(f"{amount:f}", quoted=True), currency)),
    )
)
ITEMS = st.lists(
    st.builds(Item, sku=TEXT, qty=QUANTITIES, price=MONEY.map(lambda money: money[1])), min_size=1, max_size=4
).map(tuple)
STOCK_LINES = st.lists(st.builds(StockLine, sku=TEXT, qty=QUANTITIES), max_size=4).map(tuple)
DECIDED = st.builds(Decided, decided_at=st.none() | TIMES)

FACTS = st.builds(
    Facts,
    st.sampled_from(get_args(PaymentFact)),
    st.sampled_from(get_args(StockFact)),
    st.none() | st.integers(0, 3).map(lambda second: datetime(2026, 1, 1, second=second, tzinfo=UTC)),
    st.none() | st.integers(0, 3).map(lambda second: datetime(2026, 1, 1, second=second, tzinfo=UTC)),
)
FACT_UPDATES = st.builds(FactUpdate, FACTS, st.none() | REASONS, st.none() | REASONS)


def _priced(payload: type[Payload], **fields: st.SearchStrategy[str]) -> st.SearchStrategy[Payload]:
    return MONEY.flatmap(
        lambda money: st.builds(
            payload, order_id=TEXT, items=ITEMS, currency=st.just(money[0]), amount=st.just(money[1]), **fields
        )
    )


def _updated() -> st.SearchStrategy[Payload]:
    return MONEY.flatmap(
        lambda money: st.builds(
            OrderUpdated,
            order_id=TEXT,
            user_id=TEXT,
            currency=st.just(money[0]),
            amount=st.just(money[1]),
            status=st.sampled_from(get_args(Status)),
            failure_reason=st.none() | REASONS,
            payment=DECIDED,
            stock=DECIDED,
            version=st.integers(1, 2**31 - 1),
            created_at=TIMES,
            updated_at=TIMES,
        )
    )


OF_PAYLOAD: dict[type[Payload], st.SearchStrategy[Payload]] = {
    OrderCreated: _priced(OrderCreated, user_id=TEXT),
    OrderAborted: st.builds(OrderAborted, order_id=TEXT, reason=st.none() | REASONS),
    OrderUpdated: _updated(),
    PaymentAuthorized: _priced(PaymentAuthorized),
    PaymentFailed: st.builds(PaymentFailed, order_id=TEXT),
    PaymentVoided: st.builds(PaymentVoided, order_id=TEXT, reason=st.none() | REASONS),
    InventoryReserved: st.builds(InventoryReserved, order_id=TEXT, items=STOCK_LINES),
    InventoryFailed: st.builds(InventoryFailed, order_id=TEXT, skus=st.lists(TEXT, max_size=3).map(tuple)),
    InventoryReleased: st.builds(InventoryReleased, order_id=TEXT, items=STOCK_LINES, reason=st.none() | REASONS),
}
EVENTS: st.SearchStrategy[Event[Payload]] = st.builds(
    build, st.one_of(*(OF_PAYLOAD[payload] for payload in PAYLOADS.values())), TIMES
)
