"""The commands of an operator find the ledger of the running stack's payment simulator."""

import os

from orderstream.local.processes.state import Run, StateDir, StateRecord
from orderstream.local.stack_settings import stack_ledger_url
from orderstream.settings import Settings

LEDGER = "http://127.0.0.1:3200"


def _ledger_url(state: StateDir, postgres_url: str, urls: dict[str, str]) -> str | None:
    """Return what is found for settings with this database, while a stack with these addresses runs."""
    settings = Settings.model_validate({"orderstream_state": str(state.root), "postgres_url": postgres_url})
    with state.lock():
        state.write(StateRecord(run=Run(os.getpid(), "now", "up", urls)))
        return stack_ledger_url(settings)


def test_the_ledger_of_the_running_simulator_is_found_for_the_database_of_its_stack(state: StateDir) -> None:
    ours, other = "postgresql://app@127.0.0.1:1/orders", "postgresql://app@127.0.0.1:2/orders"
    urls = {"POSTGRES_URL": ours, "PAYMENT_SIMULATOR_URL": LEDGER}
    assert _ledger_url(state, ours, urls) == LEDGER
    assert _ledger_url(state, other, urls) is None
    assert _ledger_url(state, ours, {"POSTGRES_URL": ours}) is None
    settings = Settings.model_validate({"orderstream_state": str(state.root), "postgres_url": ours})
    assert stack_ledger_url(settings) is None, "the stack does not run any more"
