"""The operation `GET /api/actions`."""

from typing import Annotated

from msgspec import Meta, Struct

from orderstream.console.actions.read import LIMIT_DEFAULT, LIMIT_MAX, ActionsPage, actions_page
from orderstream.console.context import Console
from orderstream.console.web.api import Call, Operation


class ActionsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The filters of the list of actions. All of them must match."""

    kind: Annotated[str, Meta(max_length=100, description="A kind, or its part before the dot: `stock`.")] | None = None
    subject: Annotated[str, Meta(max_length=500)] | None = None
    actor: Annotated[str, Meta(max_length=200)] | None = None
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT
    cursor: Annotated[int, Meta(ge=1, le=2**63 - 1, description="`next` of the page before.")] | None = None


def read(console: Console, query: ActionsQuery) -> ActionsPage:
    """Return a page of actions."""
    with console.stores.reading() as connection:
        return actions_page(
            connection,
            kind=query.kind,
            subject=query.subject,
            actor=query.actor,
            before=query.cursor,
            limit=query.limit,
        )


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""

    async def listed(call: Call) -> ActionsPage:
        return await console.work(read, console, call.query)

    summary = "List what operators did, newest first"
    return [Operation("GET", "/api/actions", summary, ActionsPage, listed, query=ActionsQuery)]
