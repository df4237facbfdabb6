"""The commands that run one service in the foreground."""
# ruff: noqa: PLC0415

import importlib
import sys

from orderstream.cli.root import main, plain_errors, read_settings, stack_settings, state_dir


def _service(name: str, summary: str) -> None:
    """Add the command that runs the service `name` in the foreground."""

    def run() -> None:
        from orderstream.process.garbage_collection import collect_rarely
        from orderstream.process.unused_packages import UNUSED, left_out

        with left_out(*UNUSED):
            app = importlib.import_module(f"orderstream.{name.replace('-', '_')}.app")
        settings = stack_settings()
        collect_rarely()
        with plain_errors():
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

    settings = read_settings()
    ledger = Path(settings.simulator_ledger) if settings.simulator_ledger else state_dir().payment_ledger
    with plain_errors():
        sys.exit(run(settings, ledger))


@main.command()
def console() -> None:
    """Run the operator's API and pages, on CONSOLE_PORT."""
    from orderstream.console.app import run
    from orderstream.local.operator_token import OperatorTokenError, check_listens_safely, operator_token

    settings = stack_settings()
    with plain_errors(OperatorTokenError):
        check_listens_safely(settings)
        token = operator_token(settings, state_dir())
    with plain_errors():
        sys.exit(run(settings, token))
