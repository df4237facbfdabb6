"""The registry of metrics: names follow the conventions of Prometheus, and the catalogue is complete."""

import re

from prometheus_client.metrics import MetricWrapperBase

from orderstream.telemetry import metrics
from tests.support.figures import figures

UNITS = ("seconds", "records", "rows", "orders", "reads", "partitions", "total", "in_flight", "open")


def defined() -> dict[str, MetricWrapperBase]:
    return {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def test_every_metric_is_in_the_catalogue_once() -> None:
    names = [description.name for description in metrics.CATALOGUE]
    assert len(names) == len(set(names)) == len(defined())


def test_metric_names_follow_the_conventions_of_prometheus() -> None:
    for description in metrics.CATALOGUE:
        assert re.fullmatch(r"orderstream(_[a-z]+)+", description.name)
        assert description.name.endswith(UNITS)
        assert (description.kind == "counter") == description.name.endswith("_total")
        assert description.meaning.endswith(".")


def test_the_exposition_can_be_read_by_prometheus() -> None:
    consumed = metrics.CONSUMED.labels("test-worker", "order.created.v1")
    consumed.inc(3)
    metrics.BATCH_SECONDS.labels("test-worker").observe(0.02)
    metrics.OUTBOX_ROWS.set(7)
    samples = figures(metrics.exposition().decode())
    labels = (("service", "test-worker"), ("topic", "order.created.v1"))
    assert samples["orderstream_records_consumed_total", labels] == 3
    assert samples["orderstream_batch_seconds_bucket", (("le", "0.025"), ("service", "test-worker"))] == 1
    assert samples["orderstream_outbox_rows", ()] == 7
    assert ("process_resident_memory_bytes", ()) in samples
    assert not any(name.endswith("_created") for name, _ in samples)
    assert metrics.CONTENT_TYPE.startswith("text/plain")
