"""The commands of the local stack: up, down, status, logs, env and reset."""
# ruff: noqa: PLC0415

import contextlib
import os
import sys

import click

from orderstream.cli.root import main, plain_errors, read_settings, running_stack, stack_settings, state_dir


@main.command()
@click.option("-d", "--detach", is_flag=True, help="Return when everything is ready, and keep it running.")
def up(detach: bool) -> None:
    """Start everything on this machine. Ctrl-C stops it."""
    from orderstream.local.processes.progress import Terminal
    from orderstream.local.processes.signals import Stop

    terminal = Terminal()
    stop = Stop(terminal)
    settings, state = read_settings(), state_dir()
    with plain_errors(OSError, ModuleNotFoundError):
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

    sys.exit(control.down(state_dir(), Terminal()))


@main.command()
def status() -> None:
    """Show each process of the running stack, and whether orders move."""
    from orderstream.local import backlog, control, provider

    run = running_stack(state_dir())
    for line in control.status(run):
        click.echo(line)
    click.echo("")
    for line in provider.report(run):
        click.echo(line)
    for line in backlog.report(stack_settings()):
        click.echo(line)


@main.command()
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Follow the logs until Ctrl-C.")
def logs(service: str | None, follow: bool) -> None:
    """Show the last lines of every log, or of one SERVICE (a service, postgres, valkey or kafka)."""
    from orderstream.local import control

    state = state_dir()
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

    click.echo(exports(running_stack(state_dir()).urls))


@main.command()
def reset() -> None:
    """Remove all data of the stopped stack: orders, stock, topics, logs."""
    from orderstream.local import control
    from orderstream.local.processes.progress import Terminal
    from orderstream.local.processes.state import BusyError

    try:
        control.reset(state_dir(), Terminal())
    except BusyError:
        raise click.ClickException("the stack is running; stop it first: orderstream down") from None
