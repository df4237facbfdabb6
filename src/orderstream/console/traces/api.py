"""The operations of the API about traces."""

from typing import Annotated

from msgspec import Meta, Struct

from orderstream.console.context import Console
from orderstream.console.traces import reader
from orderstream.console.traces.reader import TracesOfOrder, TraceView
from orderstream.console.web.api import Call, Operation


class OfOrder(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Which traces to return."""

    order_id: Annotated[str, Meta(min_length=1, max_length=100)]


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""
    store = console.traces

    async def one(call: Call) -> TraceView:
        return await console.work(reader.trace, store, call.path["traceId"].lower())

    async def of_order(call: Call) -> TracesOfOrder:
        return await console.work(reader.traces_of_order, store, call.query.order_id)

    return [
        Operation("GET", "/api/traces", "Find the traces of an order", TracesOfOrder, of_order, query=OfOrder),
        Operation("GET", "/api/traces/{traceId}", "Show a trace with its spans", TraceView, one),
    ]
