"""The stock commands: how units come into `inventory` beside the worker's own moves."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from orderstream.domain.limits import UNITS_MAX
from orderstream.inventory_worker.handler import SQL
from orderstream.postgres.connect import connect

NAME = "stock"


class StockError(Exception):
    """The command cannot be carried out, and nothing was changed."""


class UnknownSkuError(StockError):
    """Nothing is known of the SKU."""


class TooFewError(StockError):
    """Fewer units are available than are to be taken away."""


class TooManyError(StockError):
    """There would be more units of a SKU than UNITS_MAX."""


def set_available(postgres_url: str, sku: str, available: int) -> None:
    """Set how many units of a SKU can be reserved from now on; what is reserved already stays.

    Raises TooManyError; TooFewError below zero.
    """
    with connect(postgres_url, NAME) as connection, _bounded(sku, available):
        connection.execute(SQL["set_available"], {"sku": sku, "units": available})


def add_available(postgres_url: str, sku: str, quantity: int) -> None:
    """Add units to a SKU, or take them away with a negative quantity.

    Raises UnknownSkuError when there is nothing to take from, TooFewError when too little is left, TooManyError.
    """
    with connect(postgres_url, NAME) as connection, _bounded(sku, quantity):
        if quantity >= 0:
            connection.execute(SQL["add_available"], {"sku": sku, "units": quantity})
        elif connection.execute(SQL["take_available"], {"sku": sku, "units": -quantity}).fetchone() is None:
            raise UnknownSkuError(f"there is no stock of {sku}")


@contextmanager
def _bounded(sku: str, quantity: int) -> Iterator[None]:
    """Say in a stock command's words which bound of its row a change would break."""
    try:
        yield
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name == "inventory_units_bounded":
            raise TooManyError(f"{sku} may have {UNITS_MAX} units, those that are reserved included") from error
        raise TooFewError(f"fewer than {-quantity} units of {sku} are available") from error


def listing(postgres_url: str) -> list[tuple[str, int, int]]:
    """Return every SKU with its available and its reserved units, in the order of the SKUs."""
    with connect(postgres_url, NAME) as connection:
        rows = connection.execute(SQL["list_stock"]).fetchall()
    return [(sku, available, reserved) for sku, available, reserved in rows]
