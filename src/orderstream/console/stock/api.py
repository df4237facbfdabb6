"""The operations below `/api/stock`, and the calls that the pages share with them."""

from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from orderstream.console.actions.log import REASON_MAX_CHARACTERS
from orderstream.console.actions.read import RecordedAction, actions_page
from orderstream.console.context import Console
from orderstream.console.stock.act import StockChange, add_stock, set_stock
from orderstream.console.stock.read import (
    LIMIT_DEFAULT,
    LIMIT_MAX,
    Sku,
    StockPage,
    sku_named,
    stock_containing,
    stock_page,
)
from orderstream.console.stock.sku_keys import SkuError, sku_of
from orderstream.console.web.api import Call, Operation
from orderstream.domain.limits import SKU_MAX_CHARACTERS, UNITS_MAX
from orderstream.http_server.problems import Problem
from orderstream.inventory_worker.stock_commands import ChangedError, StockError, UnknownSkuError
from orderstream.postgres.connect import Connection

HISTORY_LIMIT = 100
_NO_NUL = {"pattern": "^[^\\u0000]*$"}

Text = Annotated[str, Meta(max_length=SKU_MAX_CHARACTERS, extra_json_schema=_NO_NUL)]
Reason = Annotated[str, Meta(min_length=1, max_length=REASON_MAX_CHARACTERS)]
Units = Annotated[int, Meta(ge=0, le=UNITS_MAX)]


class StockQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """What to list: the SKUs that begin with `q`, or with `match=part` those that contain it, in any case."""

    q: Text = ""
    match: Literal["start", "part"] = "start"
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT
    cursor: Annotated[Text, Meta(description="`next` of the page before.")] = ""


class SetStock(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The new number of available units. The reserved units stay.

    `expectedStocked` is the sum of available and reserved units that you saw, null for a new SKU. If the sum is another
    one by now, the answer is 409. Orders never change the sum: only operators and retention do.
    """

    available: Units
    reason: Reason
    expected_stocked: Units | UnsetType | None = UNSET


class AddStock(Struct, frozen=True, forbid_unknown_fields=True):
    """The units to add. A negative number takes units away."""

    quantity: Annotated[int, Meta(ge=-UNITS_MAX, le=UNITS_MAX)]
    reason: Reason


class SkuHistory(Struct, frozen=True):
    """One SKU, null if it does not exist, and the newest changes of operators."""

    stock: Sku | None
    actions: list[RecordedAction]
    next: int | None


def listed(console: Console, query: StockQuery) -> StockPage:
    """Return a page of the stock. Raises Problem 400."""
    if "\0" in query.q + query.cursor:
        raise _invalid("A SKU has no NUL character.")
    with console.stores.reading() as connection:
        if query.match == "part" and query.q:
            return stock_containing(connection, query.q, query.cursor, query.limit)
        return stock_page(connection, query.q, query.cursor, query.limit)


def history(console: Console, sku: str) -> SkuHistory:
    """Return one SKU with its newest changes."""
    with console.stores.reading() as connection:
        page = actions_page(connection, kind="stock", subject=sku, limit=HISTORY_LIMIT)
        return SkuHistory(sku_named(connection, sku), page.actions, page.next)


def named(key: str) -> str:
    """Return the SKU that a segment of a path stands for. Raises Problem 400."""
    try:
        return sku_of(key)
    except SkuError as error:
        raise _invalid(f"{error}.") from None


def changed(console: Console, change: Callable[[Connection], StockChange]) -> StockChange:
    """Run a change of the stock. Raises Problem 404 and 409."""
    with console.stores.acting() as connection:
        try:
            return change(connection)
        except UnknownSkuError as error:
            raise Problem(404, "not-found", "Not found", f"{error}") from error
        except ChangedError as error:
            raise Problem(409, "stock-changed", "The stock has changed", f"{error}. Nothing was changed.") from error
        except StockError as error:
            raise Problem(409, "stock-refused", "The stock was not changed", f"{error}") from error


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""

    async def page(call: Call) -> StockPage:
        return await console.work(listed, console, call.query)

    async def one_sku(call: Call) -> SkuHistory:
        return await console.work(history, console, named(call.path["key"]))

    async def set_units(call: Call) -> StockChange:
        sku, actor, body = named(call.path["key"]), call.visitor.actor, call.body
        return await console.work(
            changed,
            console,
            lambda connection: set_stock(
                connection, actor, sku, body.available, reason=body.reason, seen_stocked=body.expected_stocked
            ),
        )

    async def add_units(call: Call) -> StockChange:
        sku, actor, body = named(call.path["key"]), call.visitor.actor, call.body
        return await console.work(
            changed, console, lambda connection: add_stock(connection, actor, sku, body.quantity, reason=body.reason)
        )

    of_sku = "/api/stock/{key}"
    return [
        Operation("GET", "/api/stock", "List the stock in the order of the SKUs", StockPage, page, query=StockQuery),
        Operation("GET", of_sku, "Show one SKU with the changes of operators", SkuHistory, one_sku),
        Operation(
            "POST",
            f"{of_sku}/set",
            "Set the available units of a SKU",
            StockChange,
            set_units,
            body=SetStock,
            acts=True,
        ),
        Operation("POST", f"{of_sku}/add", "Add units to a SKU", StockChange, add_units, body=AddStock, acts=True),
    ]


def _invalid(detail: str) -> Problem:
    return Problem(400, "invalid-sku", "The SKU is not valid", detail)
