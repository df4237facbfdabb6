"""The wiring of the outbox relay."""

from orderstream.outbox_relay.relay import SERVICE, Relay
from orderstream.process.run import run_process
from orderstream.settings import Settings


def run(settings: Settings) -> int:
    """Run the service until it is told to stop; return its exit code."""
    return run_process(SERVICE, settings, lambda tracer, stop: Relay(settings, tracer, stop))
