"""The commands that list, cancel and nudge orders. They need no running console."""
# ruff: noqa: PLC0415

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from orderstream.cli.root import HELP_OPTIONS, actor, main, plain_errors, stack_settings

if TYPE_CHECKING:
    from orderstream.console.orders.filters import OrderQuery
    from orderstream.console.orders.listing import ListedOrder, OrderPage
    from orderstream.postgres.connect import Connection
    from orderstream.settings import Settings

PAGES_MAX = 1_000
"""Pages that one `orders list` reads. Each page reads a bounded number of orders."""
_ERASE_LINE = "\r\x1b[2K"
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[int]):
    """A time such as 90, 90s, 15m, 2h or 7d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the seconds. Fails for any other text."""
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value), re.ASCII)
        if found is None:
            self.fail("expected a time such as 90s, 15m, 2h or 7d", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"]


@main.group(context_settings=HELP_OPTIONS)
def orders() -> None:
    """List, show, cancel and nudge orders."""


@orders.command("list")
@click.option("--status", "statuses", multiple=True, metavar="STATUS", help="Only this status. May be repeated.")
@click.option("--user", "user_id", metavar="USER", help="Only orders of this userId.")
@click.option("--sku", metavar="SKU", help="Only orders with a line of this SKU.")
@click.option("--reason", "failure_reason", metavar="REASON", help="Only FAILED orders with this reason.")
@click.option("--stuck", is_flag=True, help="Only orders that are open for longer than normal.")
@click.option("--compensating", is_flag=True, help="Only aborted orders that are not compensated yet.")
@click.option("--older-than", "min_age_seconds", type=Duration(), help="Only orders that are older, for example 15m.")
@click.option("--newer-than", "max_age_seconds", type=Duration(), help="Only orders that are newer, for example 2h.")
@click.option(
    "-n", "limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Number of orders to find."
)
@click.option("--cursor", metavar="CURSOR", help="Go on where an earlier list ended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as GET /api/orders does.")
def orders_list(statuses: tuple[str, ...], limit: int, cursor: str | None, as_json: bool, **given: Any) -> None:
    """List orders, newest first, with time, id, status, amount, lines, user, and what an open order waits for.

    If no index serves a filter, the command searches from the newest order to older ones until it has found enough.
    Ctrl-C ends it.
    """
    import msgspec
    import psycopg

    from orderstream.console.orders.filters import PAGE_MAX, OrderQuery
    from orderstream.http_server.problems import Problem

    values = {"status": ",".join(statuses), "cursor": cursor, "limit": min(limit, PAGE_MAX), **given}
    members = {_camel(name): value for name, value in values.items() if value not in (None, "", False)}
    try:
        query = msgspec.convert(members, OrderQuery)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from None
    with plain_errors(psycopg.Error, Problem), _connected("orderstream orders list") as (connection, _):
        found, last = _collect(connection, query, limit, prints=not as_json)
    if as_json:
        click.echo(msgspec.json.encode({"orders": found, "next": last.next, "searched": last.searched}))
        return
    if not found:
        click.echo("No order matches.", err=True)
    if last.next is not None:
        click.echo(f"There may be older orders. Go on with: --cursor {last.next}", err=True)


@orders.command("show")
@click.argument("order_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as GET /api/orders/{id} does.")
def orders_show(order_id: str, as_json: bool) -> None:
    """Show the story of an order: its rows, its events in Kafka, log lines, actions, and what it waits for."""
    import msgspec
    import psycopg

    from orderstream.cli.order_story import in_lines
    from orderstream.console.orders.record_search import RecordSearch
    from orderstream.console.orders.story import Sources, order_story
    from orderstream.console.orders.waiting import Rules
    from orderstream.console.stores import Stores
    from orderstream.local.processes.state import default_state_dir

    settings = stack_settings()
    search = RecordSearch(settings)
    logs = default_state_dir(settings.orderstream_state).logs
    with plain_errors(psycopg.Error), Stores(settings) as stores, contextlib.closing(search):
        sources = Sources(stores, Rules.of(settings), search, logs=logs if logs.is_dir() else None)
        story = order_story(sources, _id(order_id))
    if story is None:
        raise click.ClickException("there is no such order")
    if as_json:
        click.echo(msgspec.json.Encoder(decimal_format="string").encode(story))
    else:
        click.echo("\n".join(in_lines(story)))


@orders.command("cancel")
@click.argument("order_id", metavar="ID")
@click.option("--reason", required=True, help="Why. It is stored with the action.")
def orders_cancel(order_id: str, reason: str) -> None:
    """Cancel an order through the gateway. It is compensated in the background."""
    import psycopg

    from orderstream.console.orders.cancelling import cancel_order
    from orderstream.http_server.problems import Problem

    with plain_errors(psycopg.Error, Problem), _connected("orderstream orders cancel") as (connection, settings):
        done = cancel_order(connection, settings.base_url, _id(order_id), actor=actor(), reason=_reason(reason))
    click.echo(done.text)


@orders.command("nudge")
@click.argument("order_id", metavar="ID")
@click.option("--reason", required=True, help="Why. It is stored with the action.")
def orders_nudge(order_id: str, reason: str) -> None:
    """Make the next check of an order, and the next attempt of its payment, due at once."""
    import psycopg

    from orderstream.console.orders.nudging import nudge_order
    from orderstream.http_server.problems import Problem

    with plain_errors(psycopg.Error, Problem), _connected("orderstream orders nudge") as (connection, _):
        done = nudge_order(connection, _id(order_id), actor=actor(), reason=_reason(reason))
    click.echo(done.text)


@contextlib.contextmanager
def _connected(name: str) -> "Iterator[tuple[Connection, Settings]]":
    """Yield a session of PostgreSQL, and the settings."""
    from orderstream.postgres.connect import connect

    settings = stack_settings()
    with connect(settings.console_postgres_url or settings.postgres_url, name) as connection:
        yield connection, settings


def _id(text: str) -> str:
    from orderstream.api_gateway.orders.order_id import canonical

    order_id = canonical(text)
    if order_id is None:
        raise click.UsageError("ID must be an order id, for example 01a218d3-a513-7fff-8e9d-53c436b0ffa8")
    return order_id


def _reason(text: str) -> str:
    from orderstream.console.actions.log import REASON_MAX_CHARACTERS

    if not text.strip() or len(text) > REASON_MAX_CHARACTERS:
        raise click.UsageError(f"--reason must have 1 to {REASON_MAX_CHARACTERS} characters")
    return text


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _collect(
    connection: "Connection", query: "OrderQuery", limit: int, *, prints: bool
) -> "tuple[Sequence[ListedOrder], OrderPage]":
    """Read pages until `limit` orders are found, no older order can match, or PAGES_MAX pages are read.

    Return the orders and the last page.
    """
    from orderstream.console.orders.listing import list_orders

    found: list[ListedOrder] = []
    pages, searched, cursor = 0, 0, query.cursor
    while True:
        pages += 1
        page = list_orders(
            connection, query.wanted, limit=min(query.limit, limit - len(found)), cursor=cursor, deep=True
        )
        found += page.orders
        searched += page.searched.orders
        cursor = page.next
        if prints:
            _erase()
            click.echo("\n".join(map(_line, page.orders)), nl=bool(page.orders))
        if cursor is None or len(found) >= limit or pages == PAGES_MAX:
            break
        if sys.stderr.isatty():
            click.echo(f"{_ERASE_LINE}{searched:,} orders searched", err=True, nl=False)
    _erase()
    return found, page


def _erase() -> None:
    if sys.stderr.isatty():
        click.echo(_ERASE_LINE, err=True, nl=False)


def _line(order: "ListedOrder") -> str:
    """Return an order in one line. Text that clients wrote is safe for a terminal."""
    from orderstream.dead_letters.printable import in_one_line

    status = f"{order.status} {order.failure_reason}" if order.failure_reason else order.status
    waiting = f"  waits for: {order.waiting_for}" if order.waiting_for else ""
    return in_one_line(
        f"{order.created_at:%Y-%m-%d %H:%M:%S}  {order.order_id}  {status:<25}  {order.amount:>12} {order.currency}"
        f"  {order.lines:>3} {'line ' if order.lines == 1 else 'lines'}  {order.user_id}{waiting}"
    )
