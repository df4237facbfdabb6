"""The client of a payment ledger: pages, one payment, and answers that are no answers."""

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from orderstream.audit import provider_ledger
from orderstream.audit.provider_ledger import Ledger, LedgerError, LedgerPayment, ledger_at
from orderstream.settings import Settings
from tests.support.ledger_server import LedgerServer, charge, ledger_server

KEYS = [f"{number:08}" for number in range(5)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LedgerServer]:
    """A ledger, and a client with small pages that does not pause between two attempts."""
    monkeypatch.setattr(provider_ledger, "PAGE_PAYMENTS", 2)
    monkeypatch.setattr(provider_ledger, "RETRY_SECONDS", 0)
    with ledger_server() as running:
        yield running


def _problem(url: str, api_key: str | None = None) -> str:
    """Return the message of the error with which a listing ends."""
    with pytest.raises(LedgerError) as raised, Ledger(url, api_key) as ledger:
        list(ledger.payments())
    (line,) = str(raised.value).splitlines()
    return line


def test_the_payments_are_read_page_by_page(server: LedgerServer) -> None:
    server.put(*map(charge, KEYS))
    with Ledger(server.url + "/") as ledger:
        found = list(ledger.payments())
    assert [payment.key for payment in found] == KEYS
    assert found[0] == LedgerPayment(KEYS[0], Decimal(129), "USD", 1, Decimal(129))
    assert server.requested == [
        "/v1/payments?limit=2",
        f"/v1/payments?after={KEYS[1]}&limit=2",
        f"/v1/payments?after={KEYS[3]}&limit=2",
    ]


def test_one_page_is_read_at_a_time(server: LedgerServer) -> None:
    server.put(*map(charge, KEYS))
    with Ledger(server.url) as ledger:
        payments = ledger.payments()
        next(payments)
        next(payments)
        assert len(server.requested) == 1


def test_one_payment_is_read_by_its_key(server: LedgerServer) -> None:
    server.put(charge("a", amount=None, currency=None, charges=0, held="0", status="voided"))
    with Ledger(server.url) as ledger:
        assert ledger.payment("a") == LedgerPayment("a", None, None, 0, Decimal(0))
        assert ledger.payment("b") is None
        server.before = lambda _: (200, json.dumps(charge("c")).encode())
        with pytest.raises(LedgerError, match="answered with the payment 'c' to a request for 'a'"):
            ledger.payment("a")


def test_the_api_key_is_sent_and_its_refusal_is_named(server: LedgerServer) -> None:
    server.before = lambda _: None if server.headers.get("Authorization") == "Bearer secret" else (401, b"")
    with Ledger(server.url, "secret") as ledger:
        assert list(ledger.payments()) == []
    assert (
        _problem(server.url, "wrong")
        == f"{server.url} refuses the API key with 401: set PAYMENT_API_KEY or PAYMENT_API_KEY_FILE"
    )
    assert _problem(server.url).endswith("set PAYMENT_API_KEY or PAYMENT_API_KEY_FILE")


def test_a_temporary_error_is_retried(server: LedgerServer) -> None:
    failures = iter([(503, b""), (429, b""), None])
    server.before = lambda _: next(failures)
    with Ledger(server.url) as ledger:
        assert list(ledger.payments()) == []
    server.before = lambda _: (500, b"")
    assert _problem(server.url) == f"{server.url} answered GET /v1/payments with 500"
    assert len(server.requested) == 3 + provider_ledger.ATTEMPTS_MAX


PAGE = {"payments": [charge("a")], "next": None}


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (404, b"", "is not a payment ledger: GET /v1/payments answered 404"),
        (302, b"", "answered GET /v1/payments with 302"),
        (200, b"<html>", "is not a payment ledger: its answer to GET /v1/payments is wrong"),
        (200, b"\xff\xfe", "is not a payment ledger: its answer to GET /v1/payments is wrong"),
        (200, b"[" * 100_000, "is not a payment ledger: its answer to GET /v1/payments is wrong"),
        (200, b"[]", "Expected `object`, got `array`"),
        (200, b'{"payments": []}', "Object missing required field `next`"),
        (200, json.dumps({"payments": [charge("a", charges="1")], "next": None}).encode(), "Expected `int`, got `str`"),
        (200, json.dumps({"payments": [charge("a", held="NaN")], "next": None}).encode(), "an amount is not a number"),
        (200, json.dumps({"payments": [charge("a", held="x")], "next": None}).encode(), "Invalid decimal string"),
        (200, json.dumps({"payments": [charge("b"), charge("a")], "next": None}).encode(), "not in order"),
        (200, json.dumps({"payments": [charge("a")], "next": "a"}).encode(), "lists the key 'a' after 'a'"),
        (200, b'{"payments": [], "next": "a"}', "an empty page that is not the last one"),
        (200, b" " * (provider_ledger.ANSWER_MAX_BYTES + 1), "with more than 4194304 bytes"),
    ],
    ids=range(14),
)
def test_an_answer_that_is_no_page_of_payments_is_an_error(
    server: LedgerServer, status: int, body: bytes, problem: str
) -> None:
    server.before = lambda _: (status, body)
    assert problem in _problem(server.url)


def test_a_ledger_that_does_not_answer_in_time_is_an_error(
    server: LedgerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_ledger, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(provider_ledger, "ATTEMPTS_MAX", 1)
    released = threading.Event()
    server.before = lambda _: None if released.wait(30) else (500, b"")
    try:
        assert _problem(server.url) == f"{server.url} gave no whole answer to GET /v1/payments within 0.05 s"
    finally:
        released.set()


def test_a_ledger_that_cannot_be_reached_is_named(server: LedgerServer) -> None:
    assert _problem("http://127.0.0.1:1").startswith("http://127.0.0.1:1 cannot be read: ")
    assert _problem(server.url.replace("http:", "https:")).startswith(server.url.replace("http:", "https:"))


@pytest.mark.parametrize("url", ["", "ledger", "ftp://a", "http://", "http://a:b", "http://u:secret@a", "http://a?b"])
def test_an_address_that_is_not_valid_is_an_error(url: str) -> None:
    assert _problem(url).startswith("the address of the ledger is not valid: ")
    assert "secret" not in _problem(url)


def test_the_api_key_of_the_settings_is_sent(server: LedgerServer, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("in-a-file\n")
    for setting, value in (("payment_api_key", "secret"), ("payment_api_key_file", str(file))):
        with ledger_at(server.url, Settings.model_validate({setting: value})) as ledger:
            assert list(ledger.payments()) == []
        assert server.headers["Authorization"] == f"Bearer {value.replace(str(file), 'in-a-file')}"
