"""Finds orders by any of their names, for the search box: order id, trace id, idempotency key, userId, SKU.

An index serves ids and keys. Traces, users and SKUs are bounded searches of the newest orders: the result says so, and
gives the address of a list that goes on further back.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from orderstream.api_gateway.orders.idempotency import KEY_MAX_CHARACTERS
from orderstream.console.orders.filters import OrderQuery
from orderstream.console.orders.listing import SQL, OrderPage, Searched, list_orders
from orderstream.domain.limits import SKU_MAX_CHARACTERS, USER_ID_MAX_CHARACTERS
from orderstream.http_server.problems import Problem
from orderstream.postgres.connect import Connection

Q_MAX_CHARACTERS = KEY_MAX_CHARACTERS
BEGINNING_MIN_DIGITS = 4
IDS_MAX = 20
"""Orders that are shown for the beginning of an id."""

_HEX = re.compile(r"[0-9a-f]+(-[0-9a-f]*)*", re.ASCII)
_TRACEPARENT = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?", re.ASCII)
_KEY = re.compile(rf"[!-~]{{1,{KEY_MAX_CHARACTERS}}}", re.ASCII)
_ID_DIGITS = 32

FoundBy = Literal["orderId", "beginning", "traceId", "idempotencyKey"]
ListedBy = Literal["traceId", "userId", "sku"]
OrderOfTrace = Callable[[str], str | None]


class OrderHit(Struct, frozen=True, rename="camel"):
    """An order, and the name by which it was found."""

    order_id: str
    found_by: FoundBy


class ListHit(Struct, frozen=True, rename="camel"):
    """A bounded search for the orders of a trace, a user or a SKU.

    `found` is the number of orders found, at most 2. If it is 0, `address` is a list that goes on further back.
    """

    listed_by: ListedBy
    found: int
    address: str
    searched: Searched


class SearchResult(Struct, frozen=True, rename="camel"):
    """What was found for the text `q`. `more` means that more ids have this beginning than are shown.

    `address` is the page that shows the result if there is only one: an order, or the list of a user or a SKU.
    """

    q: str
    orders: tuple[OrderHit, ...]
    more: bool
    lists: tuple[ListHit, ...]
    address: str | None


def search(connection: Connection, text: str, order_of_trace: OrderOfTrace | None = None) -> SearchResult:
    """Find the orders that have this text as a name.

    `order_of_trace` returns the order of a trace that the console has stored. Raises Problem 400 for a text that no
    order can have, and psycopg.Error.
    """
    text = text.strip()
    if not text or len(text) > Q_MAX_CHARACTERS or "\x00" in text:
        detail = f"q must have 1 to {Q_MAX_CHARACTERS} characters, and no NUL."
        raise Problem(400, "invalid-query", "The query is not valid", detail)
    hits = _by_id(connection, text.lower())
    more = len(hits) > IDS_MAX
    lists: list[ListHit] = []
    if not hits:
        hits = _by_key(connection, text)
    if not hits and (trace := _TRACEPARENT.fullmatch(text.lower())):
        hits, further = _by_trace(connection, trace[1], order_of_trace)
        lists += further
    if not hits and len(text) <= USER_ID_MAX_CHARACTERS:
        lists.append(_list(connection, "userId", OrderQuery(user_id=text, limit=2))[0])
    if not hits and len(text) <= SKU_MAX_CHARACTERS:
        lists.append(_list(connection, "sku", OrderQuery(sku=text, limit=2))[0])
    return SearchResult(text, tuple(hits[:IDS_MAX]), more, tuple(lists), _only_address(hits, lists))


def _only_address(hits: Sequence[OrderHit], lists: Sequence[ListHit]) -> str | None:
    if len(hits) == 1:
        return f"/orders/{hits[0].order_id}"
    found = [hit for hit in lists if hit.found]
    return found[0].address if not hits and len(found) == 1 else None


def _by_id(connection: Connection, text: str) -> list[OrderHit]:
    """Return the orders whose id begins with this text, at most one more than are shown. Hyphens may be left out."""
    digits = text.replace("-", "")
    if not _HEX.fullmatch(text) or not BEGINNING_MIN_DIGITS <= len(digits) <= _ID_DIGITS:
        return []
    groups = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    first = "-".join(group for group in groups if group)
    # "g" comes after every hexadecimal digit and after the hyphen.
    parameters = {"first": first, "behind": f"{first}g", "rows": IDS_MAX + 1}
    found_by: FoundBy = "orderId" if len(digits) == _ID_DIGITS else "beginning"
    return [OrderHit(order_id, found_by) for (order_id,) in connection.execute(SQL["ids_with_beginning"], parameters)]


def _by_key(connection: Connection, text: str) -> list[OrderHit]:
    if not _KEY.fullmatch(text):
        return []
    rows = connection.execute(SQL["id_of_key"], {"key": text})
    return [OrderHit(order_id, "idempotencyKey") for (order_id,) in rows]


def _by_trace(
    connection: Connection, trace_id: str, order_of_trace: OrderOfTrace | None
) -> tuple[list[OrderHit], list[ListHit]]:
    """Return the order of a trace, by the stored traces or by a search. If the search found none, return its list."""
    if order_of_trace and (order_id := order_of_trace(trace_id)):
        return [OrderHit(order_id, "traceId")], []
    further, page = _list(connection, "traceId", OrderQuery(trace_id=trace_id, limit=2))
    hits = [OrderHit(order.order_id, "traceId") for order in page.orders]
    return hits, [] if hits else [further]


def _list(connection: Connection, listed_by: ListedBy, query: OrderQuery) -> tuple[ListHit, OrderPage]:
    """Search the newest orders. Return the hit, and the page of orders."""
    page = list_orders(connection, query.wanted, limit=query.limit)
    shown = OrderQuery(user_id=query.user_id, sku=query.sku, trace_id=query.trace_id)
    further = None if page.orders else page.next
    address = shown.address("/orders", cursor=further, deep=further is not None)
    return ListHit(listed_by, len(page.orders), address, page.searched), page
