"""Requests of OTLP as stored spans: every kind of value, and every limit."""

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from orderstream.console.traces import otlp
from orderstream.console.traces.otlp import MalformedError, decode
from orderstream.console.traces.store import Link, StoredSpan
from tests.unit.console.traces.spans import encoded, request, trace_id


def only(span: Span) -> StoredSpan:
    received = decode(request(span).SerializeToString())
    assert received.rejected == 0
    (found,) = received.spans
    return found


def test_all_fields_of_a_span_are_kept() -> None:
    span = encoded(
        parent_span_id=b"87654321",
        kind=Span.SPAN_KIND_CONSUMER,
        status=Status(code=Status.STATUS_CODE_ERROR, message="no answer"),
        links=[Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8)],
    )
    span.attributes.add(key="order.id").value.string_value = "o-1"
    assert only(span) == StoredSpan(
        trace_id=trace_id(0),
        span_id=b"12345678".hex(),
        parent_id=b"87654321".hex(),
        service="api-gateway",
        name="POST /orders",
        kind="CONSUMER",
        started_ns=1_000,
        ended_ns=2_000,
        attributes={"order.id": "o-1"},
        error="no answer",
        links=(Link((b"t" * 16).hex(), (b"s" * 8).hex()),),
    )


def test_every_kind_of_value_is_readable() -> None:
    span = encoded()
    span.attributes.add(key="text").value.string_value = "<b>"
    span.attributes.add(key="int").value.int_value = 3
    span.attributes.add(key="float").value.double_value = 0.5
    span.attributes.add(key="bool").value.bool_value = True
    span.attributes.add(key="bytes").value.bytes_value = b"\x00\xff"
    span.attributes.add(key="nothing")
    span.attributes.add(key="list").value.array_value.values.add().int_value = 1
    nested = span.attributes.add(key="map").value.kvlist_value.values.add(key="a")
    nested.value.array_value.values.add().array_value.values.add().int_value = 1
    assert only(span).attributes == {
        "text": "<b>",
        "int": 3,
        "float": 0.5,
        "bool": True,
        "bytes": "00ff",
        "nothing": "",
        "list": "[1]",
        "map": "{'a': ['…']}",
    }


def test_long_texts_and_many_attributes_are_cut_and_counted() -> None:
    span = encoded(name="n" * 500)
    for number in range(otlp.ATTRIBUTES_MAX + 7):
        span.attributes.add(key=f"key {number}").value.string_value = "v"
    span.attributes[0].value.string_value = "long " * 1_000
    span.attributes[1].key = "k" * 1_000
    found = only(span)
    assert len(found.attributes) == otlp.ATTRIBUTES_MAX
    assert found.cut == 8
    value = str(found.attributes["key 0"])
    assert len(value) <= otlp.VALUE_MAX_CHARACTERS
    assert value.endswith(" more characters")
    assert max(map(len, found.attributes)) <= otlp.NAME_MAX_CHARACTERS
    assert len(found.name) <= otlp.NAME_MAX_CHARACTERS


def test_a_span_never_ends_before_it_begins() -> None:
    assert only(encoded(start_time_unix_nano=10, end_time_unix_nano=3)).ended_ns == 10


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": b""},
        {"trace_id": bytes(16)},
        {"trace_id": b"short"},
        {"span_id": bytes(8)},
        {"span_id": b"far too long"},
        {"start_time_unix_nano": 2**63},
        {"end_time_unix_nano": 2**64 - 1},
        {"name": "x" * otlp.SPAN_MAX_BYTES},
    ],
)
def test_a_span_that_cannot_be_kept_is_rejected_alone(fields: dict[str, object]) -> None:
    received = decode(request(encoded(**fields), encoded()).SerializeToString())
    assert (len(received.spans), received.rejected) == (1, 1)
    assert b"not kept" in otlp.answer(received.rejected)


def test_a_request_without_spans_is_valid() -> None:
    assert decode(b"") == otlp.Received([], 0)
    assert otlp.answer(0) == b""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x0a", "too early"),
        (b"\x0a\x05ab", "too early"),
        (b"\x0b", "not protobuf"),
        (b"\xff" * 11, "not protobuf"),
        (b"\x0d\x00", "too early"),
        (b"{}", "not protobuf"),
        (b"\x0a\x02\x12\x00" * (otlp.GROUPS_MAX + 1), "resources and scopes"),
        (request(*[encoded()] * (otlp.SPANS_MAX + 1)).SerializeToString(), "spans"),
        (request(service="s" * otlp.RESOURCE_MAX_BYTES).SerializeToString(), "resource"),
    ],
)
def test_a_malformed_or_huge_request_is_refused_with_a_reason(body: bytes, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        decode(body)


def test_a_span_that_is_no_protobuf_makes_the_request_malformed() -> None:
    body = request(encoded(name="abc")).SerializeToString().replace(b"abc", b"\xff\xff\xff")
    with pytest.raises(MalformedError):
        decode(body)
