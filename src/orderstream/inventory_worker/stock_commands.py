"""The stock commands of an operator. They change the units that inventory-worker can reserve."""

from msgspec import UNSET, Struct, UnsetType

from orderstream.domain.limits import UNITS_MAX
from orderstream.inventory_worker.handler import SQL
from orderstream.postgres.connect import Connection


class StockError(Exception):
    """The command failed and changed nothing."""


class UnknownSkuError(StockError):
    """The SKU does not exist."""


class TooFewError(StockError):
    """The command takes away more units than are available."""


class TooManyError(StockError):
    """The SKU would have more than UNITS_MAX units."""


class ChangedError(StockError):
    """The SKU has another number of units than the operator saw. Only operators and retention change that number."""

    def __init__(self, sku: str, now: "Units | None") -> None:
        self.now = now
        has = "does not exist" if now is None else f"has {now.stocked} units ({now.available} available)"
        super().__init__(f"{sku} {has} now: it changed after you read it")


class Units(Struct, frozen=True):
    """The units of one SKU."""

    available: int
    reserved: int

    @property
    def stocked(self) -> int:
        """All units. Orders move units between available and reserved, and never change their sum."""
        return self.available + self.reserved


class Change(Struct, frozen=True):
    """What a command did. `before` is None if the SKU is new."""

    before: Units | None
    after: Units


def set_available(
    connection: Connection, sku: str, available: int, seen_stocked: int | UnsetType | None = UNSET
) -> Change:
    """Set the available units of a SKU. The reserved units stay.

    `seen_stocked` is the sum of available and reserved units that the operator saw; None if the SKU did not exist. If
    there is another sum by now, the command raises ChangedError. Raises TooManyError, and TooFewError below zero.
    """
    with connection.transaction():
        before = _locked(connection, sku)
        if seen_stocked is not UNSET and seen_stocked != (None if before is None else before.stocked):
            raise ChangedError(sku, before)
        return _write(connection, sku, before, available)


def add_available(connection: Connection, sku: str, quantity: int) -> Change:
    """Add units to a SKU, or take them away with a negative quantity.

    Raises UnknownSkuError if the SKU does not exist, TooFewError if fewer units are available, and TooManyError.
    """
    with connection.transaction():
        before = _locked(connection, sku)
        if before is None and quantity < 0:
            raise UnknownSkuError(f"there is no stock of {sku}")
        return _write(connection, sku, before, quantity + (before.available if before else 0))


def _locked(connection: Connection, sku: str) -> Units | None:
    """Lock the row of a SKU and return its units, or create the row and return None. A rollback removes a new row."""
    if connection.execute(SQL["create_sku"], {"sku": sku}).fetchone() is not None:
        return None
    row = connection.execute(SQL["lock_sku"], {"sku": sku}).fetchone()
    assert row is not None, "no session deletes a SKU"
    return Units(*row)


def _write(connection: Connection, sku: str, before: Units | None, available: int) -> Change:
    """Set the available units of a SKU whose row is locked."""
    held = before or Units(0, 0)
    if available < 0:
        raise TooFewError(f"fewer than {held.available - available} units of {sku} are available")
    after = Units(available, held.reserved)
    if after.stocked > UNITS_MAX:
        raise TooManyError(f"{sku} may have {UNITS_MAX} units, those that are reserved included")
    connection.execute(SQL["set_available"], {"sku": sku, "units": available})
    return Change(before, after)
