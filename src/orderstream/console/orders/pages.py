"""The pages for the list of orders and the search, and the forms that cancel and nudge an order."""

from typing import Annotated, Any
from urllib.parse import urlencode

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orderstream.console.actions.log import REASON_MAX_CHARACTERS
from orderstream.console.context import Console
from orderstream.console.orders.api import Orders
from orderstream.console.orders.cursor import to_cursor
from orderstream.console.orders.filters import REASONS, STATUSES, STUCK_SECONDS, CursorIn, OrderQuery
from orderstream.console.orders.listing import NEWER_MAX, OrderPage
from orderstream.console.orders.search import FoundBy, ListedBy
from orderstream.console.web.api import decode_query
from orderstream.console.web.pages import form_of, page_routes, seen_other
from orderstream.http_server.problems import Problem

STATUS_CHOICES = (
    ("", "Any"),
    ("PROCESSING,PAID", "Open"),
    *((status, status) for status in STATUSES),
    ("FAILED,CANCELLED", "FAILED or CANCELLED"),
)
AGE_CHOICES = (
    ("", "Any"),
    ("60", "1 minute"),
    ("900", "15 minutes"),
    ("3600", "1 hour"),
    ("86400", "1 day"),
    ("604800", "7 days"),
)
WAITING = {
    "outbox": "the relay",
    "kafka": "payment-worker",
    "payment_call": "the provider",
    "payment_retry": "the next attempt",
    "provider_pending": "the customer or bank",
    "void": "the void",
    "stock": "stock",
    "order": "order-service",
    "compensation": "compensation",
    "newer_version": "a newer version",
}
"""What an order waits for, in the words of the list."""
FOUND_BY: dict[FoundBy, str] = {
    "orderId": "its id",
    "beginning": "the beginning of its id",
    "traceId": "its trace id",
    "idempotencyKey": "its idempotency key",
}
LISTED_BY: dict[ListedBy, str] = {"traceId": "trace", "userId": "user", "sku": "SKU"}


class PageQuery(OrderQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The parameters of the page. `newest` is the newest order of the first page, for the number of newer orders."""

    newest: CursorIn | None = None


class SearchPageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The parameter of the page of the search. Without a text, the page says what can be found."""

    q: Annotated[str, Meta(max_length=1_000)] = ""


def routes(console: Console) -> list[Route]:
    """Return the routes of this area's pages."""
    orders = Orders(console)

    async def listed(request: Request) -> Response:
        query: PageQuery = decode_query(request.url.query, PageQuery)
        page = await orders.list(query)
        newer = await orders.newer(query, query.newest) if query.cursor and query.newest else 0
        return console.templates.page(request, "orders/list.html", **_list_values(query, page), newer=newer)

    async def searched(request: Request) -> Response:
        text = decode_query(request.url.query, SearchPageQuery).q.strip()
        result = await orders.search(text) if text else None
        if result is not None and result.address is not None:
            return RedirectResponse(result.address, 303)
        return console.templates.page(
            request, "orders/search.html", result=result, found_by=FOUND_BY, listed_by=LISTED_BY
        )

    async def cancelled(request: Request) -> Response:
        order_id = request.path_params["order_id"]
        done = await orders.cancel(order_id, request.state.visitor, await _reason(request))
        return seen_other(f"/orders/{done.order_id}?done={done.action_id}")

    async def nudged(request: Request) -> Response:
        order_id = request.path_params["order_id"]
        done = await orders.nudge(order_id, request.state.visitor, await _reason(request))
        return seen_other(f"/orders/{done.order_id}?done={done.action_id}")

    return page_routes(
        [
            ("GET", "/orders", listed),
            ("GET", "/search", searched),
            ("POST", "/orders/{order_id}/cancel", cancelled),
            ("POST", "/orders/{order_id}/nudge", nudged),
        ]
    )


def _list_values(query: PageQuery, page: OrderPage) -> dict[str, Any]:
    newest = query.newest
    if query.cursor is None:
        newest = to_cursor(page.orders[0].order_id) if page.orders else None
    further = None
    if page.next is not None:
        further = query.address("/orders", cursor=page.next, deep=not page.searched.complete)
        further += "&" + urlencode({"newest": newest}) if newest else ""
    return {
        "orders": page.orders,
        "searched": page.searched,
        "as_of": page.as_of,
        "filter": query,
        "is_filtered": query.wanted != OrderQuery().wanted,
        "first_page": query.address("/orders"),
        "further": further,
        "is_first": query.cursor is None,
        "newer_max": NEWER_MAX,
        "waiting": WAITING,
        "stuck_seconds": STUCK_SECONDS,
        "statuses": _with_current(STATUS_CHOICES, ",".join(query.statuses)),
        "reasons": _with_current((("", "Any"), *((reason, reason) for reason in REASONS)), query.failure_reason),
        "min_ages": _with_current(AGE_CHOICES, query.min_age_seconds, "{} s"),
        "max_ages": _with_current(AGE_CHOICES, query.max_age_seconds, "{} s"),
    }


def _with_current(
    choices: tuple[tuple[str, str], ...], current: str | int | None, name: str = "{}"
) -> tuple[tuple[str, str], ...]:
    """Return the choices of a field, and the value of the address if it is none of them, so that it is not lost."""
    value = "" if current is None else str(current)
    return choices if value in dict(choices) else (*choices, (value, name.format(value)))


async def _reason(request: Request) -> str:
    """Return the reason in a form. Raises Problem 400."""
    fields = await form_of(request)
    reason = fields.get("reason", "").strip()
    if not reason or len(reason) > REASON_MAX_CHARACTERS:
        detail = f"Give a reason of 1 to {REASON_MAX_CHARACTERS} characters. It is stored with the action."
        raise Problem(400, "invalid-form", "The reason is missing or too long", detail)
    return reason
