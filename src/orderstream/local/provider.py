"""Reports whether the payment provider answers, from the metrics of the running payment-workers."""

import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from orderstream.local.processes.ports import LOOPBACK
from orderstream.local.processes.state import ChildRecord, Run

SERVICE = "payment-worker"
PAGE_SECONDS = 1.0
PAGE_MAX_BYTES = 4 * 2**20
_BREAKER = "orderstream_provider_breaker_open"
_DOWN_SECONDS = "orderstream_provider_down_seconds"
_IN_FLIGHT = "orderstream_provider_calls_in_flight"
_PAUSED = "orderstream_paused_partitions"

Figures = dict[str, list[float]]
"""The values of all samples of a metric, over its labels, by the name of the metric."""


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
    breaker = _largest(pages, _BREAKER)
    state = "answers"
    if breaker > 0:
        since = now - timedelta(seconds=_largest(pages, _DOWN_SECONDS))
        when = since.strftime("%H:%M" if since.date() == now.date() else "%Y-%m-%d %H:%M")
        state = f"down since {when} (breaker {'open' if breaker == 1 else 'half-open'})"
    calls, paused = _total(pages, _IN_FLIGHT), _total(pages, _PAUSED)
    lines = [f"{'payment provider':<20} {state}, {calls:.0f} calls in flight"]
    if paused:
        lines.append(
            f"  {SERVICE} has no room for more calls: {paused:.0f} partitions are paused, and records wait as lag"
        )
    return lines


def figures_of(exposition: str) -> Figures:
    """Return the figures of a metrics page. Raises ValueError."""
    found: Figures = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


def _figures(worker: ChildRecord) -> Figures | None:
    """Return the figures of a worker, or None if it does not show them in time."""
    address = urlsplit(worker.health_url or "")
    connection = http.client.HTTPConnection(address.hostname or LOOPBACK, address.port, timeout=PAGE_SECONDS)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read(PAGE_MAX_BYTES).decode(errors="replace")
        return figures_of(text) if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _largest(pages: Sequence[Figures], name: str) -> float:
    return max((value for figures in pages for value in figures.get(name, ())), default=0.0)


def _total(pages: Sequence[Figures], name: str) -> float:
    return sum(value for figures in pages for value in figures.get(name, ()))
