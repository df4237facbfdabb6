"""Reports whether the payment provider answers, from the metrics of the running payment-workers."""

import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from msgspec import Struct

from orderstream.local.processes.ports import LOOPBACK
from orderstream.local.processes.state import ChildRecord, Run
from orderstream.telemetry.metrics_page import Figures, figures_of, largest, total

SERVICE = "payment-worker"
PAGE_SECONDS = 1.0
PAGE_MAX_BYTES = 4 * 2**20
_BREAKER = "orderstream_provider_breaker_open"
_DOWN_SECONDS = "orderstream_provider_down_seconds"
_IN_FLIGHT = "orderstream_provider_calls_in_flight"
_PAUSED = "orderstream_paused_partitions"

FIGURES = frozenset({_BREAKER, _DOWN_SECONDS, _IN_FLIGHT, _PAUSED})
"""The metrics that describe the provider."""


class ProviderState(Struct, frozen=True):
    """What the payment-workers know of the provider. `down_seconds` is 0 while no breaker is open."""

    breaker: float
    down_seconds: float
    calls_in_flight: int
    paused_partitions: int

    @property
    def breaker_name(self) -> str:
        """The state of the breaker in one word. Of several breakers, the worst counts."""
        return "open" if self.breaker == 1 else "half-open" if self.breaker > 0 else "closed"


def report(run: Run) -> list[str]:
    """Return lines on the payment provider. Takes PAGE_SECONDS for each read of a socket at most."""
    workers = [child for child in run.children if child.name.startswith(SERVICE) and child.health_url]
    if not workers:
        return []
    with ThreadPoolExecutor(len(workers)) as pool:
        pages = [figures for figures in pool.map(_figures, workers) if figures is not None]
    return in_words(pages, datetime.now().astimezone())


def in_words(pages: Sequence[Figures], now: datetime) -> list[str]:
    """Return a line with the state of the provider, and a line if partitions are paused. One page is one worker."""
    if not pages:
        return [f"{'payment provider':<20} unknown, because no {SERVICE} shows its metrics"]
    provider = state_of(pages)
    answers = "answers"
    if provider.breaker > 0:
        since = now - timedelta(seconds=provider.down_seconds)
        when = since.strftime("%H:%M" if since.date() == now.date() else "%Y-%m-%d %H:%M")
        answers = f"down since {when} (breaker {provider.breaker_name})"
    lines = [f"{'payment provider':<20} {answers}, {provider.calls_in_flight} calls in flight"]
    if paused := provider.paused_partitions:
        lines.append(f"  {SERVICE} has no room for more calls: {paused} partitions are paused, and records wait as lag")
    return lines


def state_of(pages: Sequence[Figures]) -> ProviderState:
    """Return the state of the provider by the figures of all payment-workers."""
    return ProviderState(
        breaker=max((largest(figures, _BREAKER) for figures in pages), default=0.0),
        down_seconds=max((largest(figures, _DOWN_SECONDS) for figures in pages), default=0.0),
        calls_in_flight=int(sum(total(figures, _IN_FLIGHT) for figures in pages)),
        paused_partitions=int(sum(total(figures, _PAUSED) for figures in pages)),
    )


def _figures(worker: ChildRecord) -> Figures | None:
    """Return the figures of a worker, or None if it does not show them in time."""
    address = urlsplit(worker.health_url or "")
    connection = http.client.HTTPConnection(address.hostname or LOOPBACK, address.port, timeout=PAGE_SECONDS)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read(PAGE_MAX_BYTES).decode(errors="replace")
        return figures_of(text, FIGURES) if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
