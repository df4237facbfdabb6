"""Changes the stock for an operator, and records each change. The API, the pages and the CLI use it."""

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict

from orderstream.console.actions.log import Action, Outcome, recorded
from orderstream.inventory_worker.stock_commands import Change, add_available, set_available
from orderstream.postgres.connect import Connection

SET, ADD = "stock.set", "stock.add"


class UnitsView(Struct, frozen=True):
    """The units of a SKU."""

    available: int
    reserved: int


class StockChange(Struct, frozen=True, rename="camel"):
    """A change of the stock, and the action that records it. `before` is null if the SKU is new."""

    action_id: int
    sku: str
    before: UnitsView | None
    after: UnitsView


def set_stock(
    connection: Connection,
    actor: str,
    sku: str,
    available: int,
    *,
    reason: str,
    seen_stocked: int | UnsetType | None = UNSET,
) -> StockChange:
    """Set the available units of a SKU (`set_available`). Raises StockError and psycopg.Error."""
    seen = {} if seen_stocked is UNSET else {"expectedStocked": seen_stocked}
    with recorded(connection, Action(SET, sku, actor, reason, {"available": available, **seen})) as outcome:
        return _result(outcome, sku, set_available(connection, sku, available, seen_stocked))


def add_stock(connection: Connection, actor: str, sku: str, quantity: int, *, reason: str) -> StockChange:
    """Add units to a SKU (`add_available`). Raises StockError and psycopg.Error."""
    with recorded(connection, Action(ADD, sku, actor, reason, {"quantity": quantity})) as outcome:
        return _result(outcome, sku, add_available(connection, sku, quantity))


def _result(outcome: Outcome, sku: str, change: Change) -> StockChange:
    """Return a change, and record its numbers."""
    before = None if change.before is None else UnitsView(**asdict(change.before))
    after = UnitsView(**asdict(change.after))
    outcome.result = {
        "availableBefore": None if before is None else before.available,
        "availableAfter": after.available,
        "reserved": after.reserved,
    }
    return StockChange(outcome.action_id, sku, before, after)
