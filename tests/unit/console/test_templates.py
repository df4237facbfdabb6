"""The rules of templates and static files: no inline script or style, nothing marked as safe, known vendored files."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from starlette.requests import Request

from orderstream.console.web import filters
from orderstream.console.web.access import Visitor
from orderstream.console.web.pages import StaticFiles, Templates

CONSOLE = Path(filters.__file__).parents[1]
STATIC = CONSOLE / "static"
TEMPLATES = sorted((CONSOLE / "templates").rglob("*.html"))
# A comment of Jinja explains; it is not sent.
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_FORBIDDEN = {
    "an inline style": r"<style\b|\sstyle\s*=",
    "an inline script": r"<script(?![^>]*\bsrc=)",
    "an event handler": r"\son[a-z]+\s*=",
    "hx-on": r"\b(?:data-)?hx-on\b",
    "an evaluated value": r"(?:hx-vals|hx-headers)\s*=\s*[\"'](?:js|javascript):|=\s*[\"']javascript:",
    "a trigger filter": r"hx-trigger\s*=\s*(?:\"[^\"{]*\[|'[^'{]*\[)",
    "text marked as safe": r"\|\s*safe\b|autoescape\s+false|\bMarkup\b",
    "an address of another server": r"(?:src|href|action)\s*=\s*[\"'](?:https?:)?//",
}


@pytest.mark.parametrize("what", _FORBIDDEN)
def test_templates_have_nothing_that_the_content_security_policy_forbids(what: str) -> None:
    pattern = re.compile(_FORBIDDEN[what], re.IGNORECASE)
    found = [
        f"{path.relative_to(CONSOLE)}: {match.group()}"
        for path in TEMPLATES
        for match in pattern.finditer(_COMMENT.sub("", path.read_text()))
    ]
    assert not found, f"{what}: {found}"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an inline style", '<p style="color: red">'),
        ("an inline script", "<script>alert(1)</script>"),
        ("an event handler", '<p onclick="x()">'),
        ("hx-on", '<p hx-on:click="x()">'),
        ("an evaluated value", '<p hx-vals="js:{a: 1}">'),
        ("a trigger filter", '<p hx-trigger="click[ctrlKey]">'),
        ("text marked as safe", "{{ text|safe }}"),
        ("an address of another server", '<img src="//example.com/x.png">'),
    ],
)
def test_each_rule_finds_what_it_forbids(what: str, text: str) -> None:
    assert re.search(_FORBIDDEN[what], text, re.IGNORECASE)


def test_vendored_files_are_those_of_their_packages() -> None:
    listed = json.loads((STATIC / "vendored.json").read_text())
    assert {entry["file"] for entry in listed} == {path.name for path in STATIC.iterdir() if ".min." in path.name}
    for entry in listed:
        content = (STATIC / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry["file"]
        assert (STATIC / entry["licenceFile"]).read_text().strip(), entry["licenceFile"]
        if entry["file"].endswith(".js"):
            assert entry["version"].encode() in content, f"{entry['file']} does not name {entry['version']}"


def test_scripts_evaluate_no_strings() -> None:
    own = (STATIC / "console.js").read_text()
    assert not re.search(r"\beval\b|\bFunction\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write", own)
    assert len(own.splitlines()) < 300


def render(source: str, visitor: Visitor | None = None, **values: Any) -> str:
    """Render a page that has `source` as its content."""
    page = '{% extends "base.html" %}{% import "macros.html" as ui %}{% block title %}Test{% endblock %}'
    templates = Templates(StaticFiles(), {"is_local": True, "trace_ui_url": None})
    own = jinja2.DictLoader({"test.html": page + "{% block main %}" + source + "{% endblock %}"})
    environment = templates._environment
    assert environment.loader is not None
    environment.loader = jinja2.ChoiceLoader([own, environment.loader])
    scope = {"type": "http", "method": "GET", "path": "/test", "query_string": b"", "state": {"visitor": visitor}}
    headers = [(b"host", b"127.0.0.1"), *values.pop("headers", [])]
    return bytes(templates.page(Request({**scope, "headers": headers}), "test.html", **values).body).decode()


OPERATOR = Visitor("operator", "Ada")
READER = Visitor("reader", "reader")


def test_a_fragment_has_the_content_and_no_frame() -> None:
    whole = render("<p>content</p>", OPERATOR)
    fragment = render("<p>content</p>", OPERATOR, headers=[(b"hx-request", b"true")])
    assert "<nav" in whole
    assert "<p>content</p>" in whole
    assert fragment.split() == ["<title>Test", "·", "OrderStream</title>", "<p>content</p>"]


def test_the_frame_marks_the_current_page_and_names_the_visitor() -> None:
    page = render("", Visitor("operator", "<b>Ada</b>"))
    assert "&lt;b&gt;Ada&lt;/b&gt;" in page
    assert 'href="/play"' in page
    assert "aria-current" not in page
    assert "<nav" not in render("", None), "a visitor who is not logged in gets no navigation"


@pytest.mark.parametrize("visitor", [OPERATOR, READER], ids=["operator", "reader"])
def test_a_form_that_acts_is_disabled_for_a_reader_and_says_why(visitor: Visitor) -> None:
    form = """{{ ui.action("/x", "Cancel", visitor, "Cancel it", "cancel", confirm="Sure?", cli="orderstream x",
                          dry_run="Try") }}"""
    page = render(form, visitor)
    assert ("read-only token" in page) == (visitor is READER)
    assert ("disabled" in page) == (visitor is READER)
    assert 'data-confirm="Sure?"' in page
    assert "orderstream x" in page


def test_texts_from_outside_are_escaped_in_every_part() -> None:
    hostile = '"><script>alert(1)</script>'
    page = render(
        """{{ ui.head(x, x, ("/", x)) }}{{ ui.badge(x) }}{{ ui.facts([(x, x)]) }}{{ ui.notice(x, x) }}
        {{ ui.code(x, "c", cut=x) }}{{ ui.figure(x, x) }}{{ ui.input("n", x, x, hint=x, placeholder=x) }}
        {{ ui.select("n", x, [(x, x)], x) }}{{ ui.pager(x, cut=x) }}{{ ui.progress(x, 1, 2, x) }}
        {{ ui.spark([1, 2], x) }}{{ ui.tabs([("/", x)], "/", x) }}{{ ui.plot("p", x, {"series": [{"label": x}]}) }}
        {{ ui.action("/x", x, visitor, x, "a", text=x, confirm=x, curl=x, cli=x, dry_run=x) }}
        {% call(row) ui.table("t", x, [x, (x, "w-id")], [x]) %}<td>{{ row }}</td>{% endcall %}
        {% call ui.empty(x) %}{{ x }}{% endcall %}{% call ui.card(x, note=x) %}{{ x }}{% endcall %}""",
        OPERATOR,
        x=hostile,
    )
    assert "<script>alert" not in page
    assert '""><' not in page


def test_a_line_of_values_has_gaps_and_stays_in_its_box() -> None:
    page = render(
        '{{ ui.spark([0, 5, none, 10, 2.5], "Rate") }}{{ ui.spark([], "None") }}{{ ui.spark([0, 0], "Zero") }}'
    )
    paths = re.findall(r'class="line" d="([^"]+)"', page)
    assert paths == ["M0.00 23.00L25.00 12.00M75.00 1.00L100.00 17.50", "M0.00 23.00L100.00 23.00"]


def test_a_live_part_asks_for_its_own_page_and_takes_itself() -> None:
    page = render(
        '{% call ui.live("part", "1s", hold=true) %}now{% endcall %}{% call ui.live("still", none) %}{% endcall %}'
    )
    assert 'id="part" class="stack" data-live hx-get="" hx-trigger="every 1s" hx-select="#part"' in page
    assert 'id="still" class="stack" data-live>' in page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (-0.5, "now"),
        (12, "12 s ago"),
        (119, "119 s ago"),
        (180, "3 min ago"),
        (-7_200, "in 2 h"),
        (10**6, "12 d ago"),
    ],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    now = datetime(2026, 11, 26, 10, 32, 7, tzinfo=UTC)
    assert filters.since(now - timedelta(seconds=seconds), now) == text
