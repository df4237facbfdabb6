"""Sets up the tracing of a process. Without a collector, no spans are made."""

from orderstream.settings import Settings
from orderstream.telemetry.loading import LoadingSink
from orderstream.telemetry.tracing import Sink, Tracer


def start(service: str, settings: Settings) -> Tracer:
    """Return the tracer of a process. It loads the OpenTelemetry SDK when the first span ends."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return Tracer(None, 0)

    def load() -> Sink:
        from orderstream.telemetry.otlp import OtlpSink  # noqa: PLC0415 - saves 10 MB without spans

        return OtlpSink(settings.otel_service_name or service, endpoint)

    return Tracer(LoadingSink(load), settings.trace_samples_per_second)
