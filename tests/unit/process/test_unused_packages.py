"""A service process does not load what it does not use."""

import subprocess
import sys

from orderstream.settings import SERVICES

LOAD = """
import contextlib, importlib, sys
from orderstream.cli import services
services.stack_settings = lambda: None  # without settings, a service ends as soon as it is loaded
for service in sys.argv[1:]:
    with contextlib.suppress(AttributeError):
        services.main.commands[service].callback()
    assert f"orderstream.{service.replace('-', '_')}.app" in sys.modules
print(*sorted(sys.modules.keys() & {"aiohttp", "jinja2", "opentelemetry", "pygments", "rich"}))
for name in ("opentelemetry", "rich"):
    importlib.import_module(name)
"""


def test_no_service_loads_a_package_that_it_does_not_use_and_a_later_import_succeeds() -> None:
    command = [sys.executable, "-c", LOAD, *SERVICES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("\n", "", 0)
