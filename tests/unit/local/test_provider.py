"""`orderstream status` describes the payment provider by the metrics of the payment-workers."""

import socket
from datetime import UTC, datetime

import pytest

from orderstream.local import provider
from orderstream.local.processes.state import ChildRecord, Run
from orderstream.local.provider import FIGURES, in_words, report
from orderstream.telemetry.metrics import CATALOGUE
from orderstream.telemetry.metrics_page import figures_of

NOW = datetime(2026, 1, 2, 10, 32, 7, tzinfo=UTC)


def _page(breaker: float = 0, down_seconds: float = 0, calls: int = 0, paused: int = 0) -> str:
    """Return the metrics of a worker that has `calls` calls in flight and `paused` paused partitions."""
    page = f"""
        orderstream_provider_breaker_open {breaker}
        orderstream_provider_down_seconds {down_seconds}
        orderstream_provider_calls_in_flight{{lane="new"}} {calls - 1}
        orderstream_provider_calls_in_flight{{lane="void"}} 1
        orderstream_paused_partitions{{service="payment-worker",topic="order.created.v1"}} {paused}
    """
    return "\n".join(line.strip() for line in page.splitlines())


@pytest.mark.parametrize(
    ("pages", "lines"),
    [
        ([_page(calls=12)], ["payment provider     answers, 12 calls in flight"]),
        ([_page(calls=12), _page(calls=5)], ["payment provider     answers, 17 calls in flight"]),
        (
            [_page(), _page(1, 425, 4), _page(0.5, 30)],
            ["payment provider     down since 10:25 (breaker open), 4 calls in flight"],
        ),
        ([_page(0.5, 60, 1)], ["payment provider     down since 10:31 (breaker half-open), 1 calls in flight"]),
        ([_page(1, 86_400)], ["payment provider     down since 2026-01-01 10:32 (breaker open), 0 calls in flight"]),
        (
            [_page(calls=1_000, paused=3), _page(calls=1_000, paused=1)],
            [
                "payment provider     answers, 2000 calls in flight",
                "  payment-worker has no room for more calls: 4 partitions are paused, and records wait as lag",
            ],
        ),
        ([""], ["payment provider     answers, 0 calls in flight"]),
        ([], ["payment provider     unknown, because no payment-worker shows its metrics"]),
    ],
)
def test_the_provider_is_described_by_the_metrics_of_all_workers(pages: list[str], lines: list[str]) -> None:
    assert in_words([figures_of(page, FIGURES) for page in pages], NOW) == lines


def test_the_metrics_that_the_status_reads_exist() -> None:
    named = {line.split("{")[0].split()[0] for line in _page().split("\n") if line.strip()}
    assert named <= {metric.name for metric in CATALOGUE}


def test_a_worker_that_does_not_show_its_metrics_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker does not listen, and the other accepts a connection and never answers."""
    monkeypatch.setattr(provider, "PAGE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        workers = [
            ChildRecord(
                "payment-worker",
                1,
                "now",
                stop_signal=15,
                stop_order=1,
                log="x",
                health_url=f"http://127.0.0.1:{port}/readyz",
            )
            for port in (1, silent.getsockname()[1])
        ]
        assert report(Run(1, "now", children=workers)) == in_words([], NOW)
    assert report(Run(1, "now")) == []
