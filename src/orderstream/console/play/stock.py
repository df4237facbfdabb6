"""Stocks the SKUs that the play desk orders. Each change is recorded like that of an operator."""

from orderstream.console.play.orders import SOLD_OUT, STOCKED
from orderstream.console.stock.act import set_stock
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

SQL = load("orderstream.console.play")
FULL_UNITS = 1_000_000
LOW_UNITS = 100_000
"""Fewer available units than these are filled up before a run."""


def fill_up(connection: Connection, actor: str, reason: str, low_units: int = LOW_UNITS) -> int:
    """Set the available units of each SKU that has fewer than `low_units`. Return the number of changed SKUs.

    Raises StockError and psycopg.Error.
    """
    found = connection.execute(SQL["play_stock"], {"skus": [*STOCKED, SOLD_OUT]}).fetchall()
    available: dict[str, int] = dict(found)
    low = [sku for sku in STOCKED if available.get(sku, 0) < low_units]
    for sku in low:
        set_stock(connection, actor, sku, FULL_UNITS, reason=reason)
    if SOLD_OUT not in available:
        set_stock(connection, actor, SOLD_OUT, 0, reason=reason)
    return len(low)
