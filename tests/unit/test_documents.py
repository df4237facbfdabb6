"""The documents match the code: tables are complete, links lead to a target, and every name exists."""

import ast
import asyncio
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest
from docs.generate import OPERATOR_API_PAGE, with_operations, with_promises

from orderstream.api_gateway.routes import Health, OrderHandlers, router
from orderstream.audit import charges, check
from orderstream.audit.promises import PROMISES as PROMISES_IN_CODE
from orderstream.audit.promises import UNCHECKED_HOW
from orderstream.cli import main
from orderstream.domain.events import PAYLOADS, TOPICS, topic_of
from orderstream.domain.order import FailureReason, Status, derive
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.http_server import problems
from orderstream.http_server.problems import Problem
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.envelope import Reason
from orderstream.kafka.topics import dead_letter_topic
from orderstream.local.banner import curl_lines
from orderstream.local.processes.state import checkout
from orderstream.order_service.handler import OrderHandler
from orderstream.payment_simulator.faults import Faults
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.settings import SERVICES, Settings
from orderstream.telemetry.metrics import CATALOGUE
from orderstream.telemetry.tracing import Tracer
from tests.support.asgi import call
from tests.unit.test_structure import TABLES

ROOT = checkout()
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HANDLERS = (PaymentHandler, InventoryHandler, OrderHandler)
SOURCE = ROOT / "src" / "orderstream"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}

_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
_CAPITALS = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")

Rows = list[list[str]]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _prose(text: str) -> str:
    return _FENCED.sub("", text)


def tables(page: Path) -> dict[str, Rows]:
    """Return the rows of each table of a page, by the first line of the table."""
    found: dict[str, Rows] = {}
    for block in re.findall(r"(?:^\|.*\n)+", _prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        head, _, *rows = block.splitlines()
        found[head] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return found


def table(head: str, page: Path) -> Rows:
    """Return the rows of the table that begins with `head`."""
    return tables(page)[head]


def code(text: str) -> str:
    """Return a word in code font."""
    return f"`{text}`"


def test_the_table_of_settings_matches_the_code() -> None:
    def default(value: object) -> str:
        if value in (None, {}, "", ()):
            return "none"
        return code(f"{value:g}" if isinstance(value, float) else f"{value}")

    assert table("| variable | default | meaning |", REFERENCE / "settings.md") == [
        [code(name.upper()), default(field.get_default(call_default_factory=True)), field.description]
        for name, field in Settings.model_fields.items()
    ]


def test_the_table_of_metrics_matches_the_code() -> None:
    assert table("| metric | kind | labels | meaning |", REFERENCE / "metrics.md") == [
        [code(metric.name), metric.kind, ", ".join(map(code, metric.labels)) or "none", metric.meaning]
        for metric in CATALOGUE
    ]


def test_the_table_of_make_targets_matches_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", makefile, re.MULTILINE)
    assert table("| target | does |", REFERENCE / "make-targets.md") == [
        [code(f"make {name}"), meaning] for name, meaning in targets
    ]


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def test_the_table_of_commands_matches_the_command_line() -> None:
    def usage(words: str, command: click.Command) -> str:
        arguments = (parameter for parameter in command.params if isinstance(parameter, click.Argument))
        return code(" ".join([words, *(argument.make_metavar(click.Context(command)) for argument in arguments)]))

    assert table("| command | does |", REFERENCE / "commands.md") == [
        [usage(words, command), (command.help or "").splitlines()[0]]
        for words, command in commands(main, "orderstream")
    ]


class Nothing:
    """A stand-in for the objects that a route uses. This test calls none of them."""

    def __len__(self) -> int:
        return 0


def test_the_table_of_endpoints_matches_the_routes() -> None:
    nothing = Nothing()
    orders = OrderHandlers(nothing, nothing, nothing, nothing, nothing, key_owners=nothing)  # type: ignore[arg-type]
    api = router(orders, Health(nothing), Tracer(None, 0))  # type: ignore[arg-type]
    served: Rows = []
    for path in api.endpoints:
        refused = asyncio.run(call(api, "BREW", path))
        served += [[code(method), code(path)] for method in refused.headers["allow"].split(", ") if method != "HEAD"]
    assert [row[:2] for row in table("| method | path | answers |", REFERENCE / "endpoints.md")] == served


PROBLEMS: list[Callable[[], Problem]] = [
    lambda: problems.invalid_order([problems.Violation("", "")]),
    lambda: problems.invalid_idempotency_key(1),
    problems.malformed_request,
    lambda: problems.not_found(""),
    lambda: problems.method_not_allowed([]),
    lambda: problems.request_timeout(1),
    problems.order_failed,
    problems.precondition_failed,
    lambda: problems.body_too_large(1),
    lambda: problems.target_too_long(1),
    problems.unsupported_media_type,
    problems.expectation_failed,
    problems.misdirected_request,
    problems.idempotency_key_reused,
    lambda: problems.head_too_large(1),
    lambda: problems.too_many_fields(1),
    problems.internal_error,
    lambda: problems.not_implemented(""),
    lambda: problems.unavailable(""),
    problems.outbox_full,
    problems.version_not_supported,
]


def test_the_table_of_problem_types_matches_the_code() -> None:
    made = [make() for make in PROBLEMS]
    assert [row[:2] for row in table("| status | type | when |", REFERENCE / "endpoints.md")] == [
        [str(problem.status), code(f"urn:orderstream:problem:{problem.name}")] for problem in made
    ]
    source = Path(problems.__file__).read_text(encoding="utf-8")
    assert len(re.findall(r"return Problem\(", source)) == len(PROBLEMS)


def called(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a module, with the name of the function."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr, node


BUILDERS = {"order_updated": "order.updated", "order_aborted": "order.aborted"}


def emitters() -> dict[str, set[str]]:
    """Return the services that emit each topic: they construct its payload or name the function that builds it."""
    payloads = {payload.__name__: name for name, payload in PAYLOADS.items()}
    found: dict[str, set[str]] = {name: set() for name in TOPICS}
    for service in SERVICES:
        for path in (SOURCE / service.replace("-", "_")).rglob("*.py"):
            made = {payloads[name] for name, _ in called(path) if name in payloads}
            made |= {
                BUILDERS[node.id]
                for node in ast.walk(TREES[path])
                if isinstance(node, ast.Name) and node.id in BUILDERS
            }
            for event in made:
                found[topic_of(event)].add(service)
    return found


def test_the_table_of_events_matches_the_handlers() -> None:
    readers = {name: [handler.group for handler in HANDLERS if name in handler.topics] for name in TOPICS}
    rows = table("| topic | from | to | says |", REFERENCE / "events.md")
    made = emitters()
    assert {row[0]: row[1] for row in rows} == {code(name): ", ".join(sorted(made[name])) for name in TOPICS}
    for handler in HANDLERS:
        assert {topic_of(event) for event in handler.emits} <= {name for name in TOPICS if handler.group in made[name]}
    assert {row[0]: row[2] for row in rows} == {
        code(name): ", ".join(readers[name]) or "your own readers" for name in TOPICS
    }


def test_every_dead_letter_topic_is_named() -> None:
    named = set(re.findall(r"`([a-z-]+\.dlq\.v1)`", (REFERENCE / "events.md").read_text(encoding="utf-8")))
    assert named == {dead_letter_topic(group) for group in CONSUMER_GROUPS}


def test_the_table_of_statuses_matches_the_domain() -> None:
    head = "| payment \\ stock | none | reserved | failed | released |"
    stocks = head.strip("|").replace(" ", "").split("|")[1:]
    for payment, *statuses in table(head, ROOT / "docs" / "architecture.md"):
        assert statuses == [derive(payment, stock) for stock in stocks]  # type: ignore[arg-type]


def test_every_table_of_the_database_is_listed() -> None:
    assert {row[0] for row in table("| table | holds | written by |", REFERENCE / "data.md")} == set(map(code, TABLES))


def test_the_readme_has_at_most_170_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 170


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text(encoding="utf-8"))}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "decisions"} - {index}
    assert pages - linked == set()


def test_the_example_of_the_readme_is_the_one_of_the_banner() -> None:
    after = README.read_text(encoding="utf-8").partition("\n## Place an order\n")[2]
    language, lines = _FENCED.findall(after)[0]
    assert (language, lines) == ("bash", curl_lines("http://127.0.0.1:3000") + "\n")


PROMISES = ROOT / "docs" / "promises.md"
CHECKS = {name: "grace_seconds" in statement for name, statement in check.SQL.items()} | {charges.CHECK: True}
"""Whether each check of the audit looks for unfinished work."""


def test_every_promise_has_a_row_and_a_check() -> None:
    rows = table("| | promise | code | check | tests |", PROMISES)
    assert [row[0] for row in rows] == [f"P{number}" for number in range(1, 12)]
    for name, _, where, how, tests in rows:
        blocks = [code(block) for block in CHECKS if block.startswith(f"{name.lower()}_")]
        assert how == (", ".join(blocks) or f"[{name}](#{name.lower()})")
        assert all(link.startswith("../src/orderstream/") for link in _LINK.findall(where))
        assert all(link.startswith("../tests/") for link in _LINK.findall(tests))
        assert _LINK.search(where)
        assert _LINK.search(tests)


def test_the_page_has_the_sentences_of_the_code_and_every_check_belongs_to_a_promise() -> None:
    page = PROMISES.read_text(encoding="utf-8")
    assert with_promises(page) == page, "a sentence has changed: run `make diagrams`"
    assert {name for promise in PROMISES_IN_CODE for name in promise.checks} == set(CHECKS)
    assert {promise.name for promise in PROMISES_IN_CODE if not promise.checks} == set(UNCHECKED_HOW)


def test_the_table_of_the_operator_s_api_matches_the_operations() -> None:
    page = OPERATOR_API_PAGE.read_text(encoding="utf-8")
    assert with_operations(page) == page, "an operation has changed: run `make diagrams`"


def test_every_check_of_the_audit_is_explained() -> None:
    rows = table("| check | names | at rest only |", PROMISES)
    assert [(row[0], row[2]) for row in rows] == [
        (code(name), "yes" if at_rest_only else "") for name, at_rest_only in CHECKS.items()
    ]


BOUNDS = ROOT / "docs" / "bounds.md"
_LIMITS = "| limit | where | what happens at it | test |"
_NUMBER = re.compile(r"([0-9][0-9,.]*) (MiB|KiB|%)?")
_UNITS = {"MiB": 2**20, "KiB": 2**10, "%": 0.01, "": 1}
_NAMED = re.compile(r"`([^`]+)`(?: in \[[^\]]+\]\(\.\./(src/[^)]+)\))?")


def bounds() -> list[list[str]]:
    """Return every row of the tables in bounds.md."""
    text = _prose(BOUNDS.read_text(encoding="utf-8"))
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert all(block.startswith(_LIMITS) for block in blocks)
    return [[cell.strip() for cell in row.strip("|").split("|")] for block in blocks for row in block.splitlines()[2:]]


def limit_of(name: str, source: str) -> float:
    """Return the value of a setting, of a constant in a module, or of an option of the Kafka client, in its unit."""
    if not source:
        return float(Settings.model_fields[name.lower()].default)
    if "." in name:
        option = re.search(rf'"{re.escape(name)}": ([0-9_]+),', (ROOT / source).read_text(encoding="utf-8"))
        assert option is not None
        return float(option[1]) * (_UNITS["KiB"] if name.endswith(".kbytes") else 1)
    module = importlib.import_module(source.removeprefix("src/").removesuffix(".py").replace("/", "."))
    return float(getattr(module, name))


@pytest.mark.parametrize("row", bounds(), ids=lambda row: row[1].split("`")[1])
def test_a_documented_limit_equals_the_limit_in_the_code(row: list[str]) -> None:
    limit, where, _, tests = row
    named, number = _NAMED.match(where), _NUMBER.match(limit)
    assert named is not None
    assert number is not None
    assert float(number[1].replace(",", "")) * _UNITS[number[2] or ""] == limit_of(named[1], named[2] or "")
    if tests != "none":
        for test, path in re.findall(r"\[([^\]]+)\]\(\.\./([^)]+)\)", tests) or [("", "")]:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


SUPPORTED = ROOT / "docs" / "supported.md"


def supported() -> Rows:
    """Return every row of the tables in supported.md."""
    head = "| what | is | how, or the words of the refusal | test |"
    text = _prose(SUPPORTED.read_text(encoding="utf-8"))
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert all(block.startswith(head) for block in blocks)
    return [[cell.strip() for cell in row.strip("|").split("|")] for block in blocks for row in block.splitlines()[2:]]


@pytest.mark.parametrize("row", supported(), ids=lambda row: row[0])
def test_what_is_supported_or_refused_has_a_test(row: list[str]) -> None:
    _, kind, how, tests = row
    named = re.findall(r"\[(test_\w+)\]\(\.\./([^)]+)\)", tests)
    assert kind in ("supported", "refused", "untested")
    assert bool(named) == (kind != "untested")
    for test, path in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    if kind == "refused":
        words = re.search(r"`([^`]+)`", how)
        assert words is not None
        assert any(words[1] in path.read_text(encoding="utf-8") for path in TREES), words[1]


OPERATIONS = ROOT / "docs" / "operations.md"


def logged() -> set[str]:
    """Return the names of all log events in the source."""
    levels = {"info", "warning", "error", "critical", "exception"}
    return {
        constant.value
        for path in TREES
        for name, call in called(path)
        if name in levels and call.args
        for constant in ast.walk(call.args[0])
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }


def test_operations_names_events_and_metrics_that_exist() -> None:
    text = _prose(OPERATIONS.read_text(encoding="utf-8"))
    events = {name for _, row in _cells(OPERATIONS, "log") for name in re.findall(r"`([a-z_.]+)`", row)}
    assert events
    assert events - logged() - {"orderstream.cache"} == set()
    assert (SOURCE / "cache.py").exists()
    assert set(re.findall(r"orderstream_[a-z_]+", text)) <= {metric.name for metric in CATALOGUE}


def _cells(page: Path, column: str) -> Iterator[tuple[str, str]]:
    """Yield the first cell and the cell in `column` of every row, for the tables of a page that have that column."""
    for head, rows in tables(page).items():
        names = [cell.strip() for cell in head.strip("|").split("|")]
        if column in names:
            for row in rows:
                yield row[0], row[names.index(column)]


@pytest.mark.parametrize("name", ["follow-one-order", "architecture"])
def test_a_page_about_the_code_names_classes_functions_and_columns_that_exist(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    found = re.findall(r"`((?:[A-Z]\w+\.)?[A-Za-z_]\w+)`", _prose(page))
    named = {word for word in found if not word.isupper()}
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*") if path.suffix in (".py", ".sql"))
    words = set(re.findall(r"\w+", source)) | {path.stem for path in SOURCE.rglob("*")}
    defined = set(re.findall(r"(?:def|class) (\w+)", source))
    assert {word for word in named if not set(word.split(".")) <= words} == set()
    assert {word for word in named if "." in word and not set(word.split(".")) <= defined} == set()


def test_the_glossary_has_a_line_for_each_term() -> None:
    terms = [row[0] for row in table("| term | meaning |", ROOT / "docs" / "glossary.md")]
    assert terms == sorted(terms, key=str.lower)
    assert set(terms) >= {
        *("event", "envelope", "topic", "partition", "offset", "consumer group", "lag", "saga", "compensation"),
        *("outbox", "relay", "dead letter", "redrive", "reservation", "authorization", "void"),
    }


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, which can follow `#` in a link."""
    headings = _HEADING.findall(_prose(page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_to_a_target(page: Path) -> None:
    dead = []
    for link in _LINK.findall(_prose(page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("decision", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=_name)
def test_a_decision_has_the_required_sections(decision: Path) -> None:
    headings = _HEADING.findall(decision.read_text(encoding="utf-8"))
    assert headings[0].startswith(decision.name[:4])
    assert headings[1:] == ["Context", "Decision", "Consequences", "When to revisit"]
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert f"({decision.name}) {headings[0][5:]}\n" in index


ELSEWHERE = {
    *(f"{name}_URL" for name in ("CONSOLE", "PAYMENT_SIMULATOR", "POSTGRES", "REDIS")),
    *("ORDER_PATH", "ID_FIELD"),  # variables of k6/orderstream.js
    *("SASL_SSL",),  # a value of librdkafka
    *("OTEL_EXPORTER_OTLP_HEADERS",),  # a variable of OpenTelemetry
    *("PAYMENT_BATCH_BUDGET_SECONDS",),  # the changelog says that it is removed
}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_name_in_capitals_exists_in_the_code(page: Path) -> None:
    known = {*ELSEWHERE, *get_args(FailureReason), *get_args(Reason), *get_args(Status)}
    known |= {name.upper() for name in Settings.model_fields}
    known |= {
        target.id
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert set(_CAPITALS.findall(page.read_text(encoding="utf-8"))) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_named_commands_and_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    typed = "\n".join([*(body for language, body in _FENCED.findall(text) if language == "bash")])
    typed += "\n" + "\n".join(re.findall(r"`([^`\n]+)`", _prose(text)))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z0-9-]+)", typed)) <= set(targets)
    assert set(re.findall(r"\borderstream ([a-z][a-z-]+)", typed)) <= set(main.commands)


def test_the_table_of_the_faults_of_the_simulator_matches_the_code() -> None:
    members = msgspec.to_builtins(Faults())
    assert [row[:2] for row in table("| member | default | meaning |", ROOT / "docs" / "payment-simulator.md")] == [
        [code(name), code(f"{default:g}" if isinstance(default, float) else json.dumps(default))]
        for name, default in members.items()
    ]
