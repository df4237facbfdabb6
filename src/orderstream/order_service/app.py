"""The wiring of the order service."""

from orderstream.cache import CacheInvalidator
from orderstream.order_service.consumed import Consumed, of_kafka
from orderstream.order_service.handler import OrderHandler
from orderstream.order_service.watchdog import Patience, Watchdog
from orderstream.settings import Settings
from orderstream.worker.process import run_process
from orderstream.worker.runner import Runner


def run(settings: Settings) -> int:
    """Run the service until it is told to stop; return its exit code."""
    watchdog = Watchdog(Patience(), Consumed(of_kafka(settings)))
    cache = CacheInvalidator(settings.redis_url, settings.cache_budget_seconds)
    handler = OrderHandler(cache, watchdog.timers)
    return run_process(handler.group, settings, lambda tracer, stop: Runner(handler, settings, tracer, stop))
