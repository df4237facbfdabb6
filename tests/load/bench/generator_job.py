"""What the load generator gets and returns: a job, and the report about it."""

import math
from collections.abc import Sequence

import msgspec

SHARES = (0.5, 0.95, 0.99, 0.999, 1.0)
"""The percentiles of a report. The last one is the maximum."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and to which server.

    The generator repeats the list `requests` (whole HTTP/1.1 requests) as often as necessary. An answer with the status
    `expected` is accepted, any other answer is refused. A request is unanswered if its connection ends first, or
    `answer_limit_seconds` after the last request was scheduled.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    expected: int = 201
    answer_limit_seconds: float = 30.0


class OpenJob(Job, frozen=True, kw_only=True, tag="open"):
    """Send `count` requests, `rate` per second, whether or not the server keeps up.

    A client that waits for answers slows down together with the server, and then hides how long its users would wait.
    Here the latency of a request counts from its scheduled time, also if the generator or the server delayed its
    sending. A request that cannot be sent waits in a queue until one of at most `connections_max` connections is free.
    """

    rate: float
    count: int
    connections_max: int = 256


class ClosedJob(Job, frozen=True, kw_only=True, tag="closed"):
    """Let `connections` send for `seconds`. Each sends its next request when the last one is answered.

    If `in_flight_max` is given, at most that many of the accepted and unanswered requests are not settled: the
    generator sends no further request before others settle. The process that started it must tell how many are settled.
    """

    seconds: float
    connections: int = 64
    in_flight_max: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The counts and times of a run. The sequences have the percentiles SHARES.

    `latency_ms` counts from the scheduled time (in a closed loop: from the sending) to the answer, of answered requests
    only. `late_ms` says how much later than scheduled an open loop got to a request: a late generator means that the
    machine had no CPU left for it. `cpu_seconds` is the CPU that the generator used from its first request to its last
    answer, and `seconds` is the time between them.
    """

    accepted: int
    refused: int
    unanswered: int
    statuses: dict[int, int]
    latency_ms: Sequence[float]
    late_ms: Sequence[float]
    seconds: float
    cpu_seconds: float


def percentiles(values: Sequence[float], shares: Sequence[float] = SHARES) -> list[float]:
    """Return for each share the smallest value that at least this share of `values` does not exceed. NaN if empty."""
    if not values:
        return [math.nan] * len(shares)
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in shares]
