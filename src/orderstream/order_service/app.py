"""The wiring of the order service."""

from orderstream.cache import CacheInvalidator
from orderstream.order_service.handler import OrderHandler
from orderstream.settings import Settings
from orderstream.worker.process import run_process
from orderstream.worker.runner import Runner


def run(settings: Settings) -> int:
    """Run the service until it is told to stop; return its exit code."""
    handler = OrderHandler(CacheInvalidator(settings.redis_url, settings.cache_budget_seconds))
    return run_process(handler.group, settings, lambda tracer, stop: Runner(handler, settings, tracer, stop))
