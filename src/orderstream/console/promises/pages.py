"""The page `/promises`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.context import Console
from orderstream.console.promises.api import StartAudit, promises, start, stop
from orderstream.console.web.forms import form_as
from orderstream.console.web.pages import page_routes, seen_other
from orderstream.http_server.problems import Problem


def routes(console: Console) -> list[Route]:
    """Return the routes of this area."""

    async def show(request: Request, problem: Problem | None = None) -> Response:
        found = await console.work(promises, console)
        status = 200 if problem is None else problem.status
        return console.templates.page(request, "promises/list.html", status, found=found, problem=problem)

    async def begin(request: Request) -> Response:
        try:
            body = await form_as(request, StartAudit, {"graceSeconds": float, "reason": str})
            await console.work(start, console, request.state.visitor.actor, body)
        except Problem as problem:
            return await show(request, problem)
        return seen_other("/promises")

    async def cancel(request: Request) -> Response:
        try:
            await console.work(stop, console, request.state.visitor.actor)
        except Problem as problem:
            return await show(request, problem)
        return seen_other("/promises")

    return page_routes(
        [
            ("GET", "/promises", show),
            ("POST", "/promises/audit", begin),
            ("POST", "/promises/audit/cancel", cancel),
        ]
    )
