"""Sets up the tracing of a process. Without a collector, no spans are made."""

from orderstream.settings import Settings
from orderstream.telemetry.tracing import Tracer


def start(service: str, settings: Settings) -> Tracer:
    """Return the tracer of a process. Loads the OpenTelemetry SDK only if a collector is configured."""
    if settings.otel_exporter_otlp_endpoint is None:
        return Tracer(None, 0)
    from orderstream.telemetry.otlp import OtlpSink  # noqa: PLC0415 - saves 20 MB without a collector

    sink = OtlpSink(settings.otel_service_name or service, settings.otel_exporter_otlp_endpoint)
    return Tracer(sink, settings.trace_samples_per_second)
