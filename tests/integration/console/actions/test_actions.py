"""The record of actions: pages by filters, interrupted actions, one exclusive action at a time, and its bound."""

from collections.abc import Iterator
from typing import Any

import pytest

from orderstream.console.actions import log
from orderstream.console.actions.log import Action, AlreadyRunningError, LeaseLostError, recorded
from orderstream.console.actions.read import actions_page, latest
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from tests.support.consoles import RunningConsole, running_console
from tests.support.servers import Servers
from tests.support.waiting import wait_until

EXPIRE = "UPDATE operator_actions SET lease_until = now() - interval '1 second' WHERE state = 'running'"


@pytest.fixture
def console(postgres_url: str) -> Iterator[RunningConsole]:
    """A console on the database of the test."""
    with running_console(Settings.model_validate({"postgres_url": postgres_url})) as running:
        yield running


def _act(connection: Connection, kind: str, subject: str, actor: str = "Ada (operator)") -> None:
    with recorded(connection, Action(kind, subject, actor, "a reason", {"n": 1})) as outcome:
        outcome.result = {"ok": True}


def test_actions_are_found_by_kind_subject_and_actor_and_paged(console: RunningConsole, postgres_url: str) -> None:
    with connect(postgres_url, "test") as connection:
        for kind, subject, actor in [
            ("stock.set", "A", "x"), ("stock.add", "A", "y"), ("stocktaking", "A", "x"), ("order.cancel", "B\x00", "x")
        ]:  # fmt: skip
            _act(connection, kind, subject, actor)

    def kinds(**query: Any) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = console.get("/api/actions", limit=1, **query, **({} if cursor is None else {"cursor": cursor}))
            found += [action["kind"] for action in page["actions"]]
            cursor = page["next"]
            if cursor is None:
                return found

    assert kinds() == ["order.cancel", "stocktaking", "stock.add", "stock.set"]
    assert kinds(kind="stock") == ["stock.add", "stock.set"]
    assert kinds(kind="stock.set") == ["stock.set"]
    assert kinds(subject="A", actor="x") == ["stocktaking", "stock.set"]
    assert kinds(subject="B\ufffd") == ["order.cancel"]
    page = console.page("/actions?kind=stock&limit=1")
    assert "stock.add" in page
    assert "kind=stock&amp;subject=&amp;actor=&amp;limit=1&amp;cursor=2" in page
    assert console.page("/actions?kind=none").count("No action matches") == 1
    assert "a reason" in console.page("/actions/1")
    console.page("/actions/99", 404)


def test_an_action_that_fails_and_one_whose_console_ended(connection: Connection) -> None:
    with pytest.raises(ValueError, match="broken"), recorded(connection, Action("a.fails", "", "x", "")):
        raise ValueError("broken")
    log.begin(connection, Action("a.runs", "", "x", ""))
    failed, running = latest(connection, "a.fails"), latest(connection, "a.runs")
    assert failed is not None
    assert running is not None
    assert (failed.state, failed.result, running.state) == ("failed", {"error": "broken"}, "running")
    connection.execute(EXPIRE)
    running = latest(connection, "a.runs")
    assert running is not None
    assert running.state == "interrupted"


def test_of_an_exclusive_kind_one_action_runs_until_its_lease_ends(connection: Connection) -> None:
    action = Action("an.audit", "", "x", "")
    first = log.begin_exclusive(connection, action)
    with pytest.raises(AlreadyRunningError):
        log.begin_exclusive(connection, action)
    assert log.renew(connection, first, {"checks": 1}) is None
    assert log.cancel(connection, "an.audit", "y") == first
    assert log.cancel(connection, "an.audit", "z") == first
    assert log.renew(connection, first, {"checks": 2}) == "y"
    connection.execute(EXPIRE)
    assert log.cancel(connection, "an.audit", "y") is None
    second = log.begin_exclusive(connection, action)
    with pytest.raises(LeaseLostError):
        log.renew(connection, first, None)
    log.finish(connection, second, "done", {"ok": 1})
    log.finish(connection, second, "failed", None)
    states = [(found.id, found.state) for found in actions_page(connection, kind="an").actions]
    assert states == [(second, "done"), (first, "failed")]


def test_the_oldest_actions_are_removed(connection: Connection) -> None:
    first = [log.begin(connection, Action("a", "", "x", "")) for _ in range(5)]
    connection.execute(f"ALTER TABLE operator_actions ALTER COLUMN id RESTART WITH {log.ACTIONS_KEPT - 1}".encode())
    for _ in range(3):
        log.begin(connection, Action("a", "", "x", ""))
    assert len(actions_page(connection).actions) == 8, "a whole number of actions is not more than are kept"
    connection.execute(f"ALTER TABLE operator_actions ALTER COLUMN id RESTART WITH {log.ACTIONS_KEPT + 100}".encode())
    # The hundredth action removes the actions up to 100.
    last = log.begin(connection, Action("a", "", "x", ""))
    found = [action.id for action in actions_page(connection).actions]
    assert found == [last, log.ACTIONS_KEPT + 1, log.ACTIONS_KEPT, log.ACTIONS_KEPT - 1]
    assert not set(first) & set(found)


def test_a_postgres_that_hangs_is_answered_with_503(console: RunningConsole, servers: Servers) -> None:
    console.get("/api/actions")
    servers.postgres.pause()
    try:
        assert console.get("/api/actions", 503)["type"].endswith("unavailable")
    finally:
        servers.postgres.resume()
    wait_until(lambda: console.client.get("/api/actions").status_code == 200, 30, "the console reads again")
