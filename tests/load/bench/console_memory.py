"""Measures the memory of a console whose store of traces is full.

`python -m tests.load.bench.console_memory` starts a console alone, sends it the recorded trace of one order under new
ids until the oldest traces leave, reads pages of it, and prints its memory. It needs no other server.
"""

import itertools
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from orderstream.local.processes.ports import LOOPBACK, pick
from orderstream.telemetry.ingest import ingest_token
from tests.support.collector import ReceivedSpan
from tests.support.trace_picture import recorded

LIMIT_MIB = 120
START_SECONDS = 60
TRACES_PER_REQUEST = 20
REQUESTS_MAX = 2_000
FURTHER_REQUESTS = 200
"""Requests after the store is full: it must not grow then."""


def main() -> int:
    """Print the memory in MiB, and return 1 if it is above the limit."""
    token = secrets.token_hex(16)
    port = pick(["console"], {}, avoid=())["console"]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "CONSOLE_TOKEN": token,
            "CONSOLE_PORT": str(port),
            "ORDERSTREAM_STATE": folder,
            "POSTGRES_URL": f"postgresql://{LOOPBACK}:1/none",
        }
        command = [sys.executable, "-m", "orderstream.cli", "console"]
        with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
            try:
                traces = _fill(httpx.Client(base_url=f"http://{LOOPBACK}:{port}", trust_env=False, timeout=30), token)
                pss, rss = _memory_mib(process.pid)
            finally:
                process.terminate()
    sys.stdout.write(f"console with {traces:,} traces in a full store: {pss:.1f} MiB (PSS), {rss:.1f} MiB (RSS)\n")
    return int(pss > LIMIT_MIB)


def _fill(client: httpx.Client, token: str) -> int:
    """Send traces until the store is full, and some more. Return the number of traces in it."""
    operator = {"authorization": f"Bearer {token}"}
    spans = {"authorization": f"Bearer {ingest_token(token)}", "content-type": "application/x-protobuf"}
    _await_start(client, operator)
    further = FURTHER_REQUESTS
    for body in itertools.islice(_requests(recorded()), REQUESTS_MAX):
        answer = client.post("/v1/traces", content=body, headers=spans)
        while answer.status_code == 429:
            time.sleep(0.1)
            answer = client.post("/v1/traces", content=body, headers=spans)
        answer.raise_for_status()
        figures = client.get("/api/traces?orderId=x", headers=operator).raise_for_status().json()["store"]
        further -= figures["tracesEvicted"] > 0
        if not further:
            client.get("/api/openapi.json", headers=operator).raise_for_status()
            return int(figures["traces"])
    raise AssertionError("the store is not full")


def _await_start(client: httpx.Client, headers: dict[str, str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.get("/api/openapi.json", headers=headers).raise_for_status()
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the console serves"
            time.sleep(0.1)
        else:
            return


def _requests(spans: Sequence[ReceivedSpan]) -> Iterator[bytes]:
    """Yield requests with the trace under new ids, as the exporters of its services send them, but together."""
    while True:
        whole = ExportTraceServiceRequest()
        for _ in range(TRACES_PER_REQUEST):
            trace, order = secrets.token_bytes(16), f"01a2176d-9db0-73f7-9e75-{secrets.token_hex(6)}"
            ids = {span.span_id: secrets.token_bytes(8) for span in spans}
            for service, found in itertools.groupby(spans, key=lambda span: span.service):
                group = whole.resource_spans.add()
                group.resource.attributes.add(key="service.name").value.string_value = service
                group.scope_spans.add().spans.extend(_encoded(span, trace, ids, order) for span in found)
        yield whole.SerializeToString()


def _encoded(span: ReceivedSpan, trace: bytes, ids: dict[str, bytes], order: str) -> Span:
    encoded = Span(
        trace_id=trace,
        span_id=ids[span.span_id],
        parent_span_id=ids.get(span.parent_id, b""),
        name=span.name,
        kind=Span.SpanKind.Value(f"SPAN_KIND_{span.kind}"),
        start_time_unix_nano=span.started_ns + secrets.randbelow(10**9),
        end_time_unix_nano=span.ended_ns + 10**9,
    )
    for name, value in span.attributes.items():
        held = encoded.attributes.add(key=name).value
        if isinstance(value, int):
            held.int_value = secrets.randbelow(10**6) if name.endswith("offset") else value
        else:
            held.string_value = order if value == span.attributes.get("order.id") else str(value)
    return encoded


def _memory_mib(pid: int) -> tuple[float, float]:
    """Return the PSS and RSS of a process and its descendants."""
    totals = {"Pss": 0, "Rss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in totals:
            totals[name] += int(rest.split()[0])
    return totals["Pss"] / 1_024, totals["Rss"] / 1_024


if __name__ == "__main__":
    sys.exit(main())
