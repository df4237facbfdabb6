"""The commands for orders, without a console."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.cli import main
from orderstream.cli import orders as command
from orderstream.console.orders import listing
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import running
from tests.support.servers import Servers

USER = "u-\x1b[2J\u202e\n1"


@pytest.fixture
def ids(connection: Connection) -> list[str]:
    """Orders of which the oldest is of another user, the newest first."""
    made = sorted((new_order_id(1_700_000_000 + number) for number in range(12)), reverse=True)
    for order_id in made:
        user = USER if order_id == made[-1] else "u-2"
        connection.execute(
            "INSERT INTO orders (id, user_id, amount, currency) VALUES (%s, %s, 12.50, 'USD')", (order_id, user)
        )
        connection.execute("INSERT INTO order_items VALUES (%s, 'SKU-1', 1, 12.50)", (order_id,))
    return made


@pytest.fixture
def environment(postgres_url: str, kafka_brokers: str, tmp_path: Path) -> dict[str, str]:
    """The variables of a command."""
    return {
        "POSTGRES_URL": postgres_url,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "KAFKA_BROKERS": kafka_brokers,
        "ORDERSTREAM_STATE": str(tmp_path / "state"),
    }


def run(environment: dict[str, str], *words: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, ["orders", *words], env=environment)


def listed(result: Result) -> Iterator[str]:
    """Yield the ids in the lines of a list."""
    assert result.exit_code == 0, result.output
    for line in result.stdout.splitlines():
        yield line.split()[2]


def test_the_list_has_a_line_for_each_order_and_a_cursor(environment: dict[str, str], ids: list[str]) -> None:
    first = run(environment, "list", "-n", "5")
    assert list(listed(first)) == ids[:5]
    assert "PROCESSING" in first.stdout
    assert "12.50 USD    1 line " in first.stdout
    cursor = first.stderr.split()[-1]
    assert list(listed(run(environment, "list", "--cursor", cursor))) == ids[5:]
    filtered = run(environment, "list", "--status", "PAID", "--status", "PROCESSING", "--newer-than", "9000d")
    assert list(listed(filtered)) == ids
    assert list(listed(run(environment, "list", "--older-than", "9000d"))) == []
    assert run(environment, "list", "--sku", "none").stderr == "No order matches.\n"


def test_the_list_is_the_json_of_the_api(environment: dict[str, str], ids: list[str]) -> None:
    answer = json.loads(run(environment, "list", "--json", "-n", "2").stdout)
    assert [order["orderId"] for order in answer["orders"]] == ids[:2]
    assert answer["orders"][0]["amount"] == "12.50"
    assert answer["next"]
    assert answer["searched"]["complete"]


def test_the_list_of_the_command_goes_on_until_it_has_found_enough(
    environment: dict[str, str], ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PART_FIRST", 2)
    monkeypatch.setattr(listing, "DEEP_SEARCHED_MAX", 3)
    found = run(environment, "list", "--user", USER, "-n", "1")
    assert list(listed(found)) == ids[-1:]
    monkeypatch.setattr(command, "PAGES_MAX", 2)
    stopped = run(environment, "list", "--user", USER, "-n", "1")
    assert stopped.stdout == ""
    assert "--cursor" in stopped.stderr


def test_text_of_a_client_is_safe_for_a_terminal(environment: dict[str, str], ids: list[str]) -> None:
    for words in (("list",), ("show", ids[-1])):
        output = run(environment, *words).stdout
        assert "\\x1b[2J\\u202e\\n1" in output
        assert "\x1b" not in output


def test_the_story_of_an_order_is_shown(environment: dict[str, str], ids: list[str]) -> None:
    shown = run(environment, "show", ids[0].upper())
    assert shown.exit_code == 0, shown.output
    assert f"order        {ids[0]}" in shown.stdout
    assert "line         1 x SKU-1 at 12.50" in shown.stdout
    assert "waits for    kafka: " in shown.stdout
    story = json.loads(run(environment, "show", ids[0], "--json").stdout)
    assert story["order"]["orderId"] == ids[0]
    assert story["waitingFor"]["kind"] == "kafka"
    unknown = run(environment, "show", new_order_id(0))
    assert (unknown.exit_code, unknown.stderr) == (1, "Error: there is no such order\n")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("list --status OPEN", "status"),
        ("list --reason a'b", "failureReason"),
        ("list --older-than soon", "--older-than"),
        ("list -n 0", "-n"),
        ("show 12", "ID"),
        ("cancel 12 --reason x", "ID"),
        ("cancel 00000000-0000-7065-a63c-b62a536ed392", "--reason"),
        (f"nudge 00000000-0000-7065-a63c-b62a536ed392 --reason {'x' * 501}", "--reason"),
    ],
)
def test_a_wrong_argument_is_named(environment: dict[str, str], words: str, names: str) -> None:
    result = run(environment, *words.split())
    assert result.exit_code == 2
    assert names in result.stderr


def test_an_order_is_nudged_and_cancelled(
    environment: dict[str, str], ids: list[str], connection: Connection, servers: Servers, tmp_path: Path
) -> None:
    nudged = run(environment, "nudge", ids[0], "--reason", "it is late")
    assert (nudged.exit_code, nudged.stdout.partition(".")[0]) == (0, "The watchdog checks the order within a second")
    with running(tmp_path / "log", POSTGRES_URL=environment["POSTGRES_URL"], REDIS_URL=servers.redis_url) as gateway:
        base_url = {"BASE_URL": f"http://127.0.0.1:{gateway.port}"}
        cancelled = run(environment | base_url, "cancel", ids[0], "--reason", "by phone")
    assert cancelled.stdout.startswith("The order is cancelled.")
    assert connection.execute("SELECT status FROM orders WHERE id = %s", (ids[0],)).fetchone() == ("CANCELLED",)
    rows = connection.execute(
        "SELECT kind, reason, state, actor LIKE '%% (cli)' FROM operator_actions ORDER BY id"
    ).fetchall()
    assert rows == [("order.nudge", "it is late", "done", True), ("order.cancel", "by phone", "done", True)]
    missing = run(environment, "nudge", new_order_id(0), "--reason", "x")
    assert (missing.exit_code, missing.stderr) == (1, "Error: 404 not-found: There is no such order.\n")
