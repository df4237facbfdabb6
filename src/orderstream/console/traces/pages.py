"""The page of one trace."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.context import Console
from orderstream.console.orders.waterfall import waterfall
from orderstream.console.traces import reader
from orderstream.console.web.guard import now
from orderstream.console.web.pages import not_found, page_routes
from orderstream.http_server.problems import Problem

RECENT_SECONDS = 60
"""How long after its begin a trace is read again: its last spans may be on their way."""


def routes(console: Console) -> list[Route]:
    """Return the routes of this area."""
    store, templates = console.traces, console.templates

    async def shown(request: Request) -> Response:
        """GET /traces/{traceId}: the trace, or a page that says why there is none."""
        trace_id = request.path_params["trace_id"].lower()
        if not reader.is_trace_id(trace_id):
            raise not_found("trace")
        elsewhere = reader.address_elsewhere(console.settings.trace_ui_url, trace_id)
        try:
            view = await console.work(reader.trace, store, trace_id)
        except Problem:
            values = {"trace_id": trace_id, "figures": store.figures(), "elsewhere": elsewhere}
            return templates.page(request, "traces/missing.html", 404, **values)
        spans = store.spans_of(trace_id)
        linked = dict.fromkeys(link.trace_id for span in spans for link in span.links if link.trace_id != trace_id)
        return templates.page(
            request,
            "traces/trace.html",
            view=view,
            waterfall=waterfall(spans),
            linked_traces=list(linked),
            elsewhere=elsewhere,
            is_recent=now() - view.trace.started_at.timestamp() < RECENT_SECONDS,
        )

    return page_routes([("GET", "/traces/{trace_id}", shown)])
