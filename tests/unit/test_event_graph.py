"""The event graph of domain/saga.py is that of the code, and it has no cycle: no order causes events without end."""

from typing import Any, get_args

import pytest
from docs.generate import PAGE, with_diagrams

from orderstream.domain import payment, stock
from orderstream.domain.events import PAYLOADS, topic_of
from orderstream.domain.order import Facts
from orderstream.domain.saga import (
    CONSUMER_GROUPS,
    FACTS,
    ORIGINS,
    PAYMENT_EVENTS,
    STOCK_EVENTS,
    answers_of,
    consumed_by,
    consumers_of,
    emitters_of,
)
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.order_service.handler import CONTRADICTED_BY, OrderHandler
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.payment_worker.handler import PaymentHandler
from tests.support.event_walk import ANSWERS, Node, successors
from tests.support.payments import ScriptedProvider, payments
from tests.unit.test_documents import emitters

HANDLERS: list[Any] = [PaymentHandler, InventoryHandler, OrderHandler]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.group)
def test_a_handler_consumes_and_emits_what_the_graph_says(handler: Any) -> None:
    mine = {consumed: emitted for (service, consumed), emitted in ANSWERS.items() if service == handler.group}
    assert set(handler.topics) == {topic_of(consumed) for consumed in mine}
    assert set(handler.emits) == set().union(*mine.values())


def test_the_consumer_groups_are_the_handlers() -> None:
    assert tuple(handler.group for handler in HANDLERS) == CONSUMER_GROUPS


def test_a_service_builds_the_events_that_the_graph_says() -> None:
    assert emitters() == {topic_of(event): set(emitters_of(event)) for event in PAYLOADS}


def test_every_timer_of_the_graph_exists() -> None:
    with payments(ScriptedProvider()) as payment_worker:
        payment_timers = payment_worker.handler.timers
    timers = {"payment-worker": payment_timers, "order-service": Watchdog(WatchdogSchedule()).timers}
    named = {(origin.service, origin.cause) for origin in ORIGINS if origin.cause.startswith("timer ")}
    assert named <= {(service, f"timer {timer.name}") for service, found in timers.items() for timer in found}


def test_payment_worker_can_answer_with_exactly_these_events() -> None:
    outcomes: list[payment.FirstOutcome] = [outcome() for outcome in get_args(payment.FirstOutcome)]
    created = {_payment_event(payment.on_created(None, outcome), None) for outcome in outcomes}
    created |= {_payment_event(None, state) for state in payment.STATES}
    aborted = {_payment_event(payment.on_aborted(state, None), state) for state in (None, *payment.STATES)}
    assert created - {None} == ANSWERS["payment-worker", "order.created"]
    assert aborted - {None} == ANSWERS["payment-worker", "order.aborted"]


def _payment_event(change: payment.Transition | None, state: payment.PaymentState | None) -> str | None:
    now = change.state if change else state
    return PAYMENT_EVENTS.get(now) if now else None


def test_inventory_worker_can_answer_with_exactly_these_events() -> None:
    reserved = {stock.on_authorized({"A": units}, {"A": 1}).state for units in (0, 1)}
    aborted = {change.state for state in stock.STATES if (change := stock.on_aborted(state, {}, None))}
    aborted |= {stock.on_aborted(None, {}, None).state}
    recorded = reserved | aborted
    assert {STOCK_EVENTS[state] for state in recorded} == ANSWERS["inventory-worker", "payment.authorized"]
    assert {STOCK_EVENTS[state] for state in aborted} == ANSWERS["inventory-worker", "order.aborted"]


def test_order_service_knows_every_event_that_it_consumes() -> None:
    assert set(consumed_by("order-service")) == set(CONTRADICTED_BY) == set(FACTS)
    assert set(answers_of("order-service")) == {"order.updated", "order.aborted"}


def test_each_event_states_one_fact() -> None:
    for event, facts in FACTS.items():
        kind, _, fact = event.partition(".")
        assert facts == (Facts(payment=fact) if kind == "payment" else Facts(stock=fact))  # type: ignore[arg-type]


def test_every_event_is_in_the_graph() -> None:
    assert {event for event in PAYLOADS if emitters_of(event)} == set(PAYLOADS)
    assert {event for event in PAYLOADS if not consumers_of(event)} == {"order.updated"}
    assert {consumed for _, consumed in ANSWERS} == set(PAYLOADS) - {"order.updated"}


def test_the_diagrams_of_the_document_are_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_diagrams(page) == page, "the saga has changed: run `make diagrams`"


def _walk(node: Node, path: tuple[Node, ...], done: set[Node]) -> None:
    assert node not in path, f"a cycle: {' -> '.join(name for name, _ in (*path[path.index(node) :], node))}"
    if node in done:
        return
    for following in successors(node):
        _walk(following, (*path, node), done)
    done.add(node)


def test_there_is_no_cycle() -> None:
    done: set[Node] = set()
    _walk(("order.created", False), (), done)
    assert {name for name, _ in done} == set(PAYLOADS)


def test_the_answers_to_an_abort_cause_only_order_updated() -> None:
    answers = {name for (_, consumed), emitted in ANSWERS.items() if consumed == "order.aborted" for name in emitted}
    assert answers == {"payment.voided", "payment.failed", "inventory.released"}
    for name in answers:
        assert successors((name, True)) == {("order.updated", True)}
