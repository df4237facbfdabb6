"""The processes that are watched, what their metrics pages tell, and the members of consumer groups."""

import struct

import pytest

from orderstream.console.flow.processes_reader import WANTED, rates_between
from orderstream.console.flow.targets import NamedTargets, service_of, targets_of
from orderstream.console.flow.topics import _assigned
from orderstream.settings import Settings, SettingsError, load
from orderstream.telemetry import metrics
from orderstream.telemetry.metrics_page import figures_of, largest, total


def test_a_name_with_a_number_belongs_to_the_service() -> None:
    assert service_of("payment-worker-2") == service_of("payment-worker") == "payment-worker"
    assert service_of("order-service") == "order-service"


def test_the_named_processes_are_asked_at_each_address_of_their_host() -> None:
    named = NamedTargets(
        "payment-worker=http://127.0.0.1:9100, payment-worker-2=http://localhost:9101,x=http://a.invalid:1"
    )
    assert named.services == ("payment-worker", "x")
    targets = {(target.service, target.host, target.port) for target in named()}
    assert ("payment-worker", "127.0.0.1", 9_100) in targets
    assert ("x", "a.invalid", 1) in targets, "an unknown name is shown as a process that does not answer"
    assert any(service == "payment-worker" and port == 9_101 for service, _, port in targets)


def test_without_a_stack_and_without_names_no_process_is_watched() -> None:
    targets, services = targets_of(Settings.model_validate({}), None)
    assert (list(targets()), services) == ([], ())


@pytest.mark.parametrize(
    "wrong", ["payment-worker", "a=b", "a=https://x:1", "a=http://x", "a=http://:1", "a b=http://x:1"]
)
def test_a_wrong_list_of_processes_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSOLE_INSTANCES", wrong)
    with pytest.raises(SettingsError, match="CONSOLE_INSTANCES"):
        load()


def test_our_own_metrics_page_is_read_as_it_is_written() -> None:
    metrics.CACHE_READS.labels("hit").inc(3)
    metrics.CACHE_READS.labels("miss").inc(1)
    metrics.HTTP_SECONDS.labels('GET /a "b" {c}').observe(0.02)
    figures = figures_of(metrics.exposition().decode(), WANTED)
    assert total(figures, "orderstream_cache_reads_total", 'outcome="hit"') >= 3
    assert largest(figures, "process_start_time_seconds") > 0
    assert ('le="0.025",route="GET /a \\"b\\" {c}"', 1.0) in figures["orderstream_http_request_seconds_bucket"]
    assert set(figures) <= WANTED


def test_a_page_that_is_no_metrics_page_is_refused() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        figures_of("orderstream_cache_reads_total x", WANTED)
    assert figures_of("<html>", WANTED) == {}


def test_the_rates_of_a_process_are_those_between_two_pages() -> None:
    def page(*counts: int) -> str:
        consumed, batches, hits, misses, fast, slow = counts
        return f"""orderstream_records_consumed_total{{topic="a"}} {consumed}
orderstream_batch_seconds_sum{{service="x"}} {batches * 0.02}
orderstream_batch_seconds_count{{service="x"}} {batches}
orderstream_cache_reads_total{{outcome="hit"}} {hits}
orderstream_cache_reads_total{{outcome="miss"}} {misses}
orderstream_http_requests_total{{route="POST /orders",status="201"}} {fast + slow}
orderstream_http_request_seconds_bucket{{le="0.005",route="POST /orders"}} {fast}
orderstream_http_request_seconds_bucket{{le="0.5",route="POST /orders"}} {fast + slow}
orderstream_http_request_seconds_bucket{{le="+Inf",route="POST /orders"}} {fast + slow}
orderstream_http_request_seconds_bucket{{le="0.005",route="GET /orders/{{id}}"}} 1000"""

    before, after = (figures_of(page(*given), WANTED) for given in ((0, 10, 0, 0, 0, 0), (240, 20, 30, 10, 97, 3)))
    rates = rates_between(before, after, 2.0)
    assert rates.records_per_second == 120
    assert rates.batch_seconds == pytest.approx(0.02)
    assert rates.cache_hits == 0.75
    assert rates.requests_per_second == 50
    assert rates.post_p99_seconds == 0.5
    assert rates.events_per_second is None
    assert rates_between(after, after, 2.0).post_p99_seconds is None


def test_an_assignment_of_a_member_is_read_and_a_wrong_one_is_empty() -> None:
    good = struct.pack(">hi", 0, 1) + struct.pack(">h", 1) + b"t" + struct.pack(">iii", 2, 0, 3) + struct.pack(">i", 0)
    assert _assigned(good) == {"t": [0, 3]}
    for wrong in (b"", b"\x00", good[:9], struct.pack(">hi", 0, 2**31 - 1) + b"\xff" * 100):
        assert _assigned(wrong) == {}
