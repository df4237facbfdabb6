"""The rules of RFC 9110 and RFC 9112 for a server, with one test for each rule that applies to this server."""

import re
from email.utils import parsedate_to_datetime

import pytest

from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway
from tests.integration.api_gateway.test_pipeline import statuses
from tests.integration.api_gateway.test_server import CHUNKED, LIVE, POST, read_response, read_to_the_end
from tests.support.bodies import README
from tests.support.http_rules import ONE_CHUNK, RULES, Rule


@pytest.mark.parametrize("split", [False, True], ids=["", "in pieces"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.where} {rule.what}")
def test_the_server_follows_each_rule_of_http(shared: Gateway, rule: Rule, split: bool) -> None:
    with shared.connect() as sock:
        if split:
            for at in range(0, len(rule.sent), 3):
                _send(sock, rule.sent[at : at + 3])
            _send(sock, LIVE)
        else:
            sock.sendall(rule.sent + LIVE)
        if not rule.keeps_alive:
            received = read_to_the_end(sock)
            head, *_ = received.partition(b"\r\n\r\n")
            assert b"connection: close" in received
        else:
            received = b""
            while len(statuses(received)) < 2 or not received.endswith(b"}"):
                received += sock.recv(65_536)
            head, *_ = received.partition(b"\r\n\r\n")
            assert b"connection: close" not in received
    found = statuses(received)
    if split and rule.where == "9110 9.1":
        # The parser stops at the first letter that no method has. If the line is not complete then, the answer is 400.
        assert found in ([b"400"], [b"501"])
    else:
        assert found == [b"%d" % rule.status] + [b"200"] * rule.keeps_alive
    assert re.search(rb"\r\ntraceresponse: 00-[0-9a-f]{32}-", head)
    assert re.search(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", head)
    assert rule.status < 400 or b"content-type: application/problem+json" in head


def _send(sock: object, data: bytes) -> None:
    try:
        sock.sendall(data)  # type: ignore[attr-defined]
    except ConnectionError:
        # The server has refused the request and closed the connection.
        return


def test_a_head_request_is_never_answered_with_a_body(shared: Gateway) -> None:
    """RFC 9110, 9.3.2. It is true for refused requests too."""
    for target in (b"/livez", b"/nothing", b"/openapi.json"):
        with shared.connect() as sock:
            sock.sendall(b"HEAD " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            head, end, body = read_to_the_end(sock).partition(b"\r\n\r\n")
            head_of_get = _head_of_get(shared, target)
            assert (end, body) == (b"\r\n\r\n", b"")
            assert _field(head, b"content-length") == _field(head_of_get, b"content-length") != b"0"
    for fields in (b"", b"host: x\r\nhost: y\r\n", b"host: x\r\na : b\r\n", b"a: b\r\n" * 101):
        with shared.connect() as sock:
            sock.sendall(b"HEAD /livez HTTP/1.1\r\n" + fields + b"\r\n")
            head, end, body = read_to_the_end(sock).partition(b"\r\n\r\n")
            assert statuses(head) in ([b"400"], [b"431"])
            assert (end, body) == (b"\r\n\r\n", b"")


def _head_of_get(gateway: Gateway, target: bytes) -> bytes:
    with gateway.connect() as sock:
        sock.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return read_to_the_end(sock).partition(b"\r\n\r\n")[0]


def _field(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        field, _, value = line.partition(b":")
        if field == name:
            return value.strip()
    return None


def test_a_304_has_neither_body_nor_length(shared: Gateway, rows: Connection) -> None:
    """RFC 9110, 8.6 and 15.4.5."""
    location = shared.client.post("/orders", content=README, headers={"content-type": "application/json"}).headers[
        "location"
    ]
    etag = shared.client.get(location).headers["etag"]
    with shared.connect() as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\nif-none-match: %b\r\n\r\n" % (location.encode(), etag.encode()))
        sock.sendall(LIVE)
        received = b""
        while b'{"status":"ok"}' not in received:
            received += sock.recv(65_536)
    first, _, rest = received.partition(b"\r\n\r\n")
    assert statuses(first) == [b"304"]
    assert _field(first, b"content-length") is None
    assert _field(first, b"etag") == etag.encode()
    assert rest.startswith(b"HTTP/1.1 200")


def test_a_405_response_names_the_allowed_methods(shared: Gateway) -> None:
    """RFC 9110, 10.2.1 and 15.5.6."""
    with shared.connect() as sock:
        sock.sendall(LIVE.replace(b"GET", b"DELETE"))
        assert _field(read_response(sock).partition(b"\r\n\r\n")[0], b"allow") == b"GET, HEAD"


def test_the_date_field_has_the_current_time(shared: Gateway) -> None:
    """RFC 9110, 6.6.1."""
    first = shared.client.get("/livez").headers["date"]
    assert parsedate_to_datetime(first) <= parsedate_to_datetime(shared.client.get("/livez").headers["date"])


def test_several_header_fields_with_the_same_name_are_one_list(shared: Gateway) -> None:
    """RFC 9110, 5.3. A list of two content types is not a valid content type."""
    with shared.connect() as sock:
        sock.sendall(POST[:-2] + b"content-type: application/json\r\n\r\n" + README)
        assert statuses(read_response(sock)) == [b"415"]


def test_a_request_after_the_last_request_of_a_connection_is_not_served(shared: Gateway, rows: Connection) -> None:
    """RFC 9112, 9.6."""
    before = _orders(rows)
    with shared.connect() as sock:
        sock.sendall(LIVE.replace(b"host: x", b"host: x\r\nconnection: close") + POST + README)
        assert statuses(read_to_the_end(sock)) == [b"200"]
    with shared.connect() as sock:
        sock.sendall(LIVE.replace(b"1.1", b"1.0") + POST + README)
        assert statuses(read_to_the_end(sock)) == [b"200"]
    assert _orders(rows) == before


def test_an_incomplete_request_is_not_processed(shared: Gateway, rows: Connection) -> None:
    """RFC 9112, 8."""
    before = _orders(rows)
    for sent in (POST + README[:-1], CHUNKED + ONE_CHUNK[:-2], CHUNKED + ONE_CHUNK[:-7]):
        with shared.connect() as sock:
            sock.sendall(sent)
            sock.shutdown(1)
            assert read_to_the_end(sock) == b""
    assert _orders(rows) == before


def _orders(rows: Connection) -> object:
    row = rows.execute("SELECT count(*) FROM orders").fetchone()
    assert row is not None
    return row[0]
