"""The wiring of order-service."""

from orderstream.cache import CacheInvalidator
from orderstream.order_service.consumed import Consumed, KafkaOffsets
from orderstream.order_service.handler import OrderHandler
from orderstream.order_service.watchdog import PENDING_MARGIN_SECONDS, Watchdog, WatchdogSchedule
from orderstream.process.run import run_process
from orderstream.settings import Settings
from orderstream.telemetry import databases
from orderstream.worker.runner import Runner


def run(settings: Settings) -> int:
    """Run the service until a signal stops it, and return its exit code."""
    schedule = WatchdogSchedule(pending_seconds=settings.payment_pending_limit_minutes * 60 + PENDING_MARGIN_SECONDS)
    with KafkaOffsets(settings) as offsets:
        watchdog = Watchdog(schedule, Consumed(offsets.ask))
        cache = CacheInvalidator(settings.redis_url, settings.cache_budget_seconds)
        handler = OrderHandler(cache, watchdog.timers, databases.redis(settings.redis_url, "delete"))
        return run_process(handler.group, settings, lambda tracer, stop: Runner(handler, settings, tracer, stop))
