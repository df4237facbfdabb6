"""The page of one order shows any text as text: of clients, spans, log lines and dead letters."""

import re
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.requests import Request

from orderstream.console.orders.log_lines import LogLine, LogSearch
from orderstream.console.orders.record_search import Found
from orderstream.console.orders.stored import ActionRow, DeadLetterRow, LineRow
from orderstream.console.orders.story import Happened, Now, Trace
from orderstream.console.orders.story_pages import PageQuery, page_values
from orderstream.console.orders.waiting import Live, Rules, waiting_for
from orderstream.console.traces.store import Link, StoredSpan
from orderstream.console.web.access import Visitor
from orderstream.console.web.pages import StaticFiles, Templates
from orderstream.settings import Settings
from tests.unit.console.orders.rows import NOW, order, payment, reservation, stored
from tests.unit.console.orders.test_waiting import CASES

HOSTILE = '"><script>alert(1)</script>'
SETTINGS = Settings.model_validate({})


def render(now: Now, happened: Happened | None, settings: Settings = SETTINGS) -> str:
    templates = Templates(StaticFiles(), {"is_local": True, "trace_ui_url": None})
    visitor = Visitor("operator", HOSTILE)
    request = Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/orders/x",
            "query_string": b"",
            "headers": [],
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "state": {"visitor": visitor},
        }
    )
    console: Any = SimpleNamespace(settings=settings)
    values = page_values(console, PageQuery(), now, happened)
    page = templates.page(request, "orders/order.html", done=None, **values)
    return bytes(page.body).decode()


def now_of(rows: Any) -> Now:
    return Now(rows, waiting_for(rows, Rules.of(SETTINGS), Live()))


def hostile_span(number: int) -> StoredSpan:
    return StoredSpan(
        trace_id="a" * 32,
        span_id=f"{number:016x}",
        parent_id=HOSTILE,
        service=HOSTILE,
        name=HOSTILE,
        kind=HOSTILE,
        started_ns=1_767_323_100_000_000_000 + number,
        ended_ns=1_767_323_101_000_000_000,
        attributes={HOSTILE: HOSTILE},
        error=HOSTILE,
        links=(Link(HOSTILE, HOSTILE),),
    )


def test_no_text_of_anyone_becomes_markup() -> None:
    line = LogLine(
        at=NOW,
        level=HOSTILE,
        service=HOSTILE,
        event=HOSTILE,
        trace_id="a" * 32,
        fields={HOSTILE: HOSTILE},
        file=HOSTILE,
    )
    letter = DeadLetterRow(HOSTILE, 0, 1, NOW, HOSTILE, HOSTILE, 2, 3, HOSTILE, 1, "open", None)
    action = ActionRow(1, NOW, HOSTILE, HOSTILE, HOSTILE, "failed", HOSTILE, NOW)
    rows = stored(
        order("FAILED", user_id=HOSTILE, failure_reason=HOSTILE, idempotency_key=HOSTILE),
        payment("VOIDING", reason=HOSTILE),
        reservation("FAILED", reason=HOSTILE, skus=[HOSTILE]),
    )
    rows = replace(rows, lines=[LineRow(HOSTILE, 1, rows.order.amount)], actions=[action], dead_letters=[letter])
    happened = Happened(
        Found((), (), HOSTILE),
        (),
        [Trace("a" * 32, HOSTILE, [hostile_span(1), hostile_span(2)])],
        1,
        LogSearch(True, [line], 5, [HOSTILE]),
    )
    page = render(now_of(rows), happened)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;") > 20
    assert not re.search(r"""\s(?:id|class|href)="[^"]*(?:<|script&gt)""", page)
    assert "5 older log lines of this order are not shown." in page
    assert "The trace is too large: 1 of its spans were dropped." in page


@pytest.mark.parametrize("case", CASES)
def test_every_state_has_a_page(case: str) -> None:
    now = now_of(CASES[case][0])
    page = render(now, None)
    waiting = now.waiting_for
    assert (waiting.sentence in page) if waiting else ("It waits for nothing." in page)
    assert ('hx-trigger="every 1s"' in page) == (waiting is not None)
    assert 'hx-trigger="load"' in page


def test_a_settled_order_stays_live_for_a_moment() -> None:
    just = order("CONFIRMED", payment="authorized", stock="reserved", updated_at=NOW - timedelta(seconds=2))
    assert 'hx-trigger="every 1s"' in render(now_of(stored(just)), None)


def test_the_address_of_another_program_must_be_of_http() -> None:
    happened = Happened(Found((), ()), (), (), 0, LogSearch(is_available=False))
    for address, is_shown in (("https://traces/{traceId}", True), ("javascript:alert(1)//{traceId}", False)):
        page = render(now_of(stored()), happened, SETTINGS.model_copy(update={"trace_ui_url": address}))
        assert ("https://traces/0af7651916cd43dd8448eb211c80319c" in page) == is_shown
        assert "javascript:" not in page
