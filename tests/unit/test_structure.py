"""The structure of the code: the packages that write a table, the readers of the environment, and the names."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.queries import SOURCE, queries

SHARED_PACKAGE = "postgres"
TABLES = {
    "orders",
    "order_items",
    "inventory",
    "payments",
    "reservations",
    "outbox",
    "outbox_floor",
    "refused_records",
    "operator_actions",
    "dead_letters",
    "dead_letter_positions",
    "dead_letter_jobs",
    "dead_letter_actions",
}

# The packages that write each table, with the reason.
WRITERS = {
    "orders": {
        "api_gateway": "inserts accepted orders, cancels orders",
        "order_service": "schedules the next check of an order",
        "console": "makes the next check of an order due at once, when an operator nudges it",
        "outbox_relay": "removes old orders. Items, payments and reservations go with them by their foreign keys",
        SHARED_PACKAGE: "has the statements that change an existing order, for order-service and for a cancel",
    },
    "order_items": {"api_gateway": "inserts the items with their order"},
    "inventory": {
        "inventory_worker": "reserves and releases. Its package also has the stock commands",
        "outbox_relay": "removes the units that a CONFIRMED order holds, when it removes the order",
    },
    "payments": {
        "payment_worker": "decides about payments",
        "console": "makes the next attempt due at once, when an operator nudges the order",
    },
    "reservations": {"inventory_worker": "decides about stock"},
    "outbox": {
        "api_gateway": "appends in the statement that accepts orders",
        SHARED_PACKAGE: "has the append that all packages use",
        "outbox_relay": "deletes the events that it publishes, and puts back events that Kafka did not acknowledge",
    },
    "outbox_floor": {"outbox_relay": "stores the id from which to read"},
    "operator_actions": {"console": "records what operators do"},
    "refused_records": {"dead_letters": "keeps the records that Kafka refuses. The package also has the redrive"},
    "dead_letters": {"dead_letters": "fills the index of the dead letters, and notes what jobs did with them"},
    "dead_letter_positions": {"dead_letters": "stores how far the index is"},
    "dead_letter_jobs": {"dead_letters": "creates jobs that redrive or discard letters, and runs them"},
    "dead_letter_actions": {"dead_letters": "stores what each job did with each letter"},
}
_WRITE = re.compile(
    r"\b(?:INSERT\s+INTO|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE(?:\s+TABLE)?|COPY|(?<!FOR )(?<!KEY )(?<!DO )UPDATE)\s+"
    r"(?:ONLY\s+)?(?!SET\b|OF\b|SKIP\b|NOWAIT\b)\"?([a-z_]+)",
    re.IGNORECASE,
)
PYTHON = sorted(SOURCE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_the_pattern_finds_every_statement_that_writes() -> None:
    text = """
        INSERT INTO a SELECT 1; DELETE FROM b; UPDATE c SET x = 1; MERGE INTO d; TRUNCATE e; COPY f FROM stdin;
        SELECT 1 FROM g FOR UPDATE; SELECT 1 FROM h FOR NO KEY UPDATE SKIP LOCKED;
        INSERT INTO i VALUES (1) ON CONFLICT (x) DO UPDATE SET y = 1; UPDATE ONLY j SET x = 1
    """
    assert _WRITE.findall(text) == ["a", "b", "c", "d", "e", "f", "i", "j"]


def test_only_the_listed_packages_write_a_table() -> None:
    writers: dict[str, set[str]] = defaultdict(set)
    for query in queries():
        for table in _WRITE.findall(query.text):
            writers[table.lower()].add(query.room)
    assert writers == {table: set(rooms) for table, rooms in WRITERS.items()}


def _sql_in(path: Path) -> list[str]:
    """Return the tables that SQL in the string literals of a module writes. Docstrings do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    literals = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )
    return [table for text in literals for table in _WRITE.findall(text) if table in TABLES]


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_tables_are_written_only_by_sql_files(path: Path) -> None:
    assert _sql_in(path) == []


# Modules that use the environment. Only settings.py reads settings from it.
ENVIRONMENT = {
    "settings.py": "reads the settings",
    "local/servers/orderstream.py": "passes the environment on to the services that `up` starts",
    "local/servers/kafka_jars.py": "sets the path of the system's certificates for the download, if it is not set",
}


def _uses_environment(path: Path) -> bool:
    return (
        re.search(r"\bos\.(environb?|getenvb?|putenv)\b|from os import", path.read_text(encoding="utf-8")) is not None
    )


def test_only_the_listed_modules_use_the_environment() -> None:
    assert {_name(path) for path in PYTHON if _uses_environment(path)} <= set(ENVIRONMENT)


def test_every_listed_module_uses_the_environment() -> None:
    listed = {name for name in ENVIRONMENT if name != "settings.py"}
    assert listed == {name for name in listed if _uses_environment(SOURCE / name)}


WALL_CLOCK = re.compile(r"datetime\.now\(|\btime\.time(_ns)?\b|utcnow\(|\btoday\(")
MAY_READ_A_WALL_CLOCK = {
    "console/processes/act.py": "how often `up` restarted a process within the last minute",
    "console/web/guard.py": "the age of a session",
    "console/web/pages.py": "the time that a page shows as its own, and the ages on it",
    "console/flow/monitor.py": "the times that the overview shows. Ages are measured by the monotonic clock",
    "http_server/response_head.py": "the Date field of a response",
    "api_gateway/routes.py": "the place of an order id in its index",
    "payment_simulator/app.py": "the clock of the provider, which is not a part of OrderStream",
    "telemetry/tracing.py": "when a span began and ended",
}


def test_no_service_decides_by_the_clock_of_its_machine() -> None:
    """Postgres alone measures ages. The local stack is exempt, because it watches processes of its own machine."""
    services = (path for path in PYTHON if not _name(path).startswith("local/"))
    assert {_name(path) for path in services if WALL_CLOCK.search(path.read_text(encoding="utf-8"))} == set(
        MAY_READ_A_WALL_CLOCK
    )


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_no_module_has_a_name_without_meaning(path: Path) -> None:
    words = set(re.split(r"[/_.]", _name(path)))
    assert not words & {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


@pytest.mark.parametrize("path", [path for path in PYTHON if path.name != "__init__.py"], ids=_name)
def test_a_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_functions_stay_below_70_lines(path: Path) -> None:
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 70] == []


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_modules_stay_below_450_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_no_admin_request_goes_to_the_coordinator_of_a_group() -> None:
    """librdkafka may abort the process if the broker dies meanwhile (its issue 4605). Use kafka/group_offsets.py."""
    requests = re.compile(r"(describe|delete)_consumer_groups|(list|alter|delete)_consumer_group_offsets")
    assert not [path for path in SOURCE.rglob("*.py") if requests.search(path.read_text(encoding="utf-8"))]
