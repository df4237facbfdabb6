"""The pages `/processes` and `/processes/{name}`."""

from typing import cast, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.actions.pages import recorded_action
from orderstream.console.context import Console
from orderstream.console.processes.act import Act
from orderstream.console.processes.api import NOT_LOCAL, LogQuery, SignalReason, log_of, processes, signalled
from orderstream.console.web.api import decode_query
from orderstream.console.web.forms import struct_of
from orderstream.console.web.pages import form_of, not_found, page_routes, seen_other
from orderstream.http_server.problems import Problem

_BACK = {"processes": "/processes", "play": "/play"}
"""Where a form that signals a process leads to. The form names it by its key."""


def routes(console: Console) -> list[Route]:
    """Return the routes of this area."""

    async def listed(request: Request, problem: Problem | None = None) -> Response:
        found = None if console.local is None else (await console.work(processes, console)).processes
        done = await recorded_action(console, request.query_params.get("done"))
        status = 200 if problem is None else problem.status
        values = {"processes": found, "done": done, "problem": problem, "not_local": NOT_LOCAL}
        return console.templates.page(request, "processes/list.html", status, **values)

    async def log(request: Request) -> Response:
        name = request.path_params["name"]
        query: LogQuery = decode_query(request.url.query, LogQuery)
        part = await console.work(log_of, console, name, query)
        found = (await console.work(processes, console)).processes
        process = next((process for process in found if process.name == name), None)
        if process is None:
            raise not_found("process")
        names = [process.name for process in found]
        values = {"name": name, "process": process, "part": part, "filters": query, "names": names}
        return console.templates.page(request, "processes/log.html", **values)

    async def act(request: Request) -> Response:
        verb = request.path_params["act"]
        if verb not in get_args(Act):
            raise not_found("page")
        form = await form_of(request)
        back = _BACK.get(form.get("back", ""), "/processes")
        try:
            reason = struct_of(form, SignalReason, {"reason": str}).reason
            actor, name = request.state.visitor.actor, request.path_params["name"]
            done = await console.work(signalled, console, name, cast("Act", verb), actor, reason)
        except Problem as problem:
            return await listed(request, problem)
        return seen_other(f"{back}?done={done.action_id}")

    return page_routes(
        [
            ("GET", "/processes", listed),
            ("GET", "/processes/{name}", log),
            ("POST", "/processes/{name}/{act}", act),
        ]
    )
