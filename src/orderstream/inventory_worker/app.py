"""The wiring of inventory-worker."""

from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.process.run import run_process
from orderstream.settings import Settings
from orderstream.worker.runner import Runner


def run(settings: Settings) -> int:
    """Run the service until a signal stops it, and return its exit code."""
    handler = InventoryHandler()
    return run_process(handler.group, settings, lambda tracer, stop: Runner(handler, settings, tracer, stop))
