"""The processes that are watched, what their metrics pages tell, and the members of consumer groups."""

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from orderstream.console.flow import processes_reader
from orderstream.console.flow.processes_reader import INSTANCES_MAX, WANTED, ProcessesReader, rates_between
from orderstream.console.flow.targets import NamedTargets, Target, service_of, targets_of
from orderstream.console.flow.topics import _assigned
from orderstream.process.pages import serve_pages
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


@pytest.fixture
def ports() -> Iterator[tuple[int, int, int]]:
    """The ports of a process that is ready, of one that is not, and of one that accepts and never answers."""
    ready = serve_pages("127.0.0.1", 0, lambda: None, lambda: None)
    waits = serve_pages("127.0.0.1", 0, lambda: None, lambda: "has published nothing for 35 s")
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        yield ready.server_port, waits.server_port, hangs.getsockname()[1]
    for server in (ready, waits):
        server.shutdown()
        server.server_close()


def test_a_process_that_never_answers_delays_the_others_by_a_second(
    ports: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes_reader, "PAGE_SECONDS", 0.3)
    targets = [Target("x", f"x-{n}", "127.0.0.1", port) for n, port in enumerate((*ports, 1))]
    reader = ProcessesReader(lambda: [*targets, Target("x", "x-9", "127.0.0.1", 1, ended=True)])
    found = reader.ask().instances
    reader.close()
    assert [instance.state for instance in found] == ["ready", "not ready", "no answer", "no answer", "ended"]
    assert found[1].problem == "has published nothing for 35 s"
    assert found[0].memory_bytes is not None


def test_only_some_of_many_processes_are_asked(ports: tuple[int, int, int]) -> None:
    reader = ProcessesReader(lambda: [Target("x", f"x-{n}", "127.0.0.1", ports[0]) for n in range(INSTANCES_MAX + 6)])
    sample = reader.ask()
    reader.close()
    assert len(sample.instances) == INSTANCES_MAX
    assert sample.left_out == 6


def test_a_process_with_a_new_start_time_has_restarted(
    ports: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    reader = ProcessesReader(lambda: [Target("x", "x", "127.0.0.1", ports[0])], lambda: now[0])
    assert reader.ask().instances[0].restarts == ()
    started = figures_of(metrics.exposition().decode(), WANTED)["process_start_time_seconds"][0][1]
    real = figures_of

    def restarted(text: str, names: Any) -> Any:
        return {**real(text, names), "process_start_time_seconds": [("", started + 1)]}

    monkeypatch.setattr(processes_reader, "figures_of", restarted)
    now[0] += 2
    assert reader.ask().instances[0].restarts == (102.0,)
    now[0] += processes_reader.RESTART_SECONDS
    assert reader.ask().instances[0].restarts == ()
    reader.close()


def test_an_assignment_of_a_member_is_read_and_a_wrong_one_is_empty() -> None:
    good = struct.pack(">hi", 0, 1) + struct.pack(">h", 1) + b"t" + struct.pack(">iii", 2, 0, 3) + struct.pack(">i", 0)
    assert _assigned(good) == {"t": [0, 3]}
    for wrong in (b"", b"\x00", good[:9], struct.pack(">hi", 0, 2**31 - 1) + b"\xff" * 100):
        assert _assigned(wrong) == {}
