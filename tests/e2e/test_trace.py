"""Each order has one trace over all five services and real Kafka. A cancel is a trace that links to it.

A collector that hangs delays no order.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from orderstream.settings import SERVICES
from tests.support import collector
from tests.support.collector import Collector, ReceivedSpan, roots
from tests.support.system import System, system
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT = "b7ad6b7169203331"


STEPS = {
    ("api-gateway", "INSERT orders order_items outbox", "POST /orders"),
    ("outbox-relay", "wait in outbox", "POST /orders"),
    ("outbox-relay", "send order.created.v1", "POST /orders"),
    ("payment-worker", "authorize payment", "send order.created.v1"),
    ("payment-worker", "process order.created.v1", "send order.created.v1"),
    ("payment-worker", "INSERT payments", "process order.created.v1"),
    ("inventory-worker", "INSERT reservations UPDATE inventory", "process payment.authorized.v1"),
    ("order-service", "UPDATE orders", "process inventory.reserved.v1"),
}
"""Steps of a confirmed order: service, span, and its parent."""
COMPENSATION = {
    "UPDATE orders INSERT outbox",
    "wait in outbox",
    "process order.aborted.v1",
    "void payment",
    "UPDATE payments",
    "UPDATE reservations UPDATE inventory",
    "process payment.voided.v1",
    "process inventory.released.v1",
}
"""Spans of a cancelled order."""


def order_ids(trace: Sequence[ReceivedSpan]) -> set[object]:
    """Return the orders that the spans of a trace name."""
    return {span.attributes["order.id"] for span in trace if "order.id" in span.attributes}


def secrets_of(serving: System) -> list[str]:
    """Return the passwords of the stack's servers."""
    return list(json.loads((serving.state.root / "secrets.json").read_text(encoding="utf-8")).values())


@pytest.fixture(scope="module")
def answering() -> Iterator[Collector]:
    with collector.running() as running:
        yield running


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, answering: Collector) -> Iterator[System]:
    with system(tmp_path_factory.mktemp("trace")) as created:
        created.up(OTEL_EXPORTER_OTLP_ENDPOINT=answering.endpoint).serves()
        yield created


def place(serving: System, sku: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Place an order, wait until it is settled, and return the answer to the POST."""
    order = {"userId": "u-1", "items": [{"sku": sku, "qty": 1, "price": 1}], "amount": 1, "currency": "USD"}
    answer = httpx.post(f"{serving.base_url}/orders", json=order, headers=headers, timeout=10)
    assert answer.status_code == 201, answer.text
    address = f"{serving.base_url}/orders/{answer.json()['orderId']}"
    wait_until(lambda: httpx.get(address, timeout=10).status_code == 200, 30, "the order settles")
    return answer


def arrived(answering: Collector, trace_id: str, names: set[str]) -> list[ReceivedSpan]:
    """Wait until the trace has spans of these names and all their parents. Return its spans, the earliest first."""

    def complete(_: Sequence[ReceivedSpan]) -> bool:
        trace = answering.trace(trace_id)
        return names | {"POST /orders"} <= {span.name for span in trace} and len(roots(trace)) == 1

    answering.wait_for(complete, 30, f"the trace is one tree with {sorted(names)}")
    return answering.trace(trace_id)


def test_the_trace_of_a_confirmed_order_is_one_tree_over_all_services(serving: System, answering: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "tracestate": "vendor=1"}
    answer = place(serving, "SKU-1", headers)
    trace = arrived(answering, TRACE, {"process inventory.reserved.v1", "send order.updated.v1"})

    (root,) = roots(trace)
    assert (root.service, root.kind, root.name, root.parent_id) == ("api-gateway", "SERVER", "POST /orders", CLIENT)
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{root.span_id}-01"
    assert root.attributes["http.response.status_code"] == 201
    assert {span.service for span in trace} == set(SERVICES)
    assert order_ids(trace) == {answer.json()["orderId"]}
    assert {span.tracestate for span in trace} == {"vendor=1"}
    assert all(span.error is None for span in trace)

    by_id = {span.span_id: span for span in trace}
    parents = {(span.service, span.name, by_id[span.parent_id].name) for span in trace if span is not root}
    assert parents >= STEPS
    # The record that changes the order depends on the order in which order-service reads them.
    deletes = [parent for service, name, parent in parents if (service, name) == ("order-service", "EVAL delete")]
    assert deletes
    assert set(deletes) <= {"process inventory.reserved.v1", "process payment.authorized.v1"}
    for span in trace:
        if system_name := span.attributes.get("db.system.name"):
            assert span.kind == "CLIENT"
            assert span.attributes["db.query.summary"] == span.name
            assert span.attributes["server.address"] == "127.0.0.1"
            assert span.attributes["db.namespace"] == {"postgresql": "orders", "redis": "0"}[str(system_name)]
            assert int(span.attributes["batch.size"]) >= 1
        assert not any(secret in str(span.attributes) for secret in secrets_of(serving))
        if span.kind == "CONSUMER":
            sent = by_id[span.parent_id]
            assert sent.kind == "PRODUCER"
            for name in ("event.type", "kafka.topic", "messaging.destination.name"):
                assert span.attributes[name] == sent.attributes[name]

    def batches(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
        return [
            span
            for span in spans
            if span.name == "inventory-worker batch" and any(linked == TRACE for linked, _ in span.links)
        ]

    answering.wait_for(lambda spans: bool(batches(spans)), 30, "the span of the batch that reserved the stock")
    (batch,) = batches(answering.spans)
    assert batch.trace_id != TRACE
    assert by_id[batch.links[0][1]].name == "process payment.authorized.v1"


def test_the_compensation_of_a_failed_order_is_in_its_trace(serving: System, answering: Collector) -> None:
    answer = place(serving, "NO-SUCH-SKU")
    trace_id = answer.headers["traceresponse"].split("-")[1]
    trace = arrived(
        answering,
        trace_id,
        {"process inventory.failed.v1", "process order.aborted.v1", "process payment.voided.v1"},
    )
    assert roots(trace)[0].parent_id == ""
    assert order_ids(trace) == {answer.json()["orderId"]}
    assert {"POST /v1/payments/{key}/void", "void payment"} & {span.name for span in trace}


def test_a_cancel_links_to_the_trace_of_its_order_and_has_its_compensation(
    serving: System, answering: Collector
) -> None:
    placed = place(serving, "SKU-1")
    order_id = placed.json()["orderId"]
    cancelled = httpx.post(f"{serving.base_url}/orders/{order_id}/cancel", timeout=10)
    assert cancelled.status_code == 202
    cancel = cancelled.headers["traceresponse"].split("-")[1]

    def complete(_: Sequence[ReceivedSpan]) -> bool:
        trace = answering.trace(cancel)
        return {span.name for span in trace} >= COMPENSATION and len(roots(trace)) == 1

    answering.wait_for(complete, 30, f"the trace of the cancel has {sorted(COMPENSATION)}")
    (root,) = roots(answering.trace(cancel))
    assert root.name == "POST /orders/{order_id}/cancel"
    _, trace_id, span_id, _ = placed.headers["traceresponse"].split("-")
    assert root.links == ((trace_id, span_id),)
    assert order_ids(answering.trace(cancel)) == {order_id}


def test_a_collector_that_hangs_delays_no_order_and_no_stop(serving: System, answering: Collector) -> None:
    up = serving.running
    assert up is not None
    answering.behaviour = "hangs"
    before = len(answering.requests)
    place(serving, "SKU-1")
    wait_until(lambda: len(answering.requests) > before, 10, "a request to the collector hangs")
    place(serving, "SKU-1")
    up.interrupt()
    assert up.ends() == 0
    logs = [path.read_text(encoding="utf-8") for path in Path(serving.state.logs).glob("*.log")]
    assert not any("drain_timeout" in text for text in logs)
