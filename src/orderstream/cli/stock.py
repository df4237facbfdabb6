"""The commands that show and change the stock."""
# ruff: noqa: PLC0415

import click

from orderstream.cli.arguments import Sku, Units
from orderstream.cli.root import HELP_OPTIONS, main, plain_errors, stack_settings


@main.group(context_settings=HELP_OPTIONS)
def stock() -> None:
    """Show and change the stock."""


@stock.command("set")
@click.argument("sku", type=Sku())
@click.argument("available", type=Units(negative=False))
def stock_set(sku: str, available: int) -> None:
    """Set the available units of SKU. Reserved units stay reserved."""
    import psycopg

    from orderstream.inventory_worker.stock_commands import StockError, set_available

    with plain_errors(psycopg.Error, StockError):
        set_available(stack_settings().postgres_url, sku, available)
    click.echo(f"{sku}: {available} available")


@stock.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("sku", type=Sku())
@click.argument("quantity", type=Units(negative=True))
def stock_add(sku: str, quantity: int) -> None:
    """Add QUANTITY available units of SKU. A negative QUANTITY removes units."""
    import psycopg

    from orderstream.inventory_worker.stock_commands import StockError, add_available

    with plain_errors(psycopg.Error, StockError):
        add_available(stack_settings().postgres_url, sku, quantity)
    click.echo(f"{sku}: {quantity} added")


@stock.command("list")
def stock_list() -> None:
    """List each SKU with its available and reserved units."""
    import psycopg

    from orderstream.inventory_worker.stock_commands import listing

    with plain_errors(psycopg.Error):
        rows = listing(stack_settings().postgres_url)
    click.echo(f"{'sku':<40} {'available':>16} {'reserved':>16}")
    for sku, available, reserved in rows:
        click.echo(f"{sku:<40} {available:>16} {reserved:>16}")
