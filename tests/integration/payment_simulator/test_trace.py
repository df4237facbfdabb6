"""The simulator continues the trace of a call: one span, with the key and the fault of the call."""

import asyncio
import random
import time
from pathlib import Path

import httpx

from orderstream.payment_simulator import app
from orderstream.payment_simulator.faults import Faults
from orderstream.payment_simulator.ledger import Ledger
from orderstream.payment_simulator.server import PaymentServer
from orderstream.payment_simulator.store import Store
from orderstream.telemetry.tracing import RecordedSpan, Tracer

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """A sink that keeps the spans."""

    def __init__(self) -> None:
        self.ended: list[RecordedSpan] = []

    def record(self, span: RecordedSpan) -> None:
        """Keep a span."""
        self.ended.append(span)

    def shutdown(self) -> None:
        """Do nothing."""


async def call(folder: Path, spans: Spans, faults: Faults, flags: str) -> int:
    """Authorize a payment within a trace, and return the status code."""
    async with Ledger(Store(folder / "ledger.db", time.time)) as ledger:
        payments = PaymentServer(ledger, faults, Tracer(spans, 100), None, random.Random(1))
        server = app.http_server(payments)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        async with httpx.AsyncClient() as http:
            answer = await http.post(
                f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/payments",
                json={"amount": "1.00", "currency": "EUR"},
                headers={"Idempotency-Key": "a", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}"},
            )
        listener.close()
        await server.shutdown(0.1)
        return answer.status_code


def test_a_call_of_a_sampled_trace_has_a_span_with_its_fault(tmp_path: Path) -> None:
    spans = Spans()
    assert asyncio.run(call(tmp_path, spans, Faults(error_after_rate=1), "01")) == 500
    (span,) = spans.ended
    assert (span.name, span.kind, span.trace_id, span.error) == (
        "POST /v1/payments",
        "SERVER",
        TRACE_ID,
        "error_after",
    )
    assert span.parent is not None
    assert span.parent.span_id == PARENT_ID
    assert (span.attributes["order.id"], span.attributes["simulator.fault"]) == ("a", "error_after")


def test_a_call_of_a_trace_that_is_not_sampled_has_no_span(tmp_path: Path) -> None:
    spans = Spans()
    assert asyncio.run(call(tmp_path, spans, Faults(), "00")) == 200
    assert spans.ended == []
