"""The settings that lead to the parts of a running stack: what `orderstream env` prints, for our own commands."""

import json
from collections.abc import Mapping
from typing import Any

from orderstream.local.processes.state import default_state_dir
from orderstream.settings import Settings


def stack_addresses(urls: Mapping[str, str]) -> dict[str, Any]:
    """The settings that lead to the parts at `urls`."""
    fields: dict[str, Any] = {name: urls[name.upper()] for name in ("postgres_url", "redis_url", "kafka_brokers")}
    return {**fields, "kafka_options": json.loads(urls.get("KAFKA_OPTIONS", "{}"))}


def with_stack_addresses(settings: Settings) -> Settings:
    """Return `settings` with the addresses of this checkout's running stack in place of those that were not given."""
    run = default_state_dir(settings.orderstream_state).running()
    if run is None or not run.urls:
        return settings
    wanted = {"postgres_url", "redis_url", "kafka_brokers"} - settings.model_fields_set
    if "kafka_brokers" in wanted:
        wanted.add("kafka_options")
    return settings.model_copy(
        update={name: value for name, value in stack_addresses(run.urls).items() if name in wanted}
    )
