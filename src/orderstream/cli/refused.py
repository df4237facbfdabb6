"""The commands for records that Kafka refused."""
# ruff: noqa: PLC0415

import sys

import click

from orderstream.cli.root import HELP_OPTIONS, main, plain_errors, stack_settings


@main.group(context_settings=HELP_OPTIONS)
def refused() -> None:
    """Show the records that Kafka refused, and publish them again."""


@refused.command("list")
@click.option("-n", "limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Number of records.")
def refused_list(limit: int) -> None:
    """List the newest refused records with id, time, service, topic, key, number of refusals, and reason."""
    import psycopg

    from orderstream.dead_letters.refused_records import newest

    with plain_errors(psycopg.Error):
        for record in newest(stack_settings().postgres_url, limit):
            click.echo(record.line)


@refused.command("show")
@click.argument("record_id", metavar="ID")
def refused_show(record_id: str) -> None:
    """Show one refused record. The first characters of its ID are enough."""
    import psycopg

    from orderstream.dead_letters.refused_records import find

    with plain_errors(psycopg.Error):
        record = find(stack_settings().postgres_url, record_id)
    if record is None:
        raise click.ClickException("there is no such record, or more than one")
    click.echo(record.text)


@refused.command("redrive")
def refused_redrive() -> None:
    """Publish all refused records again. Exit 1 if Kafka refuses one of them again."""
    import psycopg
    from confluent_kafka import KafkaException

    from orderstream.dead_letters.refused_records import redrive
    from orderstream.kafka.errors import KafkaRefusedError, PublishError

    with plain_errors(psycopg.Error, KafkaException, KafkaRefusedError, PublishError):
        sent, still_refused = redrive(stack_settings())
    click.echo(f"{sent} published, {still_refused} refused again")
    sys.exit(1 if still_refused else 0)
