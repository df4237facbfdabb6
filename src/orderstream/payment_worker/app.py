"""The wiring of payment-worker."""

import threading
from contextlib import ExitStack
from threading import Event as StopSignal

from orderstream.payment_worker.attempts import FINISH, Attempts, Schedule
from orderstream.payment_worker.calls import ProviderCalls
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.payment_worker.providers.choose import provider_of
from orderstream.payment_worker.webhook import DecidedKeys, serve_webhook
from orderstream.process.run import Loop, run_process
from orderstream.settings import Settings
from orderstream.telemetry import databases
from orderstream.telemetry.tracing import Tracer
from orderstream.worker.runner import Runner

CLOSE_SECONDS = 2.0
"""Time that the connections to the provider have to close."""


def run(settings: Settings) -> int:
    """Run the service until a signal stops it, and return its exit code."""
    schedule = Schedule(
        max_attempts=settings.payment_max_attempts,
        retry_base=settings.payment_retry_base_seconds,
        retry_max=settings.payment_retry_max_seconds,
        key_lifetime=settings.payment_key_lifetime_hours * 3_600,
        pending_limit=settings.payment_pending_limit_minutes * 60,
        call_timeout=settings.payment_timeout_seconds,
    )
    with ExitStack() as stack:

        def build(tracer: Tracer, stop: StopSignal) -> Loop:
            wake = threading.Event()
            provider, timeout = provider_of(settings), settings.payment_timeout_seconds
            calls = ProviderCalls(provider, settings.payment_concurrency, timeout, tracer)
            calls.on_ended = wake.set
            calls.start()
            stack.callback(calls.close, CLOSE_SECONDS)
            decided = DecidedKeys(wake)
            if settings.payment_webhook_port:
                serve_webhook(settings.host, settings.payment_webhook_port, decided)
            finish = databases.postgres(settings.postgres_url, FINISH.name)
            attempts = Attempts(calls, schedule, decided, tracer, finish, wake=wake.set)
            budget = settings.payment_inline_budget_seconds
            return Runner(PaymentHandler(calls, attempts, schedule, budget, wake), settings, tracer, stop)

        return run_process(PaymentHandler.group, settings, build)
