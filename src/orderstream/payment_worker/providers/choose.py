"""Makes the payment provider that the settings name."""

import importlib
import inspect
import ssl
from collections.abc import Callable
from typing import Any

from orderstream import provider_settings
from orderstream.payment_worker.providers.protocol import PaymentProvider
from orderstream.payment_worker.providers.simulated import SimulatedProvider
from orderstream.settings import Settings, SettingsError

METHODS = ("authorize", "void", "close")


def provider_of(settings: Settings) -> PaymentProvider:
    """Return the provider of PAYMENT_PROVIDER. Raises SettingsError if it cannot be made."""
    match settings.payment_provider:
        case "simulated":
            return SimulatedProvider(
                settings.payment_success_rate, settings.payment_throw_rate, settings.payment_latency_ms / 1_000
            )
        case "http" | "simulator":
            return _http(settings)
        case path:
            return _own(path, settings)


def _http(settings: Settings) -> PaymentProvider:
    from orderstream.payment_worker.providers.http import HttpPaymentProvider  # noqa: PLC0415 - saves 6 MiB otherwise

    url = settings.payment_provider_url or f"http://127.0.0.1:{settings.simulator_port}"
    api_key, tls = credentials(settings, url)
    return HttpPaymentProvider(url, settings.payment_pool_size or settings.payment_concurrency, api_key, tls)


def credentials(settings: Settings, url: str) -> tuple[str | None, ssl.SSLContext | None]:
    """Return the API key and the TLS context for the provider at `url`, or None for what the settings do not have."""
    api_key = settings.read_payment_api_key()
    tls = None
    if url.startswith("https:"):
        tls = provider_settings.tls_context(
            settings.payment_tls_ca_file, settings.payment_tls_cert_file, settings.payment_tls_key_file
        )
    return api_key, tls


def _own(path: str, settings: Settings) -> PaymentProvider:
    """Call the function at `package.module:function` with the settings, and return the adapter that it returns."""
    name, _, function = path.partition(":")
    try:
        make: Callable[[Settings], Any] = getattr(importlib.import_module(name), function)
        made = make(settings)
    except Exception as error:
        raise SettingsError([f"PAYMENT_PROVIDER: {path} failed: {error!r}"]) from error
    if missing := [method for method in METHODS if not inspect.iscoroutinefunction(getattr(made, method, None))]:
        raise SettingsError([f"PAYMENT_PROVIDER: what {path} returned has no async method {', '.join(missing)}"])
    provider: PaymentProvider = made
    return provider
