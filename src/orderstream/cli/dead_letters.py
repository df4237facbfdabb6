"""The commands for dead letters."""
# ruff: noqa: PLC0415

import click

from orderstream.cli.root import HELP_OPTIONS, main, plain_errors, stack_settings


@main.group(context_settings=HELP_OPTIONS)
def dlq() -> None:
    """Show the dead letters: records that a worker could not process."""


_GROUP = click.Choice(["payment-worker", "inventory-worker", "order-service"])


@dlq.command("list")
@click.argument("service", type=_GROUP, required=False, metavar="[SERVICE]")
@click.option(
    "-n",
    "limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Number of dead letters of each service.",
)
def dlq_list(service: str | None, limit: int) -> None:
    """List the newest dead letters of all services, or of one SERVICE, with partition, offset, time, reason and key."""
    from confluent_kafka import KafkaException

    from orderstream.dead_letters.reader import newest
    from orderstream.kafka.errors import KafkaRefusedError

    settings = stack_settings()
    with plain_errors(KafkaException, KafkaRefusedError):
        for group in [service] if service else _GROUP.choices:
            for letter in newest(settings, group, limit):
                click.echo(letter.line)


@dlq.command("show")
@click.argument("service", type=_GROUP, metavar="SERVICE")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
def dlq_show(service: str, partition: int, offset: int) -> None:
    """Show one dead letter. `list` shows its SERVICE, PARTITION and OFFSET."""
    from confluent_kafka import KafkaException

    from orderstream.dead_letters.reader import letter_at
    from orderstream.kafka.errors import KafkaRefusedError

    with plain_errors(KafkaException, KafkaRefusedError):
        letter = letter_at(stack_settings(), service, partition, offset)
    if letter is None:
        raise click.ClickException("there is no such dead letter")
    click.echo(letter.text)
