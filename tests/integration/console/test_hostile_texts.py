"""No text of a client, an event, a dead letter, a span or an action becomes a part of a page. No GET changes anything.

The tests run the real process with the real role of PostgreSQL, and walk over the routes, the links and the forms that
they find. So a new page or operation is covered by itself.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import httpx
import msgspec
import pytest
from confluent_kafka import Producer
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from starlette.routing import Route

from orderstream.console import app
from orderstream.console.context import Console
from orderstream.console.stores import Stores
from orderstream.console.web.access import Access
from orderstream.console.web.pages import StaticFiles, Templates
from orderstream.dead_letters.letter import DeadLetter, publication
from orderstream.kafka.envelope import Record
from orderstream.kafka.topics import ensure_topics
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from orderstream.telemetry.ingest import ingest_token
from tests.support.databases import Databases
from tests.support.hostile import ALL, PAYLOADS, Page
from tests.support.processes import Process
from tests.support.servers import Servers
from tests.support.system import free_port
from tests.support.waiting import wait_until
from tests.unit.console.traces.spans import encoded, request

TOKEN = "the-token-of-the-operator-in-tests"
ORDERS = [f"01a2176d-9db0-7{number:03x}-9e75-0000000000{number:02x}" for number in range(len(PAYLOADS))]
TRACE = "0af7651916cd43dd8448eb211c80319c"
GROUPS = ("payment-worker", "inventory-worker", "order-service")
PREFIX = "hostile-"
PAGES_MAX = 700
"""Pages that one walk reads. A console with more pages than that needs another walk."""
SAME_MAX = len(PAYLOADS) + 3
"""Pages of one shape that a walk reads: enough for a form with each payload."""
TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE 'dead_letter%' ORDER BY relname
"""
"""The tables that only actions change. The console itself fills that of the dead letters from Kafka."""


def without_nul(text: str) -> str:
    """Return a text that PostgreSQL stores, without its end if it is very long."""
    return text.replace("\x00", "")[:20_000]


def packed(payload: str) -> bytes:
    """Return headers as the workers store them."""
    return msgspec.msgpack.encode([(payload[:200], payload.encode()), ("x", b"\xff\x00")])


def fill_postgres(url: str) -> None:
    """Store a hostile text in every column that a text of a client or of an operator can reach."""
    with connect(url, "test") as connection:
        for order_id, payload in zip(ORDERS, map(without_nul, PAYLOADS), strict=True):
            connection.execute(
                "INSERT INTO orders (id, user_id, amount, currency, idempotency_key, traceparent, tracestate, status,"
                " failure_reason) VALUES (%s, %s, 1, 'USD', %s, %s, %s, 'FAILED', 'TIMED_OUT')",
                (order_id, payload, payload[:250], f"00-{TRACE}-00f067aa0ba902b7-01", payload[:250]),
            )
            connection.execute("INSERT INTO order_items VALUES (%s, %s, 1, 1)", (order_id, payload[:64]))
            connection.execute(
                "INSERT INTO payments (order_id, state, amount, reason, attempts) VALUES (%s, 'FAILED', 1, %s, 1)",
                (order_id, payload),
            )
            connection.execute(
                "INSERT INTO reservations (order_id, state, lines, reason, skus)"
                " VALUES (%s, 'FAILED', jsonb_build_object(%s::text, 1), %s, ARRAY[%s])",
                (order_id, payload, payload, payload),
            )
            connection.execute("INSERT INTO inventory VALUES (%s, 1, 0) ON CONFLICT DO NOTHING", (payload[:64],))
            connection.execute(
                "INSERT INTO outbox (topic, order_id, event_id, value) VALUES (%s, %s, %s, %s)",
                (payload[:200], order_id, uuid.uuid4(), payload),
            )
            connection.execute(
                "INSERT INTO refused_records (record_id, topic, key, value, headers, service, reason)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (payload[:500], payload, payload.encode(), payload.encode(), packed(payload), payload, payload),
            )
            details = json.dumps({payload: payload, "list": [payload]})
            connection.execute(
                "INSERT INTO operator_actions (actor, kind, subject, reason, parameters, state, result, finished_at)"
                " VALUES (%s, %s, %s, %s, %s, 'failed', %s, now())",
                (payload, payload, payload, payload, details, details),
            )


def fill_kafka(settings: Settings) -> None:
    """Publish events and dead letters with hostile keys, headers, values and error texts."""
    ensure_topics(settings)
    producer = Producer({"bootstrap.servers": settings.kafka_brokers, "linger.ms": 1})
    for order_id, payload in zip(ORDERS, PAYLOADS, strict=True):
        value = json.dumps({"type": payload, "payload": {"userId": payload, "orderId": order_id}}).encode()
        headers: list[tuple[str, str | bytes | None]] = [
            (payload[:100], payload.encode()),
            ("traceparent", payload[:50].encode()),
            ("x", b"\xff\x00\xfe"),
        ]
        producer.produce(f"{PREFIX}order.created.v1", value, order_id, headers=headers)
        producer.produce(f"{PREFIX}order.created.v1", b"\xff\xfe<b>\x00" + payload.encode(), order_id)
        for group, content in zip(GROUPS, (value, b"\xff" + payload.encode(), None), strict=True):
            record = Record(f"{PREFIX}order.created.v1", 0, 1, order_id.encode(), content, headers)  # type: ignore[arg-type]
            letter = publication(group, DeadLetter(record, "INVALID", payload, 1))  # type: ignore[arg-type]
            key = payload.encode()[:500] if group == "order-service" else order_id
            producer.produce(PREFIX + letter.topic, letter.value, key, headers=[*letter.headers])
    assert producer.flush(30) == 0


def send_spans(client: httpx.Client) -> None:
    """Send spans with hostile names, attributes, services and errors."""
    for number, payload in enumerate(PAYLOADS):
        span = encoded(trace_id=bytes.fromhex(TRACE), span_id=bytes([number + 1] * 8), name=payload)
        span.attributes.add(key="order.id").value.string_value = ORDERS[number]
        span.attributes.add(key=payload[:200]).value.string_value = payload
        span.status.MergeFrom(Status(code=Status.STATUS_CODE_ERROR, message=payload))
        body = request(span, service=payload[:200]).SerializeToString()
        headers = {"authorization": f"Bearer {ingest_token(TOKEN)}", "content-type": "application/x-protobuf"}
        assert client.post("/v1/traces", content=body, headers=headers).status_code == 200


@contextmanager
def running(url: str, servers: Servers, log: Path) -> Iterator[httpx.Client]:
    """Run the console on a database, as its own role. Yield a client that is logged in as the operator."""
    port, pages = free_port(), free_port()
    environment = {
        **os.environ,
        **servers.environment,
        "POSTGRES_URL": "postgresql://nothing@127.0.0.1:9/nothing",
        "CONSOLE_POSTGRES_URL": servers.console_url(url),
        "KAFKA_TOPIC_PREFIX": PREFIX,
        "CONSOLE_PORT": str(port),
        "METRICS_PORT": str(pages),
        "CONSOLE_TOKEN": TOKEN,
        "CONSOLE_READ_TOKEN": "the-token-of-the-reader-in-tests",
        "BASE_URL": "http://127.0.0.1:9",
        "ORDERSTREAM_STATE": str(log.parent / "state"),
    }
    with log.open("wb") as output:
        executable = Path(sys.executable).with_name("orderstream")
        process = Process([executable, "console"], stdout=output, stderr=output, env=environment)

    def alive() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{pages}/livez", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        with process.watched("the console", log.read_text):
            wait_until(alive, 60, "the console is alive")
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
            with client:
                yield client
    finally:
        process.kill()
        process.wait()


class Walked:
    """The console that the tests of this module walk over, and its database."""

    def __init__(self, client: httpx.Client, connection: Connection, log: Path) -> None:
        self.client = client
        self.connection = connection
        self.log = log

    def read(self, address: str) -> httpx.Response:
        """GET an address, as fast as the limit of requests allows. No answer may be a failure."""
        answer = self.client.get(address)
        for _ in range(100):
            if answer.status_code != 429:
                break
            answer = self.client.get(address)
        assert answer.status_code < 500 or answer.status_code == 503, f"{address}: {self.log.read_text()[-3_000:]}"
        return answer

    def submit(self, address: str, fields: Mapping[str, str]) -> httpx.Response:
        """Send a form, as a browser does."""
        answer = self.client.post(address, data=fields, headers={"origin": str(self.client.base_url).rstrip("/")})
        assert answer.status_code < 500 or answer.status_code == 503, f"{address}: {self.log.read_text()[-3_000:]}"
        return answer


@pytest.fixture(scope="module")
def walked(servers: Servers, databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    """A console whose database, topics and spans hold hostile texts only."""
    log = tmp_path_factory.mktemp("console") / "log"
    with databases.migrated() as url, connect(url, "test") as connection:
        connection.execute((Path(__file__).parents[3] / "db" / "console_role.sql").read_bytes(), prepare=False)
        settings = Settings.model_validate(
            {"kafka_brokers": servers.kafka_brokers, "kafka_topic_prefix": PREFIX, "kafka_partitions": 1}
        )
        fill_postgres(url)
        fill_kafka(settings)
        with running(url, servers, log) as client:
            send_spans(client)
            entered = client.get(f"/enter?token={TOKEN}")
            assert entered.status_code == 200
            wait_until(lambda: indexed(client, connection), 60, "the dead letters are indexed")
            yield Walked(client, connection, log)


def indexed(client: httpx.Client, connection: Connection) -> bool:
    """Look at the dead letters, which makes the console read Kafka. Return whether it has found all of them."""
    client.get("/dead-letters")
    return connection.execute("SELECT count(*) FROM dead_letters").fetchone() == (len(GROUPS) * len(PAYLOADS),)


def addresses() -> list[str]:
    """Return every GET route of the console, with values for its parameters."""
    settings, static = Settings.model_validate({}), StaticFiles()
    console = Console(settings, Stores(settings), Templates(static, {"trace_ui_url": None}), None)
    access = Access(TOKEN, None, lambda: 0.0)
    topics = ["order.created.v1", f"{PREFIX}order.created.v1"]
    values = [ORDERS[0], TRACE, "1", *topics, "payment-worker", PAYLOADS[0], PAYLOADS[1]]
    found = []
    for route in app.routes(console, static, access, app.application(console, static, access)):
        assert isinstance(route, Route)
        if "GET" not in (route.methods or {"GET"}) or route.path.startswith("/static"):
            continue
        names = re.findall(r"\{[^}]*\}", route.path)
        for chosen in itertools.islice(itertools.product(values, repeat=len(names)), 30):
            path = route.path
            for name, value in zip(names, chosen, strict=True):
                path = path.replace(name, quote(value, safe=""))
            found.append(path)
    console.close()
    return found


def check(answer: httpx.Response) -> Page | None:
    """Check an answer, and return it if it is a page."""
    kind = answer.headers.get("content-type", "")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "x9q" not in "".join(f"{name}{value}" for name, value in answer.headers.items() if name != "location")
    if kind.startswith("text/html"):
        page = Page(answer.content)
        assert page.wrong == [], f"{answer.request.url}: {page.wrong[:5]}"
        return page
    if answer.is_redirect:
        assert re.match(r"/(?![/\\])", answer.headers["location"])
        return Page(b"", {answer.headers["location"]})
    if answer.content:
        assert kind in ("application/json", "application/problem+json"), f"{answer.request.url}: {kind}"
        json.loads(answer.content)
    return None


def contents(connection: Connection) -> Mapping[str, Any]:
    """Return a digest of every row of each table that only actions change."""
    return {
        table: connection.execute(
            f"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} AS t".encode()  # noqa: S608
        ).fetchone()
        for (table,) in connection.execute(TABLES).fetchall()
    }


def asked(fields: Mapping[str, str]) -> Iterator[str]:
    """Yield queries for a form: one for each payload, and one with all of them."""
    for payload in (*PAYLOADS[:-1], ALL):
        yield urlencode(dict.fromkeys(fields, payload[:500]))


def shape(address: str) -> str:
    """Return an address without the values in it: pages of one shape come from the same code."""
    path, _, query = address.partition("?")
    names = sorted({name for name, _ in parse_qsl(query, keep_blank_values=True)})
    return re.sub(r"/[^/]*[0-9%.][^/]*", "/*", path) + "?" + "&".join(names)


def walk(walked: Walked, start: Sequence[str]) -> dict[str, Page]:
    """Read the addresses, and those that their pages lead to: SAME_MAX of each shape. Return the pages."""
    waiting, seen, pages = list(start), set(start), {}
    shapes = Counter(map(shape, start))
    while waiting and len(seen) <= PAGES_MAX:
        address = waiting.pop(0)
        page = check(walked.read(address))
        if page is None:
            continue
        pages[address] = page
        found = {link.partition("#")[0] for link in page.links} - {""}
        for method, action, fields in page.forms:
            if method == "get" and fields:
                path = (action or address).partition("?")[0]
                found |= {f"{path}?{query}" for query in asked(fields)}
        for link in sorted(link for link in found - seen if not link.startswith("/static/")):
            shapes[shape(link)] += 1
            if shapes[shape(link)] <= SAME_MAX:
                waiting.append(link)
                seen.add(link)
    assert not waiting, f"the console has more than {PAGES_MAX} pages"
    return pages


def test_no_page_and_no_answer_lets_a_hostile_text_out_and_no_get_changes_anything(walked: Walked) -> None:
    before = contents(walked.connection)
    found = addresses()
    pages = walk(walked, found)
    assert contents(walked.connection) == before
    shown = {"/orders", "/dead-letters", "/api/orders", "/api/dead-letters", f"/orders/{ORDERS[0]}"}
    assert shown <= set(found)
    wait_until(
        # An answer may be 503, if a statement takes longer than its limit on a busy machine.
        lambda: all("x9q" in walked.read(address).text for address in shown),
        20,
        "each of these pages shows hostile texts",
    )
    for address, page in pages.items():
        for method, action, fields in page.forms:
            if method == "post" and action not in ("/enter", "/leave", "/name"):
                for query in (dict.fromkeys(fields, ALL), {**fields, "reason": ALL[:400]}):
                    check(walked.submit(action or address, query))


def test_the_server_itself_answers_with_the_security_headers(walked: Walked) -> None:
    """These answers come from the HTTP server, before the guard."""
    for head in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ):
        text = exchange(walked.client.base_url.port or 0, head)
        assert text.startswith(b"HTTP/1.1 4"), text[:100]
        assert b"content-security-policy: default-src 'self'" in text
        assert b"x-content-type-options: nosniff" in text


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes, and return all bytes of the answer."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def test_no_log_line_has_a_token(walked: Walked) -> None:
    walked.client.get("/enter?token=a-wrong-token-in-an-address")
    walked.client.get("/api/orders", headers={"authorization": "Bearer a-wrong-token-in-a-header"})
    log = walked.log.read_text()
    assert "started" in log
    assert TOKEN not in log
    assert "a-wrong-token" not in log
    assert "the-token-of-the-reader" not in log


def test_the_connections_have_a_limit(walked: Walked) -> None:
    port = walked.client.base_url.port or 0
    with contextlib.ExitStack() as stack:
        for _ in range(app.CONNECTIONS_MAX):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        assert exchange(port, b"GET /enter HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503")
    wait_until(lambda: served(walked), 10, "the console serves again")


def served(walked: Walked) -> bool:
    """Return whether a new connection is served."""
    try:
        return walked.client.get("/enter").status_code == 200
    except httpx.HTTPError:
        return False
