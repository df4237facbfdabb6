"""docker-compose.yml as Compose reads it: anchors merged, variables put in."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ruamel.yaml import YAML

from orderstream.local.processes.state import checkout
from orderstream.settings import SERVICES

FILE = checkout() / "docker-compose.yml"
JOBS = ("migrate", "topics")
OURS = (*SERVICES, *JOBS)

VARIABLE = re.compile(r"\$\{(\w+):-([^}$]*)\}")
"""The one form in use: a name with what stands there without it."""

Model = dict[str, Any]


def compose(environment: Mapping[str, str] | None = None) -> Model:
    """Return the file's content with variables taken from `environment`."""
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
            return {name: _filled(one, environment) for name, one in value.items()}
        case list():
            return [_filled(one, environment) for one in value]
        case str():
            return VARIABLE.sub(lambda found: environment.get(found[1]) or found[2], value)
        case _:
            return value
