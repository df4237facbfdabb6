"""Dead letters in the API and on the pages: found within a second, redriven after a dry run, with hostile bytes."""

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest

from orderstream.dead_letters.refused_records import keep
from orderstream.kafka.publication import Publication
from orderstream.kafka.topics import dead_letter_topic
from tests.support.consoles import RunningConsole, running_console
from tests.support.letters import SERVICE, SOURCE, Letters
from tests.support.topics import Tap, publish
from tests.support.waiting import wait_until

API = "/api/dead-letters"


@pytest.fixture
def console(letters: Letters) -> Iterator[RunningConsole]:
    """A console on the topics of this test."""
    with running_console(letters.settings) as running:
        yield running


def _found(console: RunningConsole, number: int, **query: Any) -> list[dict[str, Any]]:
    def ask() -> list[dict[str, Any]]:
        letters: list[dict[str, Any]] = console.get(API, **query)["letters"]
        return letters if len(letters) == number else []

    return wait_until(ask, 30, f"{number} letters")


def test_a_dry_run_is_needed_before_letters_are_redriven(letters: Letters, console: RunningConsole) -> None:
    letters.write(3)
    _found(console, 3)
    (group,) = console.get(API)["groups"]
    assert (group["service"], group["reason"], group["count"], group["open"]) == (SERVICE, "NOT_JSON", 3, 3)
    body = {"filter": {"service": SERVICE}, "note": "fixed", "rate": 1_000}
    dry = console.post(f"{API}/redrive", body)
    assert (dry["dryRun"], dry["count"], len(dry["sample"]), dry["job"]) == (True, 3, 3, None)
    assert console.post(f"{API}/redrive", body | {"dryRun": False}, 400)["type"].endswith(":confirm-missing")
    real = body | {"dryRun": False, "confirm": dry["confirm"]}
    assert console.post(f"{API}/redrive", real | {"note": " "}, 400)["type"].endswith(":note-missing")
    less = dry["confirm"] | {"count": 2}
    assert console.post(f"{API}/redrive", real | {"confirm": less}, 409)["type"].endswith(":count-grew")
    neither = {"note": "neither", "dryRun": False}
    assert console.post(f"{API}/redrive", neither, 400)["type"].endswith(":invalid-body")
    assert console.post(f"{API}/redrive", {"dryRun": True})["dryRun"] is True
    assert console.reader.post(f"{API}/redrive", json=body).status_code == 403
    with Tap(letters.brokers, [letters.name(SOURCE)]) as tap:
        started = console.post(f"{API}/redrive", real, 202)["job"]
        tap.count(3)
    job = wait_until(lambda: _finished(console, started["id"]), 20, "the job")
    assert (job["state"], job["done"], job["actor"], job["note"]) == ("done", 3, "Ada (operator)", "fixed")
    assert console.post(f"{API}/redrive", real, 409)["type"].endswith(":nothing-to-do")
    assert console.get(API, state="open")["letters"] == []
    assert {letter["state"] for letter in console.get(f"{API}/jobs/{job['id']}/letters")["letters"]} == {"sent"}
    assert console.get(f"{API}/jobs")["jobs"][0]["id"] == job["id"]
    kinds = letters.connection.execute("SELECT kind, state FROM operator_actions ORDER BY id").fetchall()
    assert kinds == [
        ("dead-letters.redrive", "failed"),
        ("dead-letters.redrive", "done"),
        ("dead-letters.redrive", "failed"),
    ]


def _finished(console: RunningConsole, job_id: int) -> dict[str, Any]:
    job: dict[str, Any] = console.get(f"{API}/jobs/{job_id}")
    return job if job["state"] in ("done", "cancelled") else {}


def test_hostile_bytes_are_shown_and_stay_text(letters: Letters, console: RunningConsole) -> None:
    topic = letters.name(dead_letter_topic(SERVICE))
    evil = b"<script>alert(1)</script>\x00\xff\x1b[2J\"'><img src=x onerror=alert(2)>"
    notes = {f"dlq-{name}": evil for name in ("topic", "partition", "offset", "reason", "error", "attempts")}
    publish(letters.brokers, [(topic, evil, evil * 5_000)], notes | {"x-<b>": evil, "y": b""})
    (letter,) = _found(console, 1)
    place = f"{letter['service']}/{letter['partition']}/{letter['offset']}"
    shown = console.get(f"{API}/{place}")
    assert bytes.fromhex(shown["bytes"]["key"]["hex"]) == evil
    assert (shown["bytes"]["value"]["size"], shown["bytes"]["key"]["isText"]) == (len(evil) * 5_000, False)
    assert shown["bytes"]["value"]["cutBytes"] == len(evil) * 5_000 - 64 * 1024
    assert console.get(f"{API}/{place}", all="true")["bytes"]["value"]["cutBytes"] == 0
    assert not shown["mayRedrive"]
    error = str(letter["error"])
    for path in ("/dead-letters", "/dead-letters?state=open", f"/dead-letters/{place}"):
        page = console.page(path)
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "&lt;script&gt;alert" in page
    assert console.get(API, error=error)["letters"] == [letter]
    console.page(f"/dead-letters/{SERVICE}/0/999999", 404)
    console.page("/dead-letters/other/0/1", 404)
    console.page(f"/dead-letters/{SERVICE}/99999999999/1", 404)


def _hidden(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found is not None
    return html.unescape(found[1])


def test_a_person_redrives_a_letter_on_the_pages_and_sees_that_it_failed_again(
    letters: Letters, console: RunningConsole
) -> None:
    letters.write(2)
    places = [f"{x['service']}/{x['partition']}@{x['offset']}" for x in _found(console, 2)]
    page = console.page("/dead-letters?reason=NOT_JSON")
    assert all(place in page for place in places)
    chosen = console.submit("/dead-letters/dry-run", kind="redrive", scope="chosen", letter=places[0])
    assert "Redrive 1 letter" in chosen
    matching = console.submit(
        "/dead-letters/dry-run", kind="redrive", scope="matching", filter=_hidden(page, "filter"), letter=places[0]
    )
    assert "Redrive 2 letters" in matching
    fields: dict[str, Any] = {name: _hidden(chosen, name) for name in ("kind", "selection", "confirm")}
    with Tap(letters.brokers, [letters.name(SOURCE)]) as tap:
        console.submit("/dead-letters/jobs", 400, **fields, reason="", rate="100")
        console.submit("/dead-letters/jobs", 400, **fields, reason="why", rate="0")
        job = console.submit("/dead-letters/jobs", **fields, reason="why <b>", rate="100")
        assert "why &lt;b&gt;" in job
        (record,) = tap.count(1)
    assert record.headers["redriven-from"].decode() == places[0]
    again = console.submit("/dead-letters/jobs", 409, **fields, reason="why", rate="100")
    assert "No counted letter is left" in again
    number = re.search(r"/dead-letters/jobs/(\d+)/cancel", job) or re.search(r"Redrive (\d+)", job)
    assert number is not None
    wait_until(lambda: _finished(console, int(number[1])), 20, "the job")
    headers = {name: record.headers[name].decode() for name in ("redriven-from", "redrive-job")}
    topic = letters.name(dead_letter_topic(SERVICE))
    publish(
        letters.brokers,
        [(topic, record.key, record.value)],
        {name: text.encode() for name, text in headers.items()}
        | {"dlq-topic": SOURCE.encode(), "dlq-reason": b"FAILED"},
    )
    _found(console, 3)
    letter = console.page(f"/dead-letters/{places[0].replace('@', '/')}")
    assert "failed again" in letter
    assert "redrive " in letter
    console.page("/dead-letters/jobs")
    for path in ("/dead-letters/jobs/999", "/dead-letters/jobs/x"):
        console.page(path, 404)


def test_a_job_is_cancelled_on_its_page(letters: Letters, console: RunningConsole) -> None:
    letters.write(30)
    _found(console, 30)
    dry = console.post(f"{API}/discard", {"filter": {}})
    real = {"filter": {}, "dryRun": False, "confirm": dry["confirm"], "note": "why", "rate": 1}
    job = console.post(f"{API}/discard", real, 202)["job"]
    assert "Cancel the job" in console.page(f"/dead-letters/jobs/{job['id']}")
    console.submit(f"/dead-letters/jobs/{job['id']}/cancel")
    ended = wait_until(lambda: _finished(console, job["id"]), 20, "the job is cancelled")
    assert ended["state"] == "cancelled"
    page = console.page(f"/dead-letters/jobs/{job['id']}")
    assert "Cancel the job" not in page
    assert "Ada (operator)" in page


def test_records_that_kafka_refused_are_listed_beside(letters: Letters, console: RunningConsole) -> None:
    record = Publication(SOURCE, b"<b>\xff", b"value", [])
    keep(letters.connection, "outbox-relay", [(record, "<i>too large")])
    answer = console.get(f"{API}/refused")
    assert [(found["key"], found["reason"], found["times"]) for found in answer["records"]] == [
        ("<b>\ufffd", "<i>too large", 1)
    ]
    page = console.page("/dead-letters")
    assert "&lt;i&gt;too large" in page
    assert "orderstream refused redrive" in page
