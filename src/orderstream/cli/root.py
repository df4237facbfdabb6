"""The command `orderstream`, and what its subcommands share: the settings, the running stack, and plain errors."""
# ruff: noqa: PLC0415

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orderstream.local.processes.state import Run, StateDir
    from orderstream.settings import Settings

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
_BAD_CONFIGURATION = 2


@click.group(context_settings=HELP_OPTIONS)
@click.version_option(package_name="orderstream")
def main() -> None:
    """Event-driven order processing: accepted over HTTP, completed over Kafka, lost never.

    `orderstream up` starts everything on this machine. Settings are environment variables:
    docs/reference/settings.md lists them.
    """


def read_settings() -> "Settings":
    """Read the settings. If variables are wrong, name each of them and exit with 2."""
    from orderstream.settings import load

    with plain_errors():
        return load()


def stack_settings() -> "Settings":
    """Return the settings, with the addresses of this checkout's running stack in place of those that were not set."""
    settings = read_settings()
    if {"postgres_url", "redis_url", "kafka_brokers"} <= settings.model_fields_set:
        return settings
    from orderstream.local.stack_settings import with_stack_addresses

    return with_stack_addresses(settings)


def state_dir() -> "StateDir":
    from orderstream.local.processes.state import default_state_dir

    return default_state_dir(read_settings().orderstream_state)


def running_stack(state: "StateDir") -> "Run":
    """Return the record of the running stack. If nothing is running, say so and exit with 1."""
    run = state.running()
    if run is None:
        raise click.ClickException("nothing is running; start it with: orderstream up")
    return run


def actor() -> str:
    """Return the text that is recorded with the actions of this command line."""
    import getpass

    try:
        return f"{getpass.getuser()} (cli)"
    except (OSError, KeyError):
        return "unknown (cli)"


@contextlib.contextmanager
def plain_errors(*kinds: type[Exception], exit_code: int = 1) -> Iterator[None]:
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
