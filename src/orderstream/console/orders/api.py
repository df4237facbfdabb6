"""The operations of the API for the list of orders, the search, and the two actions on an order."""

from typing import Annotated

from msgspec import Meta, Struct

from orderstream.api_gateway.orders.order_id import canonical
from orderstream.console.actions.log import REASON_MAX_CHARACTERS
from orderstream.console.context import Console
from orderstream.console.orders.cancelling import Cancelled, cancel_order
from orderstream.console.orders.cursor import from_cursor
from orderstream.console.orders.filters import OrderQuery
from orderstream.console.orders.listing import OrderPage, count_newer, list_orders
from orderstream.console.orders.nudging import Nudged, nudge_order
from orderstream.console.orders.search import Q_MAX_CHARACTERS, SearchResult, search
from orderstream.console.web.access import Visitor
from orderstream.console.web.api import Call, Operation
from orderstream.http_server import problems


class Reason(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an action: why the operator does it. It is stored with the action."""

    reason: Annotated[str, Meta(min_length=1, max_length=REASON_MAX_CHARACTERS, pattern=r"\S")]


class SearchQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The parameter of the search: an order id or its beginning, a trace id, an idempotency key, a userId or a SKU."""

    q: Annotated[str, Meta(min_length=1, max_length=Q_MAX_CHARACTERS)]


class Orders:
    """The reads and actions of this area for one console. The API and the pages share them. Each may raise Problem."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def list(self, query: OrderQuery) -> OrderPage:
        """Return a page of the list."""

        def read() -> OrderPage:
            with self._console.stores.reading() as connection:
                return list_orders(connection, query.wanted, limit=query.limit, cursor=query.cursor, deep=query.deep)

        return await self._console.work(read)

    async def newer(self, query: OrderQuery, newest: str) -> int:
        """Return how many matching orders are newer than the order of the cursor `newest`."""

        def read() -> int:
            with self._console.stores.reading() as connection:
                return count_newer(connection, query.wanted, from_cursor(newest))

        return await self._console.work(read)

    async def search(self, text: str) -> SearchResult:
        """Find orders by any of their names."""

        def read() -> SearchResult:
            with self._console.stores.reading() as connection:
                return search(connection, text, self._order_of_trace)

        return await self._console.work(read)

    def _order_of_trace(self, trace_id: str) -> str | None:
        """Return the order of a trace that the console has received."""
        spans = self._console.traces.spans_of(trace_id)
        return next((span.order_id for span in spans if span.order_id is not None), None)

    async def cancel(self, order_id: str, visitor: Visitor, reason: str) -> Cancelled:
        """Cancel an order through the gateway."""

        def act() -> Cancelled:
            with self._console.stores.acting() as connection:
                base_url = self._console.settings.base_url
                return cancel_order(connection, base_url, known_id(order_id), actor=visitor.actor, reason=reason)

        return await self._console.work(act)

    async def nudge(self, order_id: str, visitor: Visitor, reason: str) -> Nudged:
        """Make the next check and attempt of an order due at once."""

        def act() -> Nudged:
            with self._console.stores.acting() as connection:
                return nudge_order(connection, known_id(order_id), actor=visitor.actor, reason=reason)

        return await self._console.work(act)


def known_id(text: str) -> str:
    """Return an order id as it is stored. Raises Problem 404 if the text is no UUID."""
    order_id = canonical(text)
    if order_id is None:
        raise problems.not_found("order")
    return order_id


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""
    orders = Orders(console)

    async def listed(call: Call) -> OrderPage:
        return await orders.list(call.query)

    async def searched(call: Call) -> SearchResult:
        return await orders.search(call.query.q)

    async def cancelled(call: Call) -> Cancelled:
        return await orders.cancel(call.path["order_id"], call.visitor, call.body.reason)

    async def nudged(call: Call) -> Nudged:
        return await orders.nudge(call.path["order_id"], call.visitor, call.body.reason)

    return [
        Operation("GET", "/api/orders", "List orders, newest first.", OrderPage, listed, OrderQuery),
        Operation(
            "GET", "/api/search", "Find orders by id, trace, key, user or SKU.", SearchResult, searched, SearchQuery
        ),
        Operation(
            "POST",
            "/api/orders/{order_id}/cancel",
            "Cancel an order. It is compensated in the background.",
            Cancelled,
            cancelled,
            body=Reason,
            acts=True,
        ),
        Operation(
            "POST",
            "/api/orders/{order_id}/nudge",
            "Make the next check and the next attempt of an order due at once.",
            Nudged,
            nudged,
            body=Reason,
            acts=True,
        ),
    ]
