"""The stock commands of an operator. They change the units that inventory-worker can reserve."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from orderstream.domain.limits import UNITS_MAX
from orderstream.inventory_worker.handler import SQL
from orderstream.postgres.connect import connect

NAME = "stock"


class StockError(Exception):
    """The command failed and changed nothing."""


class UnknownSkuError(StockError):
    """The SKU does not exist."""


class TooFewError(StockError):
    """The command takes away more units than are available."""


class TooManyError(StockError):
    """The SKU would have more than UNITS_MAX units."""


def set_available(postgres_url: str, sku: str, available: int) -> None:
    """Set the available units of a SKU. The reserved units stay.

    Raises TooManyError, and TooFewError below zero.
    """
    with connect(postgres_url, NAME) as connection, _bounded(sku, available):
        connection.execute(SQL["set_available"], {"sku": sku, "units": available})


def add_available(postgres_url: str, sku: str, quantity: int) -> None:
    """Add units to a SKU, or take them away with a negative quantity.

    Raises UnknownSkuError if the SKU does not exist, TooFewError if fewer units are available, and TooManyError.
    """
    with connect(postgres_url, NAME) as connection, _bounded(sku, quantity):
        if quantity >= 0:
            connection.execute(SQL["add_available"], {"sku": sku, "units": quantity})
        elif connection.execute(SQL["take_available"], {"sku": sku, "units": -quantity}).fetchone() is None:
            raise UnknownSkuError(f"there is no stock of {sku}")


@contextmanager
def _bounded(sku: str, quantity: int) -> Iterator[None]:
    """Turn the violation of a CHECK of `inventory` into an error with a message for the operator."""
    try:
        yield
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name == "inventory_units_bounded":
            raise TooManyError(f"{sku} may have {UNITS_MAX} units, those that are reserved included") from error
        raise TooFewError(f"fewer than {-quantity} units of {sku} are available") from error


def listing(postgres_url: str) -> list[tuple[str, int, int]]:
    """Return every SKU with its available and its reserved units, sorted by SKU."""
    with connect(postgres_url, NAME) as connection:
        rows = connection.execute(SQL["list_stock"]).fetchall()
    return [(sku, available, reserved) for sku, available, reserved in rows]
