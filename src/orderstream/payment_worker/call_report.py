"""Metrics and log lines of the calls to the payment provider, for many calls at a time."""

from collections import Counter
from collections.abc import Mapping, Sequence

from prometheus_client import Gauge, Histogram

from orderstream.domain.payment import (
    Authorized,
    Declined,
    NothingToVoid,
    Outcome,
    Pending,
    Refused,
    Unanswered,
    Voided,
    VoidOutcome,
)
from orderstream.payment_worker.breaker import State
from orderstream.payment_worker.call import End, Kind
from orderstream.payment_worker.lanes import LANES, Lane
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import trace_id

_LABELS: dict[type, str] = {
    Authorized: "authorized",
    Declined: "declined",
    Pending: "pending",
    Voided: "voided",
    NothingToVoid: "nothing_to_void",
    Unanswered: "unanswered",
    Refused: "refused",
}
_OPEN: dict[State, float] = {"closed": 0.0, "half_open": 0.5, "open": 1.0}

log = logs.get()


def label_of(outcome: Outcome | VoidOutcome) -> str:
    """Return the name of an outcome in metrics and spans."""
    return _LABELS[type(outcome)]


class CallReport:
    """Writes the metrics and log lines of calls. Only `ended` is thread-safe."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Kind, type], Histogram] = {}
        self._gauges: dict[Lane, Gauge] = {lane: metrics.PROVIDER_CALLS_IN_FLIGHT.labels(lane) for lane in LANES}
        self._in_flight: dict[Lane, int] = {}
        self._state: State | None = None
        self._open_seconds = 0.0

    def ended(self, ends: Sequence[End]) -> None:
        """Count the calls that ended, and log the failures: one line for all failures of a turn of the loop."""
        failures = 0
        for end in ends:
            outcome = type(end.outcome)
            seconds = self._seconds.get((end.call.kind, outcome))
            if seconds is None:
                seconds = metrics.PROVIDER_CALL_SECONDS.labels(end.call.kind, _LABELS[outcome])
                self._seconds[end.call.kind, outcome] = seconds
            seconds.observe(end.seconds)
            failures += end.error is not None
        for outcome, number in Counter(type(end.outcome) for end in ends).items():
            metrics.PROVIDER_ANSWERS.labels(_LABELS[outcome]).inc(number)
        if failures:
            first = next(end for end in ends if end.error is not None)
            request = first.call.request
            trace = trace_id(request.trace)
            log.warning(
                "provider_failed",
                order_id=request.order_id,
                trace_id=trace,
                kind=first.call.kind,
                error=first.error,
                calls=failures,
            )

    def in_flight(self, in_flight: Mapping[Lane, int]) -> None:
        """Show the number of running calls of each lane."""
        for lane, number in in_flight.items():
            if self._in_flight.get(lane) != number:
                self._in_flight[lane] = number
                self._gauges[lane].set(number)

    def breaker(self, state: State, open_seconds: float) -> None:
        """Show the state of the breaker, and how long it has not been closed. Log when it opens and when it closes."""
        if open_seconds != self._open_seconds:
            self._open_seconds = open_seconds
            metrics.PROVIDER_DOWN_SECONDS.set(open_seconds)
        if state == self._state:
            return
        if state == "open" and self._state in (None, "closed"):
            log.warning("provider_breaker_opened")
        elif state == "closed" and self._state is not None:
            log.info("provider_breaker_closed")
        self._state = state
        metrics.PROVIDER_BREAKER_OPEN.set(_OPEN[state])
