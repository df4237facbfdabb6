"""The step that docs/add-a-step.md adds works: the blocks of the page are applied to a copy of this repository.

Everything of the step runs in the copy, by the executable and in processes of their own. The copy is on their path.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec import structs

from orderstream.domain.events import build
from orderstream.local.processes.state import checkout
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.decisions.orders import place, row
from tests.support.processes import Process
from tests.support.samples import AT, order_updated
from tests.support.topics import Letter, Tap, begin_here, end_offsets, offsets_of, publish_events
from tests.support.waiting import wait_until

ROOT = checkout()
PAGE = ROOT / "docs" / "add-a-step.md"
GROUP, UPDATED, CREATED = "shipping-worker", "order.updated.v1", "shipment.created.v1"
COMMAND_SECONDS = 300

_COPIED = ("src", "tests", "contracts", "docs", "pyproject.toml", ".importlinter", "docker-compose.yml")
_BLOCK = re.compile(r"^```(python|sql|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:#|--) (\S+)\n")

# Instead of the fixtures of this repository, which start the servers: the tests of the page use those of this run.
_CONFTEST = """
import os

import pytest

from orderstream.postgres.connect import connect


@pytest.fixture
def connection():
    with connect(os.environ["POSTGRES_URL"], "test") as opened:
        opened.execute("TRUNCATE orders CASCADE")
        yield opened
"""

_KEEPS_CONTRACT = """
import sys
from tests.support.contracts import assert_event
topic, key, value = sys.argv[1:]
assert_event(topic, key.encode(), value.encode())
"""
_LISTED = """
import sys
from pathlib import Path
from orderstream.cli import main
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.local.plan import plan
from orderstream.local.processes.state import StateDir
from orderstream.settings import Settings
group, state = sys.argv[1:]
assert group in {service.name for service in plan(Settings(), StateDir(Path(state)), {}).services}
assert group in CONSUMER_GROUPS
assert group in main.commands
(services,) = main.commands["dlq"].commands["show"].params[:1]
assert group in services.type.choices
"""
_STATUS = """
from orderstream.local.backlog import report
from orderstream.settings import load
print(*report(load()), sep="\\n")
"""


def _blocks(language: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) if found == language]


def _new_files() -> dict[str, str]:
    """Return the files that the page writes: path -> text without the line that names the file."""
    found = {}
    for block in _blocks("python") + _blocks("sql"):
        named = _FILE.match(block)
        assert named is not None, f"its first line names no file:\n{block}"
        found[named[1]] = block[named.end() :]
    return found


def _changes() -> list[tuple[str, str, str]]:
    """Return what the page changes in files that exist: path, lines before, lines after."""
    found = []
    for block in _blocks("diff"):
        for change in re.split(r"^\+\+\+ ", block, flags=re.MULTILINE)[1:]:
            path, _, lines = change.partition("\n")
            rows = lines.splitlines(keepends=True)
            before = "".join(line[1:] for line in rows if line[0] in " -")
            after = "".join(line[1:] for line in rows if line[0] in " +")
            found.append((path, before, after))
    return found


def _apply(root: Path) -> None:
    """Copy the repository to `root` and do there what the page says."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    for name, text in _new_files().items():
        path = root / name
        assert not path.exists(), f"{name} exists already: the page must name another file"
        path.parent.mkdir(exist_ok=True)
        if name.startswith("src/") and path.suffix == ".py":
            (path.parent / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")
    for name, before, after in _changes():
        text = (root / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name} does not have these lines, or has them twice:\n{before}"
        (root / name).write_text(text.replace(before, after), encoding="utf-8")


class Copy:
    """The copy with the step in it, and how to run a program of it on this run's servers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def environment(self, settings: Settings | None = None) -> dict[str, str]:
        """Return the environment of a program that finds its modules in the copy."""
        path = os.pathsep.join([str(self.root / "src"), str(self.root)])
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        if settings is not None:
            env |= {
                name.upper(): str(getattr(settings, name)) for name in ("postgres_url", "redis_url", "kafka_brokers")
            }
        return env

    def run(self, *argv: str, settings: Settings | None = None) -> str:
        """Run `python -m argv` in the copy, which must exit 0, and return its output."""
        return self._run(["-m", *argv], settings)

    def python(self, script: str, *arguments: str, settings: Settings | None = None) -> str:
        """Run a script in the copy, which must exit 0, and return its output."""
        return self._run(["-c", script, *arguments], settings)

    def _run(self, argv: list[str], settings: Settings | None) -> str:
        done = subprocess.run(
            [sys.executable, *argv],
            cwd=self.root,
            env=self.environment(settings),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{argv}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The copy, with its contracts and diagrams written as `make contracts` and `make diagrams` write them."""
    made = Copy(tmp_path_factory.mktemp("tutorial"))
    _apply(made.root)
    made.run("contracts.generate")
    made.run("docs.generate")
    return made


@pytest.fixture
def migrated(copy: Copy, settings: Settings) -> Settings:
    """Settings of a database that has the migration of the step too."""
    assert "applied" in copy.run("orderstream.cli", "migrate", settings=settings)
    return settings


@pytest.fixture
def shipping(copy: Copy, migrated: Settings) -> Iterator[Process]:
    """A running shipping-worker, which begins with what the test writes."""
    copy.run("orderstream.cli", "topics", settings=migrated)
    begin_here(migrated.kafka_brokers, GROUP, [UPDATED])
    worker = Process([sys.executable, "-m", "orderstream.cli", GROUP], env=copy.environment(migrated))
    try:
        with worker.watched(GROUP):
            yield worker
    finally:
        worker.kill()
        worker.wait(20)


def _confirm(connection: Connection, order_id: str) -> None:
    connection.execute(
        "UPDATE orders SET status = 'CONFIRMED', payment = 'authorized', stock = 'reserved' WHERE id = %s", (order_id,)
    )


def _wait_caught_up(settings: Settings) -> None:
    def caught_up() -> bool:
        brokers = settings.kafka_brokers
        return offsets_of(brokers, GROUP, [UPDATED]) == end_offsets(brokers, [UPDATED])

    wait_until(caught_up, 60, "the worker has committed every offset")


def test_the_new_files_keep_the_rules_of_this_repository(copy: Copy) -> None:
    python = [name for name in _new_files() if name.endswith(".py")]
    copy.run("ruff", "check", "--no-cache", *python)
    copy.run("ruff", "format", "--no-cache", "--check", *python)
    copy.run("mypy", "--cache-dir", os.devnull, "--follow-imports=silent", *python)


def test_the_tests_of_the_page_pass(copy: Copy, migrated: Settings) -> None:
    (copy.root / "tests" / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    written = [name for name in _new_files() if name.startswith("tests/")]
    assert " passed" in copy.run("pytest", "-q", "-p", "no:cacheprovider", *written, settings=migrated)


def test_a_confirmed_order_leads_to_one_shipment_and_one_event(
    copy: Copy, shipping: Process, migrated: Settings, connection: Connection
) -> None:
    confirmed, other = (place(connection) for _ in range(2))
    _confirm(connection, confirmed)
    event = build(order_updated(order_id=confirmed), AT)
    not_confirmed = build(structs.replace(order_updated(order_id=other), status="PAID"), AT)
    with Tap(migrated.kafka_brokers, [CREATED, f"{GROUP}.dlq.v1"]) as tap:
        publish_events(migrated.kafka_brokers, [event, not_confirmed])
        _wait_caught_up(migrated)
        (first,) = tap.so_far()
        publish_events(migrated.kafka_brokers, [event, build(order_updated(order_id=str(uuid4())), AT)])
        _wait_caught_up(migrated)
        letters = tap.so_far()
    shipments = [letter for letter in letters if letter.topic == CREATED]
    assert [letter.value for letter in shipments] == [first.value] * 2
    assert [letter.headers["dlq-reason"] for letter in letters if letter not in shipments] == [b"UNKNOWN_ORDER"]
    order_id, decided_at = row(connection, "SELECT order_id, decided_at FROM shipments")
    assert order_id == confirmed
    assert f"{GROUP:<20} 0 records behind" in copy.python(_STATUS, settings=migrated)
    body = _kept_contract(copy, first)
    assert body["occurredAt"] == decided_at.isoformat().replace("+00:00", "Z")
    assert body["payload"] == {"orderId": confirmed}


def _kept_contract(copy: Copy, letter: Letter) -> dict[str, Any]:
    """Return the body of an event, which must keep the contract that the copy has generated."""
    assert letter.key is not None
    assert letter.value is not None
    copy.python(_KEEPS_CONTRACT, letter.topic, letter.key.decode(), letter.value.decode())
    body: dict[str, Any] = json.loads(letter.value)
    return body


def test_the_service_of_the_new_step_is_in_each_list_of_services_in_the_code(copy: Copy, tmp_path: Path) -> None:
    copy.python(_LISTED, GROUP, str(tmp_path))
    assert f"command: [{GROUP}]" in (copy.root / "docker-compose.yml").read_text(encoding="utf-8")


def test_the_diagram_of_the_events_shows_the_step(copy: Copy) -> None:
    diagrams = (copy.root / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert GROUP in diagrams
    assert "shipment.created" in diagrams


def test_the_service_of_the_new_step_keeps_the_rules_of_the_layers(copy: Copy) -> None:
    copy.python("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
