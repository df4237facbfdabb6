"""Runs a service as a process: signals, a bounded drain, the pages for health and metrics, and the exit code."""

import signal
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from threading import Event as StopSignal
from typing import Protocol

import psycopg
from confluent_kafka import KafkaException

from orderstream.kafka.errors import KafkaRefusedError
from orderstream.postgres.faults import UnsuitableServerError
from orderstream.process.drain import EXIT_FAILED, limit_drain
from orderstream.process.liveness import exit_when_stuck
from orderstream.process.pages import serve_pages
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.telemetry.setup import start
from orderstream.telemetry.tracing import Tracer

EXIT_STOPPED = 0
BEAT_LIMIT_SECONDS = 180.0
"""A loop without a new round for this time is stuck. Its longest wait, the retries of a batch, is shorter."""

log = logs.get()


class ServiceFailedError(Exception):
    """A service stops itself because of an error that a restart alone does not fix. The process exits with code 1."""


class Loop(Protocol):
    """The loop of a service. `run` returns after the stop signal is set."""

    readiness: Readiness
    """The activities that do not succeed."""

    @property
    def beat(self) -> float:
        """Monotonic time at which the last round of the loop began. If it has several threads, the oldest counts."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the loop has reached the servers that it needs."""
        ...

    def run(self) -> None:
        """Work until the stop signal is set."""
        ...


def run_process(service: str, settings: Settings, build: Callable[[Tracer, StopSignal], Loop]) -> int:
    """Run a service in the foreground until SIGTERM or SIGINT, and return its exit code.

    After the signal or a failure, the service has `drain_timeout_seconds` to end. After that time, the process ends
    with code 1. No order is lost.
    """
    logs.configure(service, settings)
    stop = StopSignal()

    def on_signal(number: int, _frame: object) -> None:
        if not stop.is_set():
            log.info("draining", signal=signal.Signals(number).name)
            limit_drain(settings.drain_timeout_seconds)
            stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    tracer = start(service, settings)
    try:
        loop = build(tracer, stop)
        pages = _serve_pages(settings, loop)
        exit_when_stuck(lambda: loop.beat, BEAT_LIMIT_SECONDS)
        log.info("started", port=pages.server_port)
        loop.run()
    except UnsuitableServerError as error:
        log.error("stopped_by_failure", error=str(error))
        return EXIT_FAILED
    except (psycopg.Error, KafkaException, KafkaRefusedError, ServiceFailedError):
        log.exception("stopped_by_failure")
        return EXIT_FAILED
    finally:
        # Python waits for the threads of its pools. One of them may hang in a call to the provider.
        limit_drain(settings.drain_timeout_seconds)
        tracer.shutdown()
    log.info("stopped")
    return EXIT_STOPPED


def _serve_pages(settings: Settings, loop: Loop) -> ThreadingHTTPServer:
    """Serve /livez, /readyz and /metrics of this process."""

    def live() -> str | None:
        return None if time.monotonic() - loop.beat < BEAT_LIMIT_SECONDS else "stuck"

    def ready() -> str | None:
        return loop.readiness.problem() if loop.ready else loop.readiness.problem() or "starting"

    return serve_pages(settings.host, settings.metrics_port, live, ready)
