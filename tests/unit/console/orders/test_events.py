"""The events of an order as the page shows them: hostile bytes, repetitions, and events that are not published."""

from datetime import timedelta

import msgspec

from orderstream.console.orders.events import (
    DATA_MAX_BYTES,
    HEADER_MAX_CHARACTERS,
    HEADERS_MAX,
    Position,
    in_order,
    of_outbox,
    of_record,
)
from orderstream.console.orders.record_search import FoundRecord
from orderstream.dead_letters.letter import JOB_HEADER
from orderstream.domain.events import build
from orderstream.kafka.envelope import Headers, encode
from tests.support.samples import AT, ORDER_ID, SAMPLES
from tests.unit.console.orders.rows import TRACEPARENT, outbox

EVENT = build(SAMPLES["payment.authorized"], AT)
HOSTILE = "<script>alert(1)</script>"


def record(offset: int = 5, value: bytes | None = None, headers: Headers | None = None) -> FoundRecord:
    body = encode(EVENT) if value is None else value
    return FoundRecord("payment.authorized.v1", 1, offset, body, headers or [], AT + timedelta(seconds=offset))


def test_an_event_has_its_place_its_times_and_its_payload() -> None:
    shown = of_record(record(headers=[("traceparent", TRACEPARENT.encode()), ("event-id", b"x")]), ORDER_ID)
    assert (shown.topic, shown.partition, shown.offset, shown.type) == (
        "payment.authorized.v1",
        1,
        5,
        "payment.authorized",
    )
    assert (shown.event_id, shown.occurred_at) == (EVENT.id, AT)
    assert shown.data["amount"] == "258.50"
    assert (shown.trace_id, shown.span_id) == (TRACEPARENT[3:35], TRACEPARENT[36:52])
    assert shown.problem is None


def test_a_record_that_cannot_be_read_is_shown_as_text_with_its_problem() -> None:
    for value, problem in ((HOSTILE.encode(), "NOT_JSON"), (b"\xff\x00", "NOT_JSON"), (b"", "NO_VALUE")):
        shown = of_record(record(value=value), ORDER_ID)
        assert shown.problem is not None
        assert shown.problem.startswith(problem)
        assert shown.data is None
        assert shown.type == "payment.authorized"
    assert of_record(record(value=b"\xff\x00"), ORDER_ID).text == "\\xff\x00"


def test_an_event_of_another_order_under_this_key_is_a_problem() -> None:
    shown = of_record(record(), "another")
    assert shown.problem is not None
    assert shown.problem.startswith("KEY_MISMATCH")


def test_large_records_and_headers_are_cut_at_a_shown_limit() -> None:
    many: Headers = [(f"{number}{HOSTILE}", b"x" * 2 * HEADER_MAX_CHARACTERS) for number in range(HEADERS_MAX + 3)]
    shown = of_record(record(value=b"[" * (DATA_MAX_BYTES + 10), headers=many), ORDER_ID)
    assert shown.text is not None
    assert (len(shown.text), shown.cut_from) == (DATA_MAX_BYTES, DATA_MAX_BYTES + 10)
    assert (len(shown.headers), shown.headers_left_out) == (HEADERS_MAX, 3)
    assert shown.headers[0].value is not None
    assert shown.headers[0].value.endswith(f"… {HEADER_MAX_CHARACTERS} more characters")


def test_the_same_event_at_another_offset_is_a_repetition() -> None:
    views = [of_record(record(offset), ORDER_ID) for offset in (9, 5, 7)]
    assert [(view.offset, view.repeats) for view in in_order(views)] == [
        (5, None),
        (7, Position(1, 5)),
        (9, Position(1, 5)),
    ]


def test_an_event_in_the_outbox_comes_last_and_has_no_place() -> None:
    ordered = in_order([of_outbox(outbox(), ORDER_ID), of_record(record(), ORDER_ID)])
    assert [(view.is_published, view.offset) for view in ordered] == [(True, 5), (False, None)]
    assert ordered[1].type == "order.created"


def test_a_redriven_record_is_marked() -> None:
    assert of_record(record(headers=[(JOB_HEADER, b"3")]), ORDER_ID).is_redriven


def test_the_view_of_any_record_is_json() -> None:
    shown = of_record(record(value=b"\xed\xa0\x80", headers=[("\x00", None), ("a", b"\xff")]), ORDER_ID)
    assert msgspec.json.decode(msgspec.json.encode(shown))["headers"] == [
        {"name": "\x00", "value": None},
        {"name": "a", "value": "\\xff"},
    ]
