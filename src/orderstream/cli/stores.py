"""The commands for the schema, the topics and the audit."""
# ruff: noqa: PLC0415

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from orderstream.cli.root import main, plain_errors, stack_settings

if TYPE_CHECKING:
    from orderstream.audit.check import Report

_NOT_CHECKED = 2
_ERASE_LINE = "\r\x1b[2K"


@main.command()
def migrate() -> None:
    """Migrate the database to the schema of this version."""
    import psycopg

    from orderstream.postgres import migrate as migration

    with plain_errors(psycopg.Error, migration.MigrationError):
        applied = migration.migrate(stack_settings().postgres_url)
    click.echo("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")


@main.command()
def topics() -> None:
    """Create missing Kafka topics. Warn of existing topics with other settings."""
    from confluent_kafka import KafkaException

    from orderstream.kafka.errors import KafkaRefusedError
    from orderstream.kafka.topics import ensure_topics, topic_warnings

    settings = stack_settings()
    with plain_errors(KafkaException, KafkaRefusedError):
        created = ensure_topics(settings)
        warnings = topic_warnings(settings)
    click.echo("\n".join(f"created {name}" for name in created) or "every topic is there")
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


@main.command()
@click.option(
    "--grace",
    "grace_seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Ignore changes of the last seconds, whose events may be on the way.",
)
@click.option(
    "--ledger",
    "ledger_url",
    metavar="URL",
    help="Also compare the orders with the ledger of the payment provider at this address. The default is the payment"
    " simulator of the running stack, if it has one.",
)
@click.option("--no-ledger", is_flag=True, help="Do not read the ledger of the payment simulator.")
def audit(grace_seconds: float, ledger_url: str | None, no_ledger: bool) -> None:
    """Check the database against the promises. Exit 1 if one is broken, 2 if the check failed."""
    import psycopg

    from orderstream.audit.check import table
    from orderstream.audit.provider_ledger import LedgerError
    from orderstream.audit.whole import audit_all
    from orderstream.local.stack_settings import stack_ledger_url

    with plain_errors(psycopg.Error, LedgerError, exit_code=_NOT_CHECKED), _progress_line() as report:
        settings = stack_settings()
        url = None if no_ledger else ledger_url or stack_ledger_url(settings)
        found = audit_all(settings, url, grace_seconds, report)
    click.echo(table(found))
    sys.exit(1 if any(found.values()) else 0)


@contextlib.contextmanager
def _progress_line() -> "Iterator[Report]":
    """Yield a function that shows the progress on a terminal, in one line on stderr. The line is removed at the end."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        yield lambda progress: click.echo(f"{_ERASE_LINE}{progress.text}", err=True, nl=False)
    finally:
        click.echo(_ERASE_LINE, err=True, nl=False)
