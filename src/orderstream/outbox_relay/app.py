"""The wiring of outbox-relay."""

from orderstream.outbox_relay.relay import SERVICE, Relay
from orderstream.process.run import run_process
from orderstream.settings import Settings


def run(settings: Settings) -> int:
    """Run the service until a signal stops it, and return its exit code."""
    return run_process(SERVICE, settings, lambda tracer, stop: Relay(settings, tracer, stop))
