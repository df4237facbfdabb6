"""The stock commands: how units come into `inventory` beside the worker's own moves."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from orderstream.inventory_worker.handler import SQL
from orderstream.postgres.connect import connect

NAME = "stock"


class UnknownSkuError(Exception):
    """Nothing is known of the SKU."""


class TooFewError(Exception):
    """Fewer units are available than are to be taken away."""


def set_available(postgres_url: str, sku: str, available: int) -> None:
    """Set how many units of a SKU can be reserved from now on; what is reserved already stays.

    Raises psycopg.errors.CheckViolation below zero.
    """
    with connect(postgres_url, NAME) as connection:
        connection.execute(SQL["set_available"], {"sku": sku, "units": available})


def add_available(postgres_url: str, sku: str, quantity: int) -> None:
    """Add units to a SKU, or take them away with a negative quantity.

    Raises UnknownSkuError when there is nothing to take from, TooFewError when too little is left.
    """
    with connect(postgres_url, NAME) as connection, _enough(sku, quantity):
        if quantity >= 0:
            connection.execute(SQL["add_available"], {"sku": sku, "units": quantity})
        elif connection.execute(SQL["take_available"], {"sku": sku, "units": -quantity}).fetchone() is None:
            raise UnknownSkuError(f"there is no stock of {sku}")


@contextmanager
def _enough(sku: str, quantity: int) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.CheckViolation as error:
        raise TooFewError(f"fewer than {-quantity} units of {sku} are available") from error


def listing(postgres_url: str) -> list[tuple[str, int, int]]:
    """Return every SKU with its available and its reserved units, in the order of the SKUs."""
    with connect(postgres_url, NAME) as connection:
        rows = connection.execute(SQL["list_stock"]).fetchall()
    return [(sku, available, reserved) for sku, available, reserved in rows]
