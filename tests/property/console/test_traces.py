"""For any bytes, the decoder returns spans within its limits or raises its own error. The store stays bounded."""

import random

from hypothesis import given
from hypothesis import strategies as st

from orderstream.console.traces import otlp
from orderstream.console.traces.otlp import MalformedError, decode
from orderstream.console.traces.store import TraceStore
from tests.unit.console.traces.spans import encoded, request

VALID = request(encoded(parent_span_id=b"87654321"), encoded(span_id=b"abcdefgh"), service="x").SerializeToString()
STORE_BYTES = 30_000


def keep(store: TraceStore, body: bytes) -> None:
    try:
        received = decode(body)
    except MalformedError:
        return
    store.add(received.spans)
    assert store.figures().bytes <= STORE_BYTES
    for span in received.spans:
        assert (len(span.trace_id), len(span.span_id), len(span.parent_id) in {0, 16}) == (32, 16, True)
        assert len(span.name) <= otlp.NAME_MAX_CHARACTERS
        assert span.started_ns <= span.ended_ns
        assert all(len(str(value)) <= 40 * otlp.VALUE_MAX_CHARACTERS for value in span.attributes.values())
        assert span in store.spans_of(span.trace_id) or store.figures().traces_evicted


@given(st.binary(max_size=300))
def test_any_bytes(body: bytes) -> None:
    keep(TraceStore(STORE_BYTES), body)


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_valid_request_with_some_bytes_changed(seed: int, changes: int) -> None:
    draw = random.Random(seed)
    body = bytearray(VALID)
    for _ in range(changes):
        body[draw.randrange(len(body))] = draw.randrange(256)
    keep(TraceStore(STORE_BYTES), bytes(body))


@given(st.integers(0, len(VALID)))
def test_a_valid_request_that_ends_early(length: int) -> None:
    keep(TraceStore(STORE_BYTES), VALID[:length])
