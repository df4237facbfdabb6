"""The metrics of the calls to the payment provider."""

from orderstream.payment_worker.call_report import CallReport
from orderstream.telemetry.metrics import REGISTRY


def _figure(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"orderstream_provider_{name}")


def test_the_metrics_show_the_state_of_the_breaker_and_how_long_the_provider_has_been_down() -> None:
    report = CallReport()
    for state, open_seconds, is_open in (("open", 1.5, 1), ("half_open", 2.5, 0.5), ("open", 3.5, 1), ("closed", 0, 0)):
        report.breaker(state, open_seconds)  # type: ignore[arg-type]
        assert _figure("breaker_open") == is_open
        assert _figure("down_seconds") == open_seconds
