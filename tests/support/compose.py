"""Reads docker-compose.yml as Compose does: it merges anchors and replaces variables."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ruamel.yaml import YAML

from orderstream.local.processes.state import checkout
from orderstream.settings import SERVICES

FILE = checkout() / "docker-compose.yml"
JOBS = ("migrate", "topics")
OURS = (*SERVICES, "console", *JOBS)

VARIABLE = re.compile(r"\$\{(\w+):-([^}$]*)\}")
"""The only form in use: a name and its default."""

Model = dict[str, Any]


def compose(environment: Mapping[str, str] | None = None) -> Model:
    """Return the content of the file, with variables from `environment`."""
    model: Model = _filled(_content(), environment or {})
    return model


def services(environment: Mapping[str, str] | None = None) -> Model:
    """Return the services by name."""
    found: Model = compose(environment)["services"]
    return found


@cache
def _content() -> Any:
    return YAML(typ="safe", pure=True).load(FILE)


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    match value:
        case dict():
            return {name: _filled(item, environment) for name, item in value.items()}
        case list():
            return [_filled(item, environment) for item in value]
        case str():
            return VARIABLE.sub(lambda found: environment.get(found[1]) or found[2], value)
        case _:
            return value
