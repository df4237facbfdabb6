"""The audit in the background: results on the page, one at a time in two consoles, cancel, and failures."""

from collections.abc import Iterator
from typing import Any

import pytest

from orderstream.audit.promises import PROMISES
from orderstream.console.promises import audits
from orderstream.postgres.connect import connect
from orderstream.settings import Settings
from tests.integration.decisions.orders import place
from tests.support.consoles import RunningConsole, running_console
from tests.support.waiting import wait_until

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def consoles(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RunningConsole, RunningConsole]]:
    """Two consoles of one database."""
    monkeypatch.setattr(audits, "RENEW_SECONDS", 0.05)
    settings = Settings.model_validate({"postgres_url": postgres_url})
    with running_console(settings) as one, running_console(settings) as other:
        yield one, other


def _latest(console: RunningConsole, state: str) -> Any:
    def latest() -> Any:
        found = console.get("/api/promises")["latest"]
        return found if found and found["state"] == state else None

    return wait_until(latest, 20, f"the newest audit is {state}")


def test_an_audit_shows_the_breaches_of_each_promise(
    consoles: tuple[RunningConsole, RunningConsole], postgres_url: str
) -> None:
    console, other = consoles
    assert "No audit has finished yet" in console.page("/promises")
    with connect(postgres_url, "test") as connection:
        order_id = place(connection)
        connection.execute("INSERT INTO inventory VALUES (%s, 0, 1)", (HOSTILE,))
    action_id = console.post("/api/promises/audit", {"graceSeconds": 0, "reason": "a look"}, 202)["actionId"]
    done = _latest(other, "done")
    assert (done["id"], done["actor"], done["reason"]) == (action_id, "Ada (operator)", "a look")
    found = other.get("/api/promises")
    assert [promise["sentence"] for promise in found["promises"]] == [promise.sentence for promise in PROMISES]
    results = {check["name"]: check["result"] for promise in found["promises"] for check in promise["checks"]}
    assert results["p5_settles"]["breaches"] == 1
    assert results["p5_settles"]["first"][0]["subject"] == order_id
    assert results["p1_durable"] == {"breaches": 0, "first": []}
    assert results["p2_provider_ledger"] is None, "this console has no local stack with a simulator"
    page = other.page("/promises")
    assert order_id in page
    assert HOSTILE not in page
    assert "This stack has no payment simulator" in page


def test_one_audit_runs_at_a_time_in_all_consoles_and_any_console_cancels_it(
    consoles: tuple[RunningConsole, RunningConsole], postgres_url: str
) -> None:
    console, other = consoles
    assert console.post("/api/promises/audit/cancel", {}, 409)["type"].endswith("no-audit")
    with connect(postgres_url, "test") as connection:
        connection.execute("INSERT INTO inventory VALUES ('A', 1, 0)")
        connection.execute("BEGIN")
        connection.execute("LOCK TABLE inventory")
        assert "running" in console.submit("/promises/audit", graceSeconds="0", reason="held")
        assert other.post("/api/promises/audit", {}, 409)["type"].endswith("audit-running")
        progress = wait_until(
            lambda: (other.get("/api/promises")["running"]["progress"] or {}).get("check") == "p3_stock_conserved",
            20,
            "the audit waits for the table, and its lease is renewed meanwhile",
        )
        assert progress
        assert "An audit runs already" in other.submit("/promises/audit", 409, graceSeconds="0", reason="x")
        assert "has cancelled it" in other.submit("/promises/audit/cancel")
        wait_until(lambda: other.get("/api/promises")["running"]["cancelledBy"], 20, "the audit is cancelled")
        connection.execute("ROLLBACK")
    assert _latest(console, "cancelled")["result"] == {"error": "cancelled by Ada (operator)"}
    assert "cancelled by Ada" in console.page("/promises")


def test_an_audit_that_fails_says_why(consoles: tuple[RunningConsole, RunningConsole], postgres_url: str) -> None:
    console, _ = consoles
    with connect(postgres_url, "test") as connection:
        connection.execute("ALTER TABLE reservations RENAME TO gone")
    console.post("/api/promises/audit", {}, 202)
    assert "reservations" in _latest(console, "failed")["result"]["error"]
    assert "has no result" in console.page("/promises")
    console.post("/api/promises/audit", {"graceSeconds": -1}, 400)
    assert console.reader.post("/api/promises/audit", json={}).status_code == 403
