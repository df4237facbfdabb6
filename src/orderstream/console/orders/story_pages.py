"""The page of one order, its slow part, and the events of one topic from an offset on."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.context import Console
from orderstream.console.orders.events import EventView
from orderstream.console.orders.stored import ActionRow
from orderstream.console.orders.story import (
    Happened,
    Now,
    limits,
    more_events,
    order_now,
    story_of,
    timeline_of,
    what_happened,
)
from orderstream.console.orders.story_api import MoreQuery, order_id_of, sources_of
from orderstream.console.traces.reader import address_elsewhere
from orderstream.console.web.api import decode_query, encode
from orderstream.console.web.pages import not_found, page_routes, seen_other

EVENTS_PER_PAGE = 50
DATA_MAX_CHARACTERS = 4_000
"""Characters of one event's data that the page shows. The API returns more."""
RAW_MAX_CHARACTERS = 20_000
"""Characters of the raw answer of the API that the page shows."""
LIVE_SECONDS = 10
"""How long after its last change a settled order is still read again: its last events may be on their way."""


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of the page. With `all`, the page is whole at once. `page` is that of the events, from 1.

    `done` is the id of an action that has just been done.
    """

    all: bool = False
    page: Annotated[int, Meta(ge=1, le=1_000)] = 1
    done: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None


def routes(console: Console) -> list[Route]:
    """Return the routes of the pages about one order."""
    sources = sources_of(console)

    def read(order_id: str, *, is_whole: bool) -> tuple[Now, Happened | None]:
        now = order_now(sources, order_id)
        if now is None:
            raise not_found("order")
        return now, what_happened(sources, now.stored) if is_whole else None

    async def shown(request: Request) -> Response:
        query: PageQuery = decode_query(request.url.query, PageQuery)
        order_id = order_id_of(request.path_params["order_id"])
        now, happened = await console.work(read, order_id, is_whole=query.all)
        return console.templates.page(
            request,
            "orders/order.html",
            done=query.done,
            done_text=_done_text(now.stored.actions, query.done),
            **page_values(console, query, now, happened),
        )

    async def slow(request: Request) -> Response:
        """Return the part of the page that needs Kafka and the log files. Without htmx, lead to the whole page."""
        query: PageQuery = decode_query(request.url.query, PageQuery)
        order_id = order_id_of(request.path_params["order_id"])
        if request.headers.get("hx-request") != "true":
            return seen_other(f"/orders/{order_id}?all=true&page={query.page}")
        now, happened = await console.work(read, order_id, is_whole=True)
        return console.templates.page(request, "orders/_story.html", **page_values(console, query, now, happened))

    async def more(request: Request) -> Response:
        query: MoreQuery = decode_query(request.url.query, MoreQuery)
        order_id = order_id_of(request.path_params["order_id"])
        found = await console.work(more_events, sources, order_id, query.topic, query.offset)
        return console.templates.page(
            request,
            "orders/events.html",
            order_id=order_id,
            topic=query.topic,
            offset=query.offset,
            found=found,
            events=[(number, event, *_data(event)) for number, event in enumerate(found.events)],
        )

    return page_routes(
        [
            ("GET", "/orders/{order_id}", shown),
            ("GET", "/orders/{order_id}/story", slow),
            ("GET", "/orders/{order_id}/events", more),
        ]
    )


def _done_text(actions: Sequence[ActionRow], action_id: int | None) -> str:
    """Return what an action has changed and what happens then, as it is stored with the action."""
    result = next((action.result for action in actions if action.action_id == action_id and action.result), "{}")
    text = msgspec.json.decode(result, type=dict[str, Any]).get("text")
    return text if isinstance(text, str) else "The order changes when the services have taken it."


def page_values(console: Console, query: PageQuery, now: Now, happened: Happened | None) -> dict[str, Any]:
    """Return what the templates show."""
    order = now.stored.order
    quiet_seconds = (order.now - order.updated_at).total_seconds()
    values: dict[str, Any] = {
        "order": order,
        "payment": now.stored.payment,
        "reservation": now.stored.reservation,
        "lines": now.stored.lines,
        "dead_letters": now.stored.dead_letters,
        "waiting": now.waiting_for,
        "is_live": now.waiting_for is not None or quiet_seconds < LIVE_SECONDS,
        "timeline": timeline_of(now, happened),
        "happened": happened,
        "page": query.page,
        "trace_address": address_elsewhere(console.settings.trace_ui_url, order.trace_id or ""),
    }
    if happened is None:
        return values
    begin = (query.page - 1) * EVENTS_PER_PAGE
    numbered = list(enumerate(happened.events))
    story = story_of(now, happened)
    raw = msgspec.json.format(encode(story), indent=2).decode()
    return values | {
        "limits": limits(happened),
        "events": [(number, event, *_data(event)) for number, event in numbered[begin : begin + EVENTS_PER_PAGE]],
        "events_total": len(numbered),
        "events_begin": begin,
        "pages": max(1, -(-len(numbered) // EVENTS_PER_PAGE)),
        "raw": raw[:RAW_MAX_CHARACTERS],
        "raw_left_out": max(0, len(raw) - RAW_MAX_CHARACTERS),
    }


def _data(event: EventView) -> tuple[str, str]:
    """Return the data of an event as text, and what is not shown of it."""
    text = event.text or ""
    if event.data is not None:
        text = msgspec.json.format(encode(event.data), indent=2).decode()
    more = (event.cut_from or len(text)) - DATA_MAX_CHARACTERS
    return text[:DATA_MAX_CHARACTERS], f"… {more:,} more characters" if more > 0 else ""
