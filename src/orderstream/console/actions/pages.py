"""The page `/actions`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.actions.api import ActionsQuery, read
from orderstream.console.actions.read import RecordedAction, action_with_id
from orderstream.console.context import Console
from orderstream.console.web.api import decode_query
from orderstream.console.web.pages import not_found, page_routes
from orderstream.http_server.problems import Problem

_DIGITS_MAX = 18


def routes(console: Console) -> list[Route]:
    """Return the routes of this area."""

    async def listed(request: Request) -> Response:
        query: ActionsQuery = decode_query(request.url.query, ActionsQuery)
        page = await console.work(read, console, query)
        return console.templates.page(request, "actions/list.html", page=page, filters=query)

    async def shown(request: Request) -> Response:
        action = await recorded_action(console, request.path_params["id"])
        if action is None:
            raise not_found("action")
        return console.templates.page(request, "actions/show.html", action=action)

    return page_routes([("GET", "/actions", listed), ("GET", "/actions/{id}", shown)])


async def recorded_action(console: Console, text: str | None) -> RecordedAction | None:
    """Return the action whose id is in the address of a page. None if there is none, or if it cannot be read now."""
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
        return None

    def find(action_id: int) -> RecordedAction | None:
        with console.stores.reading() as connection:
            return action_with_id(connection, action_id)

    try:
        return await console.work(find, int(text))
    except Problem:
        # The page that shows it needs no database otherwise, and an operator may just have killed PostgreSQL.
        return None
