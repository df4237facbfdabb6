"""The event graph has no cycle: nothing that happens to an order keeps on happening by itself."""

from typing import Any

import pytest

from orderstream.domain.events import PAYLOADS, topic_of
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.order_service.handler import OrderHandler
from orderstream.payment_worker.handler import PaymentHandler
from tests.support.event_graph import ANSWERS, Node, successors

HANDLERS: list[Any] = [PaymentHandler, InventoryHandler, OrderHandler]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.group)
def test_a_handler_consumes_and_emits_what_the_graph_says(handler: Any) -> None:
    mine = {consumed: emitted for (service, consumed), emitted in ANSWERS.items() if service == handler.group}
    assert set(handler.topics) == {topic_of(consumed) for consumed in mine}
    assert set(handler.emits) == set().union(*mine.values())


def test_every_event_is_in_the_graph() -> None:
    emitted = set().union(*ANSWERS.values()) | {"order.created"}
    assert emitted == set(PAYLOADS)
    assert {consumed for _, consumed in ANSWERS} == set(PAYLOADS) - {"order.updated"}


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


def test_an_abort_is_answered_by_what_ends_it() -> None:
    answers = {name for (_, consumed), emitted in ANSWERS.items() if consumed == "order.aborted" for name in emitted}
    assert answers == {"payment.voided", "payment.failed", "inventory.released"}
    for name in answers:
        assert successors((name, True)) == {("order.updated", True)}
