"""The shape of the code: what may write a table, read the environment, or be named how."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.queries import SOURCE, queries

ROOM_OF_ALL = "postgres"
TABLES = {
    "orders",
    "order_items",
    "inventory",
    "payments",
    "reservations",
    "outbox",
    "outbox_floor",
    "refused_records",
}

# Who writes a table; whatever is not the one owner stands here with its reason.
WRITERS = {
    "orders": {
        "api_gateway": "inserts what was accepted, cancels",
        "order_service": "puts off when it looks at an order again",
        "outbox_relay": "removes what is over and old; items, payments and reservations go by their foreign keys",
        ROOM_OF_ALL: "the one way to change an order that exists, for the order service and a cancel",
    },
    "order_items": {"api_gateway": "inserts them with their order"},
    "inventory": {
        "inventory_worker": "reserves and gives back; its room holds the stock commands too",
        "outbox_relay": "takes out what a confirmed order held, as it removes the order",
    },
    "payments": {"payment_worker": "decides"},
    "reservations": {"inventory_worker": "decides"},
    "outbox": {
        "api_gateway": "appends in the statement that accepts orders",
        ROOM_OF_ALL: "the append that everyone uses",
        "outbox_relay": "takes out what it publishes, puts back what Kafka did not acknowledge",
    },
    "outbox_floor": {"outbox_relay": "says where to begin"},
    "refused_records": {"dead_letters": "keeps what Kafka refuses; its room holds the redrive too"},
}
_WRITE = re.compile(
    r"\b(?:INSERT\s+INTO|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE(?:\s+TABLE)?|COPY|(?<!FOR )(?<!KEY )(?<!DO )UPDATE)\s+"
    r"(?:ONLY\s+)?(?!SET\b|OF\b|SKIP\b|NOWAIT\b)\"?([a-z_]+)",
    re.IGNORECASE,
)
PYTHON = sorted(SOURCE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_the_pattern_sees_every_way_to_write() -> None:
    text = """
        INSERT INTO a SELECT 1; DELETE FROM b; UPDATE c SET x = 1; MERGE INTO d; TRUNCATE e; COPY f FROM stdin;
        SELECT 1 FROM g FOR UPDATE; SELECT 1 FROM h FOR NO KEY UPDATE SKIP LOCKED;
        INSERT INTO i VALUES (1) ON CONFLICT (x) DO UPDATE SET y = 1; UPDATE ONLY j SET x = 1
    """
    assert _WRITE.findall(text) == ["a", "b", "c", "d", "e", "f", "i", "j"]


def test_one_service_writes_a_table() -> None:
    writers: dict[str, set[str]] = defaultdict(set)
    for query in queries():
        for table in _WRITE.findall(query.text):
            writers[table.lower()].add(query.room)
    assert writers == {table: set(rooms) for table, rooms in WRITERS.items()}


def _sql_in(path: Path) -> list[str]:
    """Return the tables that string literals of a module write, docstrings aside."""
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


# Modules that touch the environment beside settings.py: none of them reads a setting.
ENVIRONMENT = {
    "settings.py": "the only reader",
    "local/servers/orderstream.py": "hands the whole of it on to the services that `up` starts",
    "local/servers/kafka_jars.py": "points the fetcher to the system's certificates where nothing else does",
}


def _touches_environment(path: Path) -> bool:
    return (
        re.search(r"\bos\.(environb?|getenvb?|putenv)\b|from os import", path.read_text(encoding="utf-8")) is not None
    )


def test_settings_alone_reads_the_environment() -> None:
    assert {_name(path) for path in PYTHON if _touches_environment(path)} <= set(ENVIRONMENT)


def test_the_exceptions_still_touch_the_environment() -> None:
    listed = {name for name in ENVIRONMENT if name != "settings.py"}
    assert listed == {name for name in listed if _touches_environment(SOURCE / name)}


WALL_CLOCK = re.compile(r"datetime\.now\(|\btime\.time(_ns)?\b|utcnow\(|\btoday\(")
MAY_READ_A_WALL_CLOCK = {
    "api_gateway/http/response_head.py": "the Date field of a response",
    "api_gateway/routes.py": "the place of an order id in its index",
    "telemetry/tracing.py": "when a span began and ended",
    "worker/traces.py": "when a batch began",
}


def test_no_service_decides_by_its_own_clock() -> None:
    """Ages are measured by Postgres alone; the local stack watches processes of its own machine."""
    services = (path for path in PYTHON if not _name(path).startswith("local/"))
    assert {_name(path) for path in services if WALL_CLOCK.search(path.read_text(encoding="utf-8"))} == set(
        MAY_READ_A_WALL_CLOCK
    )


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_no_module_is_named_after_nothing(path: Path) -> None:
    words = set(re.split(r"[/_.]", _name(path)))
    assert not words & {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


@pytest.mark.parametrize("path", [path for path in PYTHON if path.name != "__init__.py"], ids=_name)
def test_a_module_says_what_it_is_for(path: Path) -> None:
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
    """librdkafka may abort if the broker dies meanwhile (its issue 4605). kafka/group_offsets.py asks instead."""
    requests = re.compile(r"(describe|delete)_consumer_groups|(list|alter|delete)_consumer_group_offsets")
    assert not [path for path in SOURCE.rglob("*.py") if requests.search(path.read_text(encoding="utf-8"))]
