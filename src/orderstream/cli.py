"""The executable `orderstream`: the services, the local stack, and the operator's commands.

Each command imports its modules only when it runs, so that a service loads no more than it uses and `--help` is fast.
"""
# ruff: noqa: PLC0415

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from orderstream.cli_arguments import Sku, Units

if TYPE_CHECKING:
    from orderstream.local.processes.state import Run, StateDir
    from orderstream.settings import Settings

_HELP = {"help_option_names": ["-h", "--help"]}
_BAD_CONFIGURATION = 2
_NOT_CHECKED = 2


@click.group(context_settings=_HELP)
@click.version_option(package_name="orderstream")
def main() -> None:
    """Event-driven order processing: accepted over HTTP, completed over Kafka, lost never.

    `orderstream up` starts everything on this machine. Settings are environment variables:
    docs/reference/settings.md lists them.
    """


def _settings() -> "Settings":
    """Read the settings. If variables are wrong, name each of them and exit with 2."""
    from orderstream.settings import load

    with _plain_errors():
        return load()


def _stack_settings() -> "Settings":
    """Return the settings, with the addresses of this checkout's running stack in place of those that were not set."""
    settings = _settings()
    if {"postgres_url", "redis_url", "kafka_brokers"} <= settings.model_fields_set:
        return settings
    from orderstream.local.stack_settings import with_stack_addresses

    return with_stack_addresses(settings)


def _state() -> "StateDir":
    from orderstream.local.processes.state import default_state_dir

    return default_state_dir(_settings().orderstream_state)


def _running(state: "StateDir") -> "Run":
    """Return the record of the running stack. If nothing is running, say so and exit with 1."""
    run = state.running()
    if run is None:
        raise click.ClickException("nothing is running; start it with: orderstream up")
    return run


@contextlib.contextmanager
def _plain_errors(*kinds: type[Exception], exit_code: int = 1) -> Iterator[None]:
    """Print the expected errors `kinds` in one line and exit with `exit_code`. Wrong settings exit with 2.

    If a command names its errors, the log lines of its clients are left out.
    """
    import structlog

    from orderstream.settings import SettingsError

    before = structlog.get_config()
    if kinds:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        yield
    except SettingsError as error:
        click.echo("Wrong settings (environment variables):", err=True)
        for problem in error.problems:
            click.echo(f"  {problem}", err=True)
        sys.exit(_BAD_CONFIGURATION)
    except kinds as error:
        click.echo(f"Error: {str(error).strip()}", err=True)
        sys.exit(exit_code)
    finally:
        if kinds:
            structlog.configure(**before)


# The local stack


@main.command()
@click.option("-d", "--detach", is_flag=True, help="Return when everything is ready, and keep it running.")
def up(detach: bool) -> None:
    """Start everything on this machine. Ctrl-C stops it."""
    from orderstream.local.processes.progress import Terminal
    from orderstream.local.processes.signals import Stop

    terminal = Terminal()
    stop = Stop(terminal)
    settings, state = _settings(), _state()
    with _plain_errors(OSError, ModuleNotFoundError):
        if settings.kafka_options:
            from orderstream.kafka.client import check_options

            check_options(settings)
        # The files that are written from here on hold passwords and orders.
        os.umask(0o077)
        if detach and state.running() is None:
            from orderstream.local.control import start_detached

            sys.exit(start_detached(state, stop))
        from orderstream.local.up import up as run

        sys.exit(run(settings, state, terminal, stop))


@main.command()
def down() -> None:
    """Stop everything that `up` started, and wait until it has ended."""
    from orderstream.local import control
    from orderstream.local.processes.progress import Terminal

    sys.exit(control.down(_state(), Terminal()))


@main.command()
def status() -> None:
    """Show each process of the running stack, and whether orders move."""
    from orderstream.local import backlog, control, provider

    run = _running(_state())
    for line in control.status(run):
        click.echo(line)
    click.echo("")
    for line in provider.report(run):
        click.echo(line)
    for line in backlog.report(_stack_settings()):
        click.echo(line)


@main.command()
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Follow the logs until Ctrl-C.")
def logs(service: str | None, follow: bool) -> None:
    """Show the last lines of every log, or of one SERVICE (a service, postgres, valkey or kafka)."""
    from orderstream.local import control

    state = _state()
    files = control.logs(state, service)
    if not files:
        names = ", ".join(log.stem for log in control.logs(state, None))
        raise click.ClickException(f"there is no such log; there are: {names or 'none yet'}")
    control.show_logs(files, click.echo)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            control.follow_logs(lambda: control.logs(state, service), click.echo)


@main.command()
def env() -> None:
    """Print the addresses of the running stack as `export` lines: eval "$(orderstream env)"."""
    from orderstream.local.banner import exports

    click.echo(exports(_running(_state()).urls))


@main.command()
def reset() -> None:
    """Remove all data of the stopped stack: orders, stock, topics, logs."""
    from orderstream.local import control
    from orderstream.local.processes.progress import Terminal
    from orderstream.local.processes.state import BusyError

    try:
        control.reset(_state(), Terminal())
    except BusyError:
        raise click.ClickException("the stack is running; stop it first: orderstream down") from None


# The services


def _service(name: str, summary: str) -> None:
    """Add the command that runs the service `name` in the foreground."""

    def run() -> None:
        from orderstream.process.garbage_collection import collect_rarely

        app = importlib.import_module(f"orderstream.{name.replace('-', '_')}.app")
        settings = _stack_settings()
        collect_rarely()
        with _plain_errors():
            sys.exit(app.run(settings))

    main.command(name, help=summary)(run)


_service("api-gateway", "Run the HTTP API on HOST:PORT.")
_service("outbox-relay", "Run the relay that publishes the events of the outbox.")
_service("payment-worker", "Run the worker that authorizes and voids payments.")
_service("inventory-worker", "Run the worker that reserves and releases stock.")
_service("order-service", "Run the service that merges results into orders.")


@main.command("payment-simulator")
def payment_simulator() -> None:
    """Run a payment provider to test against, on SIMULATOR_PORT."""
    from pathlib import Path

    from orderstream.payment_simulator.app import run

    settings = _settings()
    ledger = Path(settings.simulator_ledger) if settings.simulator_ledger else _state().payment_ledger
    with _plain_errors():
        sys.exit(run(settings, ledger))


# The operator's commands


@main.command()
def migrate() -> None:
    """Migrate the database to the schema of this version."""
    import psycopg

    from orderstream.postgres import migrate as migration

    with _plain_errors(psycopg.Error, migration.MigrationError):
        applied = migration.migrate(_stack_settings().postgres_url)
    click.echo("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")


@main.command()
def topics() -> None:
    """Create missing Kafka topics. Warn of existing topics with other settings."""
    from confluent_kafka import KafkaException

    from orderstream.kafka.errors import KafkaRefusedError
    from orderstream.kafka.topics import ensure_topics, topic_warnings

    settings = _stack_settings()
    with _plain_errors(KafkaException, KafkaRefusedError):
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

    from orderstream.audit.charges import audit_charges
    from orderstream.audit.check import audit as check
    from orderstream.audit.check import table
    from orderstream.audit.provider_ledger import LedgerError, ledger_at
    from orderstream.local.stack_settings import stack_ledger_url

    with _plain_errors(psycopg.Error, LedgerError, exit_code=_NOT_CHECKED):
        settings = _stack_settings()
        url = None if no_ledger else ledger_url or stack_ledger_url(settings)
        of_ledger = {}
        if url is not None:
            with ledger_at(url, settings) as ledger:
                days = settings.order_retention_days
                of_ledger = audit_charges(settings.postgres_url, ledger, grace_seconds, days)
        found = check(settings.postgres_url, grace_seconds) | of_ledger
    click.echo(table(found))
    sys.exit(1 if any(found.values()) else 0)


@main.group(context_settings=_HELP)
def stock() -> None:
    """Show and change the stock."""


@stock.command("set")
@click.argument("sku", type=Sku())
@click.argument("available", type=Units(negative=False))
def stock_set(sku: str, available: int) -> None:
    """Set the available units of SKU. Reserved units stay reserved."""
    import psycopg

    from orderstream.inventory_worker.stock_commands import StockError, set_available

    with _plain_errors(psycopg.Error, StockError):
        set_available(_stack_settings().postgres_url, sku, available)
    click.echo(f"{sku}: {available} available")


@stock.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("sku", type=Sku())
@click.argument("quantity", type=Units(negative=True))
def stock_add(sku: str, quantity: int) -> None:
    """Add QUANTITY available units of SKU. A negative QUANTITY removes units."""
    import psycopg

    from orderstream.inventory_worker.stock_commands import StockError, add_available

    with _plain_errors(psycopg.Error, StockError):
        add_available(_stack_settings().postgres_url, sku, quantity)
    click.echo(f"{sku}: {quantity} added")


@stock.command("list")
def stock_list() -> None:
    """List each SKU with its available and reserved units."""
    import psycopg

    from orderstream.inventory_worker.stock_commands import listing

    with _plain_errors(psycopg.Error):
        rows = listing(_stack_settings().postgres_url)
    click.echo(f"{'sku':<40} {'available':>16} {'reserved':>16}")
    for sku, available, reserved in rows:
        click.echo(f"{sku:<40} {available:>16} {reserved:>16}")


@main.group(context_settings=_HELP)
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

    settings = _stack_settings()
    with _plain_errors(KafkaException, KafkaRefusedError):
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

    with _plain_errors(KafkaException, KafkaRefusedError):
        letter = letter_at(_stack_settings(), service, partition, offset)
    if letter is None:
        raise click.ClickException("there is no such dead letter")
    click.echo(letter.text)


@main.group(context_settings=_HELP)
def refused() -> None:
    """Show the records that Kafka refused, and publish them again."""


@refused.command("list")
@click.option("-n", "limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Number of records.")
def refused_list(limit: int) -> None:
    """List the newest refused records with id, time, service, topic, key, number of refusals, and reason."""
    import psycopg

    from orderstream.dead_letters.refused_records import newest

    with _plain_errors(psycopg.Error):
        for record in newest(_stack_settings().postgres_url, limit):
            click.echo(record.line)


@refused.command("show")
@click.argument("record_id", metavar="ID")
def refused_show(record_id: str) -> None:
    """Show one refused record. The first characters of its ID are enough."""
    import psycopg

    from orderstream.dead_letters.refused_records import find

    with _plain_errors(psycopg.Error):
        record = find(_stack_settings().postgres_url, record_id)
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

    with _plain_errors(psycopg.Error, KafkaException, KafkaRefusedError, PublishError):
        sent, still_refused = redrive(_stack_settings())
    click.echo(f"{sent} published, {still_refused} refused again")
    sys.exit(1 if still_refused else 0)


if __name__ == "__main__":
    main()
