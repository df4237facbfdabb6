"""The pages `/stock` and `/stock/{key}`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.actions.pages import recorded_action
from orderstream.console.context import Console
from orderstream.console.stock.act import add_stock, set_stock
from orderstream.console.stock.api import AddStock, SetStock, StockQuery, changed, history, listed, named
from orderstream.console.stock.sku_keys import SkuError, shell_word, sku_key, valid_sku
from orderstream.console.web.api import decode_query
from orderstream.console.web.forms import form_as
from orderstream.console.web.pages import form_of, page_routes, seen_other
from orderstream.http_server.problems import Problem


def routes(console: Console) -> list[Route]:
    """Return the routes of this area."""

    async def stock(request: Request) -> Response:
        query: StockQuery = decode_query(request.url.query, StockQuery)
        page = await console.work(listed, console, query)
        return console.templates.page(request, "stock/list.html", page=page, filters=query, problem=None)

    async def go_to(request: Request) -> Response:
        """Go to the page of the SKU in the form, which may be a new one."""
        try:
            return seen_other(f"/stock/{sku_key(valid_sku((await form_of(request)).get('sku', '')))}")
        except SkuError as error:
            page = await console.work(listed, console, StockQuery())
            values = {"page": page, "filters": StockQuery(), "problem": f"{error}."}
            return console.templates.page(request, "stock/list.html", 400, **values)

    async def show(request: Request, problem: Problem | None = None) -> Response:
        sku = named(request.path_params["key"])
        found = await console.work(history, console, sku)
        done = await recorded_action(console, request.query_params.get("done"))
        status = 200 if problem is None else problem.status
        values = {"sku": sku, "key": sku_key(sku), "found": found, "done": done, "problem": problem}
        shell = _twins(request, sku, None if found.stock is None else found.stock.stocked)
        return console.templates.page(request, "stock/sku.html", status, shell=shell, **values)

    async def set_units(request: Request) -> Response:
        sku, actor = named(request.path_params["key"]), request.state.visitor.actor
        try:
            body = await form_as(request, SetStock, {"available": int, "reason": str, "expectedStocked": _units})
            change = await console.work(
                changed,
                console,
                lambda connection: set_stock(
                    connection, actor, sku, body.available, reason=body.reason, seen_stocked=body.expected_stocked
                ),
            )
        except Problem as problem:
            return await show(request, problem)
        return seen_other(f"/stock/{sku_key(sku)}?done={change.action_id}")

    async def add_units(request: Request) -> Response:
        sku, actor = named(request.path_params["key"]), request.state.visitor.actor
        try:
            body = await form_as(request, AddStock, {"quantity": int, "reason": str})
            change = await console.work(
                changed,
                console,
                lambda connection: add_stock(connection, actor, sku, body.quantity, reason=body.reason),
            )
        except Problem as problem:
            return await show(request, problem)
        return seen_other(f"/stock/{sku_key(sku)}?done={change.action_id}")

    return page_routes(
        [
            ("GET", "/stock", stock),
            ("POST", "/stock", go_to),
            ("GET", "/stock/{key}", show),
            ("POST", "/stock/{key}/set", set_units),
            ("POST", "/stock/{key}/add", add_units),
        ]
    )


def _twins(request: Request, sku: str, stocked: int | None) -> dict[str, str]:
    """Return the same actions as shell commands, with one unit. The shell passes every SKU on as it is."""
    address, name = f"{request.base_url}api/stock/{sku_key(sku)}", shell_word(sku)

    def curl(verb: str, body: str) -> str:
        head = "authorization: Bearer $(cat .orderstream/operator-token)"
        return f"curl -H \"{head}\" \\\n  --json '{body}' {address}/{verb}"

    return {
        "add_cli": f"orderstream stock add --reason=... -- {name} 1",
        "set_cli": f"orderstream stock set --reason=... -- {name} 1",
        "add_curl": curl("add", '{"quantity": 1, "reason": "..."}'),
        "set_curl": curl(
            "set", f'{{"available": 1, "reason": "...", "expectedStocked": {"null" if stocked is None else stocked}}}'
        ),
    }


def _units(text: str) -> int | None:
    """Return the units that the form was shown with. Empty: the SKU did not exist."""
    return int(text) if text else None
