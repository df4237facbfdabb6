"""Begins the tracing of a process: with a collector spans go to it, without one none is made."""

from orderstream.settings import Settings
from orderstream.telemetry.tracing import Tracer


def start(service: str, settings: Settings) -> Tracer:
    """Return the tracer of a process; the OpenTelemetry SDK is loaded only if there is a collector to send to."""
    if settings.otel_exporter_otlp_endpoint is None:
        return Tracer(None, 0)
    from orderstream.telemetry.otlp import OtlpSink  # noqa: PLC0415 - 20 MB that a process without it keeps

    sink = OtlpSink(settings.otel_service_name or service, settings.otel_exporter_otlp_endpoint)
    return Tracer(sink, settings.trace_samples_per_second)
