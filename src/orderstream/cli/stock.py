"""The commands that show and change the stock."""
# ruff: noqa: PLC0415

from typing import TYPE_CHECKING

import click

from orderstream.cli.arguments import Sku, Units
from orderstream.cli.root import HELP_OPTIONS, actor, main, plain_errors, stack_settings

if TYPE_CHECKING:
    from orderstream.console.stock.act import StockChange

_PAGE = 1_000
_REASON = click.option("--reason", default="", help="Why. It is recorded with the change.")


@main.group(context_settings=HELP_OPTIONS)
def stock() -> None:
    """Show and change the stock."""


@stock.command("set")
@click.argument("sku", type=Sku())
@click.argument("available", type=Units(negative=False))
@click.option(
    "--expected-stocked",
    type=Units(negative=False),
    help="Available and reserved units together, as you saw them. If there is another sum, change nothing and exit 1.",
)
@_REASON
def stock_set(sku: str, available: int, expected_stocked: int | None, reason: str) -> None:
    """Set the available units of SKU. Reserved units stay reserved."""
    import psycopg
    from msgspec import UNSET

    from orderstream.console.stock.act import set_stock
    from orderstream.inventory_worker.stock_commands import StockError
    from orderstream.postgres.connect import connect

    seen = UNSET if expected_stocked is None else expected_stocked
    with plain_errors(psycopg.Error, StockError), connect(stack_settings().postgres_url, "stock") as connection:
        change = set_stock(connection, actor(), sku, available, reason=reason, seen_stocked=seen)
    click.echo(f"{sku}: {available} available{_before(change)}")


@stock.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("sku", type=Sku())
@click.argument("quantity", type=Units(negative=True))
@_REASON
def stock_add(sku: str, quantity: int, reason: str) -> None:
    """Add QUANTITY available units of SKU. A negative QUANTITY removes units."""
    import psycopg

    from orderstream.console.stock.act import add_stock
    from orderstream.inventory_worker.stock_commands import StockError
    from orderstream.postgres.connect import connect

    with plain_errors(psycopg.Error, StockError), connect(stack_settings().postgres_url, "stock") as connection:
        change = add_stock(connection, actor(), sku, quantity, reason=reason)
    click.echo(f"{sku}: {quantity} added, {change.after.available} available{_before(change)}")


def _before(change: "StockChange") -> str:
    return " (new)" if change.before is None else f" (before: {change.before.available})"


@stock.command("list")
@click.option("--search", default="", help="Only SKUs that begin with this text.")
@click.option("--part", is_flag=True, help="Let --search find SKUs that contain the text, in any case.")
@click.option("--after", default="", metavar="SKU", help="Begin after this SKU.")
@click.option("-n", "limit", default=10_000, show_default=True, type=click.IntRange(min=1), help="Number of SKUs.")
def stock_list(search: str, part: bool, after: str, limit: int) -> None:
    """List each SKU with its available and reserved units."""
    import psycopg

    from orderstream.console.stock.read import stock_containing, stock_page
    from orderstream.console.stock.sku_keys import shell_word
    from orderstream.postgres.connect import connect

    read = stock_containing if part and search else stock_page
    next_sku: str | None = after
    click.echo(f"{'sku':<40} {'available':>16} {'reserved':>16}")
    with plain_errors(psycopg.Error), connect(stack_settings().postgres_url, "stock") as connection:
        while next_sku is not None and limit > 0:
            page = read(connection, search, next_sku, min(limit, _PAGE))
            for sku in page.stock:
                click.echo(f"{_shown(sku.sku):<40} {sku.available:>16} {sku.reserved:>16}")
            next_sku, limit = page.next, limit - len(page.stock)
    if next_sku is not None:
        click.echo(f"There are more. Go on with: --after {shell_word(next_sku)}", err=True)


@stock.command("history")
@click.argument("sku", type=Sku())
@click.option("-n", "limit", default=50, show_default=True, type=click.IntRange(1, 500), help="Number of changes.")
def stock_history(sku: str, limit: int) -> None:
    """List the newest changes of SKU by operators, with time, actor, change, state and reason."""
    import psycopg

    from orderstream.console.actions.read import actions_page
    from orderstream.postgres.connect import connect

    with plain_errors(psycopg.Error), connect(stack_settings().postgres_url, "stock") as connection:
        found = actions_page(connection, kind="stock", subject=sku, limit=limit).actions
    for action in found:
        change = " ".join(f"{name}={value}" for name, value in {**action.parameters, **(action.result or {})}.items())
        line = (
            f"{action.at:%Y-%m-%d %H:%M:%S%z}  {action.actor}  {action.kind}  {change}  {action.state}  {action.reason}"
        )
        click.echo(_shown(line.rstrip()))


def _shown(text: str) -> str:
    """Return the text without characters that control a terminal or break the line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
