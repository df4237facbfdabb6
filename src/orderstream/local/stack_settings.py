"""Settings with the addresses of the running local stack, for the commands that an operator runs beside it.

`orderstream env` prints the same addresses for a shell.
"""

import json
from collections.abc import Mapping
from typing import Any

from orderstream.local.processes.state import default_state_dir
from orderstream.settings import Settings

_ADDRESSES = ("postgres_url", "redis_url", "kafka_brokers", "base_url")


def stack_addresses(urls: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of Settings that hold the addresses in `urls`, the variables of a running stack."""
    fields: dict[str, Any] = {name: urls[name.upper()] for name in _ADDRESSES}
    return {**fields, "kafka_options": json.loads(urls.get("KAFKA_OPTIONS", "{}"))}


def with_stack_addresses(settings: Settings) -> Settings:
    """Return `settings` with the addresses of this checkout's running stack in place of those that were not set."""
    run = default_state_dir(settings.orderstream_state).running()
    if run is None or not run.urls:
        return settings
    wanted = set(_ADDRESSES) - settings.model_fields_set
    if "kafka_brokers" in wanted:
        wanted.add("kafka_options")
    addresses = stack_addresses(run.urls)
    return settings.model_copy(update={name: addresses[name] for name in wanted})


def stack_ledger_url(settings: Settings) -> str | None:
    """Return the address of the running stack's payment simulator, or None if there is none.

    None also means that `settings` name another database than that of the stack: the ledger would have other orders.
    """
    run = default_state_dir(settings.orderstream_state).running()
    if run is None or run.urls.get("POSTGRES_URL") != settings.postgres_url:
        return None
    return run.urls.get("PAYMENT_SIMULATOR_URL")
