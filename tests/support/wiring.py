"""The handlers of the three workers, created as their processes create them."""

from importlib import import_module
from threading import Event
from types import ModuleType
from typing import Any

import pytest

from orderstream.payment_worker.calls import ProviderCalls
from orderstream.settings import Settings
from orderstream.telemetry.tracing import Tracer

WORKERS = ("payment-worker", "inventory-worker", "order-service")


def app_of(service: str) -> ModuleType:
    """Return the module that creates the handler of a worker."""
    return import_module(f"orderstream.{service.replace('-', '_')}.app")


def wired_handler(monkeypatch: pytest.MonkeyPatch, service: str, settings: Settings) -> Any:
    """Return the handler that the worker's `run` passes to its runner, without running it."""
    handlers: list[Any] = []
    app = app_of(service)
    with monkeypatch.context() as patch:
        patch.setattr(app, "Runner", lambda handler, *_rest: handlers.append(handler))
        patch.setattr(app, "run_process", lambda _service, _settings, build: build(Tracer(None, 0), Event()))
        # The calls of payment-worker would end with `run`, and the handler needs them.
        patch.setattr(ProviderCalls, "close", lambda *_: None)
        app.run(settings)
    (handler,) = handlers
    return handler
