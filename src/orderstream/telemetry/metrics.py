"""The registry of all metrics of OrderStream: the name, kind, labels and meaning of each.

Bind a metric to its labels when a process starts (`CONSUMED.labels(service, topic)`) and change it once a batch, so
that it adds no cost to an order. Times are in seconds. The name of a size ends in its unit.
"""

import prometheus_client
from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
"""Media type of `exposition`."""

REGISTRY = CollectorRegistry()
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
ProcessCollector(registry=REGISTRY)


class Description(Struct, frozen=True):
    """The documentation of one metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


CATALOGUE: list[Description] = []
"""A description of each metric below, in the same order."""

_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    CATALOGUE.append(Description(name, "counter", labels, meaning))
    return Counter(name, meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    CATALOGUE.append(Description(name, "gauge", labels, meaning))
    return Gauge(name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    CATALOGUE.append(Description(name, "histogram", labels, meaning))
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


CONSUMED = _counter("orderstream_records_consumed_total", "Records received from Kafka.", "service", "topic")
DECIDED = _counter(
    "orderstream_records_decided_total", "Records whose decision is committed in Postgres.", "service", "topic"
)
PRODUCED = _counter("orderstream_events_produced_total", "Events that Kafka acknowledged.", "service", "topic")
DEAD_LETTERED = _counter(
    "orderstream_records_dead_lettered_total", "Records sent to the dead-letter topic.", "service", "topic"
)
RETRIED = _counter(
    "orderstream_records_retried_total", "Records whose batch failed and was retried.", "service", "topic"
)
REFUSED = _counter(
    "orderstream_records_refused_total",
    "Records that Kafka refused permanently, kept in refused_records. topic is other for an unknown topic.",
    "service",
    "topic",
)
REFUSED_ROWS = _gauge("orderstream_refused_records", "Refused records that were not redriven yet.")
BATCH_RECORDS = _histogram("orderstream_batch_records", "Records in one batch of a worker.", _COUNTS, "service")
BATCH_SECONDS = _histogram(
    "orderstream_batch_seconds", "Time from a batch's poll to the commit of its offsets.", _SECONDS, "service"
)
LAG = _gauge(
    "orderstream_lag_records",
    "Records in a partition that the service has not received yet.",
    "service",
    "topic",
    "partition",
)
PAUSED_PARTITIONS = _gauge(
    "orderstream_paused_partitions",
    "Partitions that the service has paused because it has no room for their records. The records wait as lag.",
    "service",
    "topic",
)

PROVIDER_ANSWERS = _counter(
    "orderstream_provider_answers_total",
    "Calls to the payment provider by outcome: authorized, declined, pending, voided, nothing_to_void, unanswered (no"
    " answer), refused (the provider did not act).",
    "outcome",
)
PROVIDER_CALLS_IN_FLIGHT = _gauge(
    "orderstream_provider_calls_in_flight",
    "Running calls to the payment provider. lane is new, retry, void or void_retry.",
    "lane",
)
PROVIDER_CALL_SECONDS = _histogram(
    "orderstream_provider_call_seconds",
    "Time of a call to the payment provider. kind is authorize or void. outcome is as in"
    " orderstream_provider_answers_total.",
    _SECONDS,
    "kind",
    "outcome",
)
PROVIDER_BREAKER_OPEN = _gauge(
    "orderstream_provider_breaker_open",
    "1 if no call to the payment provider may begin because it is down, 0.5 if a few may probe it, 0 otherwise.",
)
PROVIDER_DOWN_SECONDS = _gauge(
    "orderstream_provider_down_seconds",
    "How long the payment provider has been down, by the breaker of this process. 0 while the breaker is closed.",
)

OUTBOX_ROWS = _gauge("orderstream_outbox_rows", "Events in the outbox that are not published yet.")
OUTBOX_OLDEST_SECONDS = _gauge(
    "orderstream_outbox_oldest_seconds", "Age of the oldest event in the outbox. 0 if it is empty."
)
ORDERS_REMOVED = _counter("orderstream_orders_removed_total", "Old orders removed by retention.")
UNCOMPENSATED_OLDEST_SECONDS = _gauge(
    "orderstream_uncompensated_oldest_seconds",
    "Age of the oldest abort of an order that is not compensated. 0 if there is none.",
)

VOIDING_OLDEST_SECONDS = _gauge(
    "orderstream_voiding_oldest_seconds",
    "Age of the oldest void that the provider has not confirmed. 0 if there is none.",
)

HTTP_REQUESTS = _counter(
    "orderstream_http_requests_total",
    "HTTP requests answered. route is method and path, or unreadable if the HTTP server refused the request.",
    "route",
    "status",
)
HTTP_SECONDS = _histogram(
    "orderstream_http_request_seconds", "Time from the head of a request to its response.", _SECONDS, "route"
)
CACHE_READS = _counter(
    "orderstream_cache_reads_total",
    "Reads of an order by outcome: hit, miss, bypass (Redis cannot be used, or the order is being changed).",
    "outcome",
)
QUEUED_ORDERS = _gauge("orderstream_queued_orders", "Orders that wait for a group commit.")
WAITING_READS = _gauge("orderstream_waiting_reads", "Reads that wait for their order to settle.")
COMMITTED_ORDERS = _histogram("orderstream_group_commit_orders", "Orders in one group commit.", _COUNTS)


def exposition() -> bytes:
    """Return the values of all metrics in the Prometheus text format, `CONTENT_TYPE`."""
    return generate_latest(REGISTRY)
