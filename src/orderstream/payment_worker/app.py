"""The wiring of payment-worker. A real provider replaces the simulated provider here."""

from orderstream.payment_worker.attempts import Attempts, Backoff
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.payment_worker.provider import SimulatedProvider
from orderstream.payment_worker.provider_calls import ProviderCalls
from orderstream.process.run import run_process
from orderstream.settings import Settings
from orderstream.worker.runner import Runner


def run(settings: Settings) -> int:
    """Run the service until a signal stops it, and return its exit code."""
    provider = SimulatedProvider(settings.payment_success_rate, settings.payment_throw_rate)
    provider_calls = ProviderCalls(settings.payment_concurrency, settings.payment_batch_budget_seconds)
    backoff = Backoff(
        settings.payment_max_attempts, settings.payment_retry_base_seconds, settings.payment_retry_max_seconds
    )
    attempts = Attempts(provider, provider_calls, backoff, settings.payment_key_lifetime_hours * 3_600)
    handler = PaymentHandler(provider, provider_calls, attempts)
    return run_process(handler.group, settings, lambda tracer, stop: Runner(handler, settings, tracer, stop))
