"""The audit of the provider's ledger: each breach of P2 is found, and a race between the two stores is not one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.audit import charges, provider_ledger
from orderstream.audit.charges import CHECK, audit_charges
from orderstream.audit.check import Breach
from orderstream.audit.provider_ledger import Ledger, LedgerError
from orderstream.cli import main
from orderstream.postgres.connect import Connection
from tests.integration.decisions.orders import place
from tests.support.ledger_server import Answer, LedgerServer, Payment, charge, ledger_server
from tests.support.simulators import simulator

CONFIRMED, CANCELLED, DECLINED, VOIDED, OPEN = (f"{digit}0000000-0000-7000-8000-000000000000" for digit in "13579")
_CONFIRM = "status = 'CONFIRMED', payment = 'authorized', stock = 'reserved', version = version + 1"
_CANCEL = "status = 'CANCELLED', version = version + 1, aborted_at = now(), payment = 'voided', stock = 'released'"
_FAIL = "status = 'FAILED', version = version + 1, failure_reason = 'PAYMENT_DECLINED', payment = 'failed'"


def _set(connection: Connection, order_id: str, change: str) -> None:
    connection.execute(f"UPDATE orders SET {change} WHERE id = %s".encode(), (order_id,))  # noqa: S608 - of this module


def _ended(key: str, status: str, charged: int) -> Payment:
    return charge(key, status=status, charges=charged, held="0.00")


@pytest.fixture
def ledger(connection: Connection) -> Iterator[LedgerServer]:
    """A ledger that agrees with five orders: confirmed, cancelled and voided, declined, voided before use, and open."""
    for order_id, change in (
        (CONFIRMED, _CONFIRM), (CANCELLED, _CANCEL), (DECLINED, _FAIL), (VOIDED, _CANCEL), (OPEN, "version = 1")
    ):  # fmt: skip
        place(connection, order_id=order_id)
        _set(connection, order_id, change)
    with ledger_server() as server:
        server.put(charge(CONFIRMED, "129.0"), _ended(CANCELLED, "voided", 1), _ended(DECLINED, "declined", 0))
        server.put(charge(VOIDED, None, status="voided", currency=None, charges=0, held="0"))
        yield server


def _found(postgres_url: str, server: LedgerServer, grace_seconds: float = 0, days: int = 0) -> dict[str, str]:
    """Return the problem of each key that the audit names."""
    with Ledger(server.url) as client:
        breaches = audit_charges(postgres_url, client, grace_seconds, days)[CHECK]
    found = {breach.subject: breach.detail for breach in breaches}
    assert len(found) == len(breaches), "a key is named once"
    return found


def test_a_ledger_that_agrees_with_the_orders_passes(ledger: LedgerServer, postgres_url: str) -> None:
    assert _found(postgres_url, ledger) == {}


BREACHES: list[tuple[Payment, str]] = [
    (charge(CONFIRMED, charges=2), "charged 2 times"),
    (charge(DECLINED, charges=2, held="0"), "charged 2 times"),
    (charge(CONFIRMED, "128.99"), "charged 128.99 USD, accepted 129.00 USD"),
    (charge(CONFIRMED, currency="EUR"), "charged 129.00 EUR, accepted 129.00 USD"),
    (charge(CANCELLED, "1", held="0"), "charged 1 USD, accepted 129.00 USD"),
    (charge(CONFIRMED, held="0"), "CONFIRMED, and the provider holds nothing"),
    (_ended(CONFIRMED, "declined", 0), "CONFIRMED, and the provider holds nothing"),
    (charge(CANCELLED), "CANCELLED, and the provider still holds 129.00 USD"),
    (charge(DECLINED), "FAILED, and the provider still holds 129.00 USD"),
    (charge(OPEN, held="64.50"), "the provider holds 64.50 after 1 charges, accepted 129.00 USD"),
    (charge(OPEN, charges=0), "the provider holds 129.00 after 0 charges, accepted 129.00 USD"),
    (charge("20000000-0000-7000-8000-000000000000"), "charged 129.00 USD, and there is no such order"),
    (charge("f0000000-0000-7000-8000-000000000000"), "charged 129.00 USD, and there is no such order"),
    (charge("a_test_of_somebody", held="0"), "charged 129.00 USD, and there is no such order"),
]


def test_each_breach_is_named_with_its_order_and_the_amounts(ledger: LedgerServer, postgres_url: str) -> None:
    for payment, problem in BREACHES:
        before = dict(ledger.payments)
        ledger.put(payment)
        assert _found(postgres_url, ledger) == {payment["key"]: problem}
        ledger.payments = before


def test_a_confirmed_order_without_a_payment_in_the_ledger_is_a_breach(ledger: LedgerServer, postgres_url: str) -> None:
    del ledger.payments[CONFIRMED]
    assert _found(postgres_url, ledger) == {CONFIRMED: "CONFIRMED, and the provider holds nothing"}


CHANGES: list[tuple[str, Payment, str | None]] = [
    (_CANCEL, charge(OPEN), None),
    (_FAIL, charge(OPEN), None),
    (_FAIL, charge(OPEN, charges=2), "charged 2 times"),
    (_CONFIRM, _ended(OPEN, "voided", 1), "CONFIRMED, and the provider holds nothing"),
]


def test_within_the_grace_period_only_a_charge_that_is_to_be_voided_is_allowed(
    ledger: LedgerServer, connection: Connection, postgres_url: str
) -> None:
    for change, payment, problem in CHANGES:
        _set(connection, OPEN, "status = 'PROCESSING', failure_reason = NULL, payment = 'none', stock = 'none'")
        _set(connection, OPEN, change)
        ledger.put(payment)
        assert _found(postgres_url, ledger, grace_seconds=60).get(OPEN) == problem
        assert OPEN in _found(postgres_url, ledger, grace_seconds=0)


def test_a_charge_without_an_order_that_retention_may_have_removed_is_no_breach(
    ledger: LedgerServer, connection: Connection, postgres_url: str
) -> None:
    (now,) = connection.execute("SELECT extract(epoch FROM now())::float8").fetchone() or ()
    removed, kept = (new_order_id(now - days * 86_400) for days in (41, 39))
    ledger.put(charge(removed), charge(kept), charge("0-not-an-order-id"))
    assert set(_found(postgres_url, ledger, days=40)) == {kept, "0-not-an-order-id"}
    assert set(_found(postgres_url, ledger)) == {removed, kept, "0-not-an-order-id"}
    ledger.put(charge(removed, charges=2))
    assert removed in _found(postgres_url, ledger, days=39)


@pytest.mark.parametrize("pieces", [1, 3])
def test_orders_and_payments_are_read_in_pieces_without_a_transaction(
    ledger: LedgerServer, connection: Connection, postgres_url: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gaps on both sides are longer than a piece. Every breach is found."""
    monkeypatch.setattr(charges, "PIECE_ORDERS", pieces)
    monkeypatch.setattr(charges, "LOOK_KEYS", pieces)
    monkeypatch.setattr(provider_ledger, "PAGE_PAYMENTS", pieces)
    unpaid = [place(connection) for _ in range(7)]
    for order_id in unpaid[:5]:
        _set(connection, order_id, _CONFIRM)
    strays = [str(uuid4()) for _ in range(7)]
    ledger.put(*map(charge, strays))

    class Watched(psycopg.Connection[TupleRow]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Cursor[TupleRow]:
            assert self.info.transaction_status is TransactionStatus.IDLE
            return super().execute(query, *arguments, **options)

    monkeypatch.setattr(
        charges, "connect", lambda url, name: Watched.connect(url, autocommit=True, application_name=name)
    )
    assert set(_found(postgres_url, ledger)) == {*unpaid[:5], *strays}


def test_the_number_of_named_breaches_is_limited(
    ledger: LedgerServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charges, "SHOWN_PER_PROMISE", 3)
    ledger.put(*(charge(str(uuid4())) for _ in range(5)))
    assert len(_found(postgres_url, ledger)) == 3


def _at_request(server: LedgerServer, path: str, act: Callable[[], object]) -> None:
    """Do something before the ledger answers the next request for a path. This is a race with the audit."""
    waiting = [act]

    def before(requested: str) -> None:
        if waiting and requested == path:
            waiting.pop()()

    server.before = before


def test_an_order_that_is_confirmed_after_the_ledger_was_listed_is_no_breach(
    ledger: LedgerServer, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit lists the ledger without the charge and then reads the order as CONFIRMED."""

    def confirm(_path: str) -> Answer:
        page = {"payments": [ledger.payments[key] for key in sorted(ledger.payments)], "next": None}
        ledger.before = lambda _: None
        ledger.put(charge(OPEN))
        _set(connection, OPEN, _CONFIRM)
        return 200, json.dumps(page).encode()

    monkeypatch.setattr(charges, "PIECE_ORDERS", 1)
    ledger.before = confirm
    assert _found(postgres_url, ledger) == {}
    assert f"/v1/payments/{OPEN}" in ledger.requested, "the audit has looked a second time"


def test_a_charge_of_an_order_that_was_accepted_after_the_audit_began_is_no_breach(
    ledger: LedgerServer, connection: Connection, postgres_url: str
) -> None:
    newer = "e0000000-0000-7000-8000-000000000000"

    def accept() -> None:
        place(connection, order_id=newer)
        ledger.put(charge(newer))

    _at_request(ledger, "/v1/payments", accept)
    assert _found(postgres_url, ledger) == {}
    assert not [path for path in ledger.requested if newer in path], "its order is enough for a payment that agrees"


def test_an_order_that_changes_during_the_second_look_is_looked_at_again(
    ledger: LedgerServer, connection: Connection, postgres_url: str
) -> None:
    """The charge is still held at the second look, because the cancel came after the audit had read the ledger."""
    ledger.put(charge(CANCELLED))
    _at_request(ledger, f"/v1/payments/{CANCELLED}", lambda: _set(connection, CANCELLED, "version = version + 1"))
    assert set(_found(postgres_url, ledger)) == {CANCELLED}
    assert ledger.requested.count(f"/v1/payments/{CANCELLED}") == 2

    ledger.put(charge(CANCELLED))

    def void() -> None:
        _set(connection, CANCELLED, "version = version + 1")
        ledger.put(_ended(CANCELLED, "voided", 1))

    _at_request(ledger, f"/v1/payments/{CANCELLED}", void)
    assert _found(postgres_url, ledger) == {}


def test_an_order_that_changes_at_each_look_is_left_out(
    ledger: LedgerServer, connection: Connection, postgres_url: str
) -> None:
    ledger.put(charge(CANCELLED))

    def change(path: str) -> None:
        if path.endswith(CANCELLED):
            _set(connection, CANCELLED, "version = version + 1")

    ledger.before = change
    assert _found(postgres_url, ledger) == {}
    assert ledger.requested.count(f"/v1/payments/{CANCELLED}") == charges.LOOKS_MAX


def test_an_audit_that_cannot_keep_up_with_new_payments_ends(
    ledger: LedgerServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charges, "NEWER_PAYMENTS_MAX", 2)
    ledger.put(*(_ended(f"f{number}000000-0000-7000-8000-000000000000", "declined", 0) for number in range(3)))
    with pytest.raises(LedgerError, match="more than 2 payments during the audit"):
        _found(postgres_url, ledger)


def test_the_audit_command_compares_the_ledger_and_its_exit_code_tells_the_result(
    ledger: LedgerServer, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_ledger, "RETRY_SECONDS", 0)
    connection.execute("DELETE FROM orders WHERE id = %s", (OPEN,))
    run = CliRunner(env={"POSTGRES_URL": postgres_url})
    clean = run.invoke(main, ["audit", "--ledger", ledger.url])
    assert f"ok   {CHECK}" in clean.stdout
    ledger.put(charge(CONFIRMED, charges=2))
    broken = run.invoke(main, ["audit", "--ledger", ledger.url])
    assert broken.exit_code == 1
    assert f"FAIL {CHECK}\n       {CONFIRMED}: charged 2 times" in broken.stdout
    without = run.invoke(main, ["audit"])
    assert CHECK not in without.stdout
    for url, problem in (("http://127.0.0.1:1", "cannot be read"), ("x", "address of the ledger is not valid")):
        unknown = run.invoke(main, ["audit", "--ledger", url])
        assert unknown.exit_code == 2
        assert unknown.stdout == ""
        assert problem in unknown.stderr
        assert len(unknown.stderr.splitlines()) == 1


def test_the_ledger_of_the_simulator_is_read(connection: Connection, postgres_url: str, tmp_path: Path) -> None:
    confirmed, cancelled, declined, twice = (place(connection) for _ in range(4))
    with simulator(tmp_path) as provider:
        assert [provider.authorize(key) for key in (confirmed, cancelled, twice)] == ["authorized"] * 3
        _set(connection, confirmed, _CONFIRM)
        _set(connection, cancelled, _CANCEL)
        with Ledger(provider.url) as ledger:
            assert audit_charges(postgres_url, ledger, grace_seconds=60)[CHECK] == []
            (breach,) = audit_charges(postgres_url, ledger, grace_seconds=0)[CHECK]
            assert breach == Breach(CHECK, cancelled, "CANCELLED, and the provider still holds 129.00 USD")
            assert provider.void(cancelled) == "voided"
            provider.change_faults(declineRate=1)
            assert provider.authorize(declined) == "declined"
            _set(connection, declined, _FAIL)
            assert audit_charges(postgres_url, ledger, grace_seconds=0)[CHECK] == []
            provider.change_faults(declineRate=0, keyLifetimeSeconds=0.001)
            assert provider.authorize(twice) == "authorized"
            (breach,) = audit_charges(postgres_url, ledger, grace_seconds=60)[CHECK]
            assert breach == Breach(CHECK, twice, "charged 2 times")
