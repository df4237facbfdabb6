"""The HTTP server of a real gateway: time limits, invalid input, pipelining, and the stop on SIGTERM."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import psutil
import psycopg
import pytest

from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start, elapsed, free_port, running
from tests.support.bodies import README, order
from tests.support.servers import Servers
from tests.support.waiting import wait_until

TIMEOUT_SECONDS = 1.0
CHUNKED = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
MANY_WRONG = order(items="[" + ",".join(["{}"] * 1_000) + "]")
POST = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(README)
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass"
WRONG = POST.replace(b" %d" % len(README), b" %d" % len(MANY_WRONG)) + MANY_WRONG
"""A body with thousands of violations. Its response is fifty times as long."""
LIVE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, shared_url: str, servers: Servers) -> Iterator[Gateway]:
    """A gateway with a short request timeout."""
    log = tmp_path_factory.mktemp("impatient") / "log"
    limit = str(TIMEOUT_SECONDS)
    with running(
        log, POSTGRES_URL=shared_url, REDIS_URL=servers.redis_url, GATEWAY_REQUEST_TIMEOUT_SECONDS=limit
    ) as gateway:
        yield gateway


def read_to_the_end(sock: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            received += piece
    return received


def read_response(sock: socket.socket) -> bytes:
    """Return one response with a body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(field.split(b":")[1]) for field in head.split(b"\r\n") if field.startswith(b"content-length"))
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def send_slowly(sock: socket.socket, data: bytes, stopped: threading.Event) -> None:
    """Send one byte every 100 ms until `stopped` is set or the connection is closed."""
    with contextlib.suppress(OSError):
        for index in range(len(data)):
            if stopped.wait(0.1):
                return
            sock.sendall(data[index : index + 1])


@contextlib.contextmanager
def slow_sender(sock: socket.socket, data: bytes) -> Iterator[None]:
    stopped = threading.Event()
    sender = threading.Thread(target=send_slowly, args=(sock, data, stopped))
    sender.start()
    try:
        yield
    finally:
        stopped.set()
        sender.join()


@pytest.mark.parametrize(
    "sent",
    [
        b"P",
        POST[:40],
        POST,
        POST + README[:20],
        CHUNKED + b"5\r\nab",
    ],
    ids=["a letter", "half a head", "a head", "half a body", "half a chunk"],
)
def test_an_incomplete_request_times_out(impatient: Gateway, sent: bytes) -> None:
    started = time.monotonic()
    with impatient.connect() as sock:
        sock.sendall(sent)
        received = read_to_the_end(sock)
        assert TIMEOUT_SECONDS * 0.9 < time.monotonic() - started < TIMEOUT_SECONDS + 5
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"traceresponse: 00-" in received
    assert b"urn:orderstream:problem:request-timeout" in received


@pytest.mark.parametrize(
    "data", [POST, POST + README, b"\r\n" * 200], ids=["a slow head", "a slow body", "slow line feeds"]
)
def test_a_request_that_arrives_byte_by_byte_times_out(impatient: Gateway, data: bytes) -> None:
    with impatient.connect() as sock:
        at_once = len(POST) if data.startswith(POST + README[:1]) else 0
        sock.sendall(data[:at_once])
        started = time.monotonic()
        with slow_sender(sock, data[at_once:]):
            read_to_the_end(sock)
        assert time.monotonic() - started < TIMEOUT_SECONDS + 5, "sending all of it takes longer"


def test_a_client_that_does_not_read_its_response_is_disconnected(impatient: Gateway) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", impatient.port))
        port = sock.getsockname()[1]
        with contextlib.suppress(ConnectionError):  # if the gateway disconnects meanwhile
            for _ in range(60):
                sock.sendall(WRONG)
        wait_until(lambda: not _holds(impatient, port), TIMEOUT_SECONDS + 5, "the connection is closed")


def _holds(gateway: Gateway, port: int) -> bool:
    """Return whether the gateway has a connection from this local port."""
    connections = psutil.Process(gateway.process.pid).net_connections("tcp")
    return any(connection.raddr[1:] == (port,) for connection in connections)


def test_a_silent_connection_is_closed(impatient: Gateway) -> None:
    started = time.monotonic()
    with impatient.connect() as sock:
        read_to_the_end(sock)
    assert TIMEOUT_SECONDS * 0.9 < time.monotonic() - started < TIMEOUT_SECONDS + 5


def test_a_second_request_has_its_own_time_limit(impatient: Gateway) -> None:
    with impatient.connect() as sock:
        sock.sendall(LIVE)
        assert read_response(sock).startswith(b"HTTP/1.1 200")
        sock.sendall(POST)
        assert b"408" in read_to_the_end(sock)


def test_an_idle_connection_is_kept_for_longer_than_a_request_may_take(impatient: Gateway) -> None:
    with impatient.connect() as sock, impatient.connect() as other:
        sock.sendall(LIVE)
        assert read_response(sock).startswith(b"HTTP/1.1 200")
        read_to_the_end(other)
        sock.sendall(LIVE)
        assert read_response(sock).startswith(b"HTTP/1.1 200")


def test_after_an_early_response_the_connection_stays_usable(impatient: Gateway) -> None:
    large = b"x" * ((1 << 20) + 1)
    head = POST.replace(b"content-length: %d" % len(README), b"content-length: %d" % len(large))
    with impatient.connect() as sock:
        sock.sendall(head)
        assert read_response(sock).startswith(b"HTTP/1.1 413")
        sock.sendall(large + LIVE)
        assert read_response(sock).startswith(b"HTTP/1.1 200")
        sock.sendall(head)
        assert read_response(sock).startswith(b"HTTP/1.1 413")
        assert elapsed(lambda: read_to_the_end(sock)) < TIMEOUT_SECONDS + 5


def test_requests_may_be_pipelined(shared: Gateway) -> None:
    with shared.connect() as sock:
        sock.sendall(LIVE * 3)
        received = b""
        while received.count(b'{"status":"ok"}') < 3:
            received += sock.recv(65536)
        assert received.count(b"HTTP/1.1 200") == 3


def test_100_continue_is_sent_on_request(shared: Gateway) -> None:
    with shared.connect() as sock:
        sock.sendall(POST.replace(b"host: x", b"host: x\r\nexpect: 100-continue"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        sock.sendall(README)
        assert read_response(sock).startswith(b"HTTP/1.1 201")


@pytest.mark.parametrize(
    "junk",
    [
        b"junk\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /orders HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /orders HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /orders HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_bytes_that_are_not_http_are_refused(shared: Gateway, junk: bytes) -> None:
    with shared.connect() as sock:
        sock.sendall(junk)
        received = read_to_the_end(sock)
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"traceresponse: 00-" in received
    assert b"urn:orderstream:problem:malformed-request" in received


def test_an_endless_head_is_refused(shared: Gateway) -> None:
    with shared.connect() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /livez HTTP/1.1\r\n")
            for number in range(20_000):
                sock.sendall(b"x-%d: %b\r\n" % (number, b"y" * 100))
        with contextlib.suppress(ConnectionError):
            assert b"431" in sock.recv(65536)
    assert shared.client.get("/livez").status_code == 200


@pytest.mark.parametrize("piece", [b"x: " + b"y" * 100 + b"\r\n", b"y" * 100], ids=["many fields", "one field"])
def test_endless_trailers_are_refused(shared: Gateway, piece: bytes) -> None:
    with shared.connect() as sock:
        sock.sendall(CHUNKED + b"%x\r\n%b\r\n0\r\nx: " % (len(README), README))
        with contextlib.suppress(ConnectionError):
            for _ in range(20_000):
                sock.sendall(piece)
            pytest.fail("the server has read all trailer fields")
        with contextlib.suppress(ConnectionError):
            assert b"431" in sock.recv(65536)
    assert shared.client.get("/livez").status_code == 200


def test_trailer_fields_are_not_header_fields(shared: Gateway) -> None:
    with shared.connect() as sock:
        sock.sendall(CHUNKED + b"%x\r\n%b\r\n0\r\nidempotency-key: %b\r\n\r\n" % (len(README), README, b"k" * 300))
        assert read_response(sock).startswith(b"HTTP/1.1 201")


def test_a_body_may_arrive_in_any_number_of_pieces(shared: Gateway) -> None:
    pieces = b"".join(b"1;%b\r\n%c\r\n" % (b"e" * 1_000, byte) for byte in README)
    with shared.connect() as sock:
        sock.sendall(CHUNKED + pieces + b"0\r\n\r\n")
        assert read_response(sock).startswith(b"HTTP/1.1 201")


def test_replicas_share_the_port(start: Start) -> None:
    port = free_port()
    first, second = start(port), start(port)
    wait_until(lambda: '"started"' in second.log, 10, "the second gateway listens")
    assert first.stop() == 0
    assert second.client.get("/livez").status_code == 200


def test_requests_in_progress_are_finished_on_sigterm(start: Start, postgres_url: str, connection: Connection) -> None:
    gateway = start()
    responses: list[httpx.Response] = []

    def post() -> None:
        responses.append(gateway.client.post("/orders", content=README, headers={"content-type": "application/json"}))

    poster = threading.Thread(target=post)
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as half_sent, gateway.connect() as idle:
        half_sent.sendall(POST)
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        poster.start()
        wait_until(lambda: _number(connection, WAITING), 10, "the commit waits for the lock")
        gateway.process.send_signal(signal.SIGTERM)
        read_to_the_end(idle)
        read_to_the_end(half_sent)
        with pytest.raises(ConnectionRefusedError):
            gateway.connect()
        assert gateway.process.poll() is None
    poster.join()
    assert responses[0].status_code == 201
    assert responses[0].headers["connection"] == "close"
    assert gateway.process.wait(10) == 0
    assert _number(connection, "SELECT count(*) FROM orders") == 1
    assert '"level": "error"' not in gateway.log


def _number(connection: Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_the_gateway_stops_in_time_while_requests_wait(start: Start, postgres_url: str, connection: Connection) -> None:
    gateway = start(DRAIN_TIMEOUT_SECONDS="4")
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as sock:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        sock.sendall(POST + README)
        wait_until(lambda: _number(connection, WAITING), 10, "the commit waits for the lock")
        gateway.process.send_signal(signal.SIGTERM)
        assert elapsed(lambda: gateway.process.wait(20)) < 4, "a request would wait for 5 s"
        assert read_to_the_end(sock).startswith(b"HTTP/1.1 503")
    assert gateway.process.returncode == 0


def test_the_gateway_stops_in_time_while_postgres_hangs(
    start: Start, postgres_url: str, connection: Connection, servers: Servers
) -> None:
    gateway = start(DRAIN_TIMEOUT_SECONDS="2")
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as sock:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        sock.sendall(POST + README)
        wait_until(lambda: _number(connection, WAITING), 10, "the commit waits for the lock")
        servers.postgres.pause()
        try:
            gateway.process.send_signal(signal.SIGTERM)
            assert elapsed(lambda: gateway.process.wait(20)) < 7
            assert read_to_the_end(sock).startswith(b"HTTP/1.1 503")
        finally:
            servers.postgres.resume()
    assert gateway.process.returncode == 1
    assert '"drain_timeout"' in gateway.log


def test_a_gateway_that_cannot_listen_logs_the_reason(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match="cannot_listen"):
            start(port)


def test_two_gateways_on_one_port_have_separate_process_pages(start: Start) -> None:
    """On the shared port either gateway may answer, so a counter could decrease."""
    pages = [free_port(), free_port()]
    first = start(METRICS_PORT=str(pages[0]))
    second = start(first.port, METRICS_PORT=str(pages[1]))
    wait_until(lambda: '"started"' in second.log, 10, "the second gateway listens")
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(httpx.Client(base_url=first.client.base_url)).get("/docs")

        def docs_requests(page: int) -> float:
            text = httpx.get(f"http://127.0.0.1:{page}/metrics", trust_env=False).text
            lines = [line for line in text.splitlines() if 'route="GET /docs",status="200"' in line]
            return float(lines[0].split()[-1]) if lines else 0.0

        assert sum(map(docs_requests, pages)) == 20
        assert [docs_requests(page) for page in pages * 3] == [docs_requests(page) for page in pages] * 3
        for page in pages:
            for path in ("/livez", "/readyz"):
                assert httpx.get(f"http://127.0.0.1:{page}{path}", trust_env=False).text == "ok\n"
    assert second.stop() == 0


def test_while_postgres_is_down_livez_is_200_and_readyz_is_503(start: Start) -> None:
    page = free_port()
    start(METRICS_PORT=str(page), POSTGRES_URL="postgresql://app@127.0.0.1:9/orders")
    assert httpx.get(f"http://127.0.0.1:{page}/livez", trust_env=False).status_code == 200
    response = httpx.get(f"http://127.0.0.1:{page}/readyz", trust_env=False)
    assert (response.status_code, response.text) == (503, "Postgres does not answer, or is not migrated.\n")
