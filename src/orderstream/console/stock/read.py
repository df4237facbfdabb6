"""Reads the stock for the console and the CLI: page by page in the order of the bytes of the SKUs, with two searches.

The search by the first characters uses an index and has no limit. The search by any part of a SKU looks at a limited
number of SKUs, and says where it stopped.
"""

from msgspec import Struct

from orderstream.console.stock.sku_keys import sku_key
from orderstream.domain.limits import SKU_MAX_CHARACTERS
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
LOOKED_MAX = 20_000
"""SKUs that one search by any part of a SKU looks at."""

SQL = load("orderstream.console.stock")
_LAST_CHARACTER = 0x10FFFF
_END = chr(_LAST_CHARACTER) * (SKU_MAX_CHARACTERS + 1)
_SURROGATES = range(0xD800, 0xE000)


class Sku(Struct, frozen=True, rename="camel"):
    """The units of one SKU. `key` stands for the SKU in a path. `stocked` is the sum of available and reserved."""

    sku: str
    key: str
    available: int
    reserved: int
    stocked: int


class StockPage(Struct, frozen=True, rename="camel"):
    """Some SKUs. `next` is the cursor of the next page, null at the end.

    `stoppedAfter` is the number of SKUs after which a search stopped before the end of the stock, otherwise null.
    """

    stock: list[Sku]
    next: str | None
    stopped_after: int | None = None


def stock_page(connection: Connection, prefix: str = "", cursor: str = "", limit: int = LIMIT_DEFAULT) -> StockPage:
    """Return the SKUs after `cursor` that begin with `prefix`."""
    parameters = {"first": prefix, "after": cursor, "end": _end_of(prefix), "limit": limit + 1}
    found = [_sku(*row) for row in connection.execute(SQL["stock_page"], parameters)]
    return StockPage(found[:limit], found[limit - 1].sku if len(found) > limit else None)


def stock_containing(connection: Connection, text: str, cursor: str = "", limit: int = LIMIT_DEFAULT) -> StockPage:
    """Return the SKUs after `cursor` that contain `text` in any case, among the next LOOKED_MAX SKUs."""
    parameters = {"text": text, "after": cursor, "looked": LOOKED_MAX, "limit": limit + 1}
    rows = connection.execute(SQL["stock_containing"], parameters).fetchall()
    looked, last = rows[0][:2]
    found = [_sku(*row[2:]) for row in rows if row[2] is not None]
    if len(found) > limit:
        return StockPage(found[:limit], found[limit - 1].sku)
    return StockPage(found, last, looked) if looked == LOOKED_MAX else StockPage(found, None)


def sku_named(connection: Connection, sku: str) -> Sku | None:
    """Return the units of one SKU, or None if it does not exist."""
    row = connection.execute(SQL["stock_of_sku"], {"sku": sku}).fetchone()
    return None if row is None else _sku(*row)


def _sku(sku: str, available: int, reserved: int) -> Sku:
    return Sku(sku, sku_key(sku), available, reserved, available + reserved)


def _end_of(prefix: str) -> str:
    """Return the first text, in the order of bytes, after all texts that begin with `prefix`."""
    kept = prefix.rstrip(chr(_LAST_CHARACTER))
    if not kept:
        return _END
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
