"""GET /api/orders/{order_id}, and the events of one topic from an offset on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from orderstream.api_gateway.orders.order_id import canonical
from orderstream.console.context import Console
from orderstream.console.orders.live import live_of
from orderstream.console.orders.story import (
    MoreEvents,
    OrderStory,
    Sources,
    more_events,
    order_story,
)
from orderstream.console.orders.waiting import Rules
from orderstream.console.web.api import Call, Operation
from orderstream.console.web.pages import not_found
from orderstream.domain.events import TOPICS

CHECK_SECONDS = 10.0
"""How often the console looks whether the consumer of the searches is idle."""


class MoreQuery(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Where to go on: a topic of the saga, without its prefix, and the first offset."""

    topic: Literal[TOPICS]  # type: ignore[valid-type]
    offset: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


def sources_of(console: Console) -> Sources:
    """Return where this console finds the story of an order."""
    return Sources(
        console.stores,
        Rules.of(console.settings),
        console.record_search,
        console.traces,
        console.local.state.logs if console.local else None,
        lambda order_id: live_of(console.flow.snapshot(), order_id),
    )


def order_id_of(text: str) -> str:
    """Return the order id of a path. Raises Problem 404 if it is not one, as the gateway does."""
    if (order_id := canonical(text)) is None:
        raise not_found("order")
    return order_id


@contextlib.asynccontextmanager
async def running(console: Console) -> AsyncIterator[None]:
    """Close the consumer of the searches when it is idle, and at the end."""

    async def close_when_idle() -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await asyncio.to_thread(console.record_search.close_if_idle)

    task = asyncio.create_task(close_when_idle())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(console.record_search.close)


def operations(console: Console) -> list[Operation]:
    """Return the operations about one order."""
    sources = sources_of(console)

    async def show(call: Call) -> OrderStory:
        order = await console.work(order_story, sources, order_id_of(call.path["order_id"]))
        if order is None:
            raise not_found("order")
        return order

    async def more(call: Call) -> MoreEvents:
        order_id = order_id_of(call.path["order_id"])
        return await console.work(more_events, sources, order_id, call.query.topic, call.query.offset)

    return [
        Operation("GET", "/api/orders/{order_id}", "The whole story of one order", OrderStory, show),
        Operation(
            "GET",
            "/api/orders/{order_id}/events",
            "The events of an order in one topic, from an offset on",
            MoreEvents,
            more,
            query=MoreQuery,
        ),
    ]
