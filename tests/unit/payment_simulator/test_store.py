"""The ledger's file: one charge for a key, voids that last, keys that are forgotten, and files that are no ledger."""

import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orderstream.payment_simulator.store import (
    FORMAT,
    Authorization,
    KeyReusedError,
    LedgerError,
    Payment,
    Store,
)

LIFETIME_SECONDS = 100.0


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A new ledger. Each statement of the test is a transaction of its own."""
    opened = Store(tmp_path / "ledger.db", clock)
    yield opened
    opened.close()


def request(key: str = "a", amount: str = "12.50", currency: str = "EUR", **changes: Any) -> Authorization:
    """Return a request to authorize a payment."""
    wanted = Authorization(key, amount, currency, key_lifetime_seconds=LIFETIME_SECONDS)
    return msgspec.structs.replace(wanted, **changes)


def kinds(store: Store, key: str = "a") -> list[str]:
    """Return the kinds of a key's entries."""
    return [entry.kind for entry in store.history(key) or []]


def charges_and_held(store: Store, key: str = "a") -> tuple[int, Decimal]:
    """Return the number of charges and the amount that is held."""
    account = store.find(key)
    assert account is not None
    return account.charges, account.held


def test_a_key_is_charged_once_and_keeps_its_answer(store: Store) -> None:
    answers = [store.authorize(request()) for _ in range(3)]
    assert answers == [Payment("a", "authorized", "12.50", "EUR")] * 3
    assert charges_and_held(store) == (1, Decimal("12.50"))


def test_a_declined_key_stays_declined_and_has_no_charge(store: Store) -> None:
    assert store.authorize(request(outcome="declined")).status == "declined"
    assert store.authorize(request()).status == "declined"
    assert kinds(store) == []


@pytest.mark.parametrize("other", [request(amount="12.51"), request(currency="USD")])
def test_a_key_with_another_amount_or_currency_is_refused(store: Store, other: Authorization) -> None:
    store.authorize(request())
    with pytest.raises(KeyReusedError, match=r"12\.50 EUR"):
        store.authorize(other)
    assert charges_and_held(store) == (1, Decimal("12.50"))


def test_a_void_releases_the_amount_and_the_key_is_never_charged_again(store: Store) -> None:
    store.authorize(request())
    assert [store.void("a") for _ in range(2)] == ["voided", "voided"]
    assert store.authorize(request()).status == "voided"
    assert kinds(store) == ["charge", "void"]
    assert charges_and_held(store) == (1, Decimal(0))


def test_a_key_that_is_voided_before_its_use_is_never_charged(store: Store) -> None:
    assert [store.void("a") for _ in range(2)] == ["nothing_to_void", "nothing_to_void"]
    assert store.authorize(request()) == Payment("a", "voided", None, None)
    assert kinds(store) == []


@pytest.mark.parametrize("changes", [{"outcome": "declined"}, {"pending_seconds": 5.0}])
def test_a_void_of_a_payment_that_holds_nothing_has_nothing_to_void(store: Store, changes: dict[str, Any]) -> None:
    store.authorize(request(**changes))
    assert [store.void("a") for _ in range(2)] == ["nothing_to_void", "nothing_to_void"]
    assert store.authorize(request()).status == "voided"
    assert store.decide_due(10) == []


@pytest.mark.parametrize(("outcome", "entries"), [("authorized", ["charge"]), ("declined", [])])
def test_a_pending_payment_is_decided_when_its_time_is_over(
    store: Store, clock: Clock, outcome: str, entries: list[str]
) -> None:
    pending = request(outcome=outcome, pending_seconds=5.0)
    assert store.authorize(pending).status == "pending"
    clock.seconds += 4.9
    assert store.decide_due(10) == []
    assert (store.authorize(pending).status, kinds(store)) == ("pending", [])
    clock.seconds += 0.1
    assert store.decide_due(10) == ["a"]
    assert (store.authorize(pending).status, kinds(store)) == (outcome, entries)
    assert store.decide_due(10) == []


def test_a_call_after_the_time_of_a_pending_payment_decides_it(store: Store, clock: Clock) -> None:
    pending = request(pending_seconds=5.0)
    store.authorize(pending)
    clock.seconds += 5
    assert [store.authorize(pending).status for _ in range(2)] == ["authorized", "authorized"]
    assert kinds(store) == ["charge"]
    assert store.decide_due(10) == []


def test_a_limited_number_of_pending_payments_is_decided_at_once(store: Store, clock: Clock) -> None:
    for key in ("c", "a", "b"):
        store.authorize(request(key, pending_seconds=5.0))
        clock.seconds += 1
    clock.seconds += 5
    assert [store.decide_due(2), store.decide_due(2)] == [["c", "a"], ["b"]]


def test_a_forgotten_key_is_charged_again_and_the_ledger_shows_it(store: Store, clock: Clock) -> None:
    store.authorize(request())
    clock.seconds += LIFETIME_SECONDS - 0.1
    store.authorize(request())
    assert charges_and_held(store) == (1, Decimal("12.50"))
    clock.seconds += 0.1
    assert store.authorize(request(amount="2.00")) == Payment("a", "authorized", "2.00", "EUR")
    assert charges_and_held(store) == (2, Decimal("14.50"))


def test_a_void_releases_every_charge_of_its_key_also_old_ones(store: Store, clock: Clock) -> None:
    store.authorize(request())
    clock.seconds += LIFETIME_SECONDS
    store.authorize(request())
    clock.seconds += LIFETIME_SECONDS
    assert store.void("a") == "voided"
    assert kinds(store) == ["charge", "charge", "void", "void"]
    assert charges_and_held(store) == (2, Decimal(0))


def test_a_forgotten_void_lets_its_key_be_charged_and_voided_again(store: Store, clock: Clock) -> None:
    store.void("a")
    clock.seconds += LIFETIME_SECONDS
    assert store.authorize(request()).status == "authorized"
    assert store.void("a") == "voided"
    assert charges_and_held(store) == (1, Decimal(0))


def test_the_pages_have_every_payment_in_the_order_of_the_keys(store: Store) -> None:
    for key in ("b", "a", "d"):
        store.authorize(request(key))
    store.void("c")
    store.void("d")
    pages = [store.page("", 2), store.page("b", 2), store.page("d", 2)]
    assert [[account.payment.key for account in page] for page in pages] == [["a", "b"], ["c", "d"], []]
    assert [(account.charges, account.held) for account in pages[1]] == [(0, Decimal(0)), (1, Decimal(0))]


def test_an_unknown_key_has_no_payment_and_no_history(store: Store) -> None:
    assert (store.find("a"), store.history("a")) == (None, None)


def test_no_entry_can_be_changed_or_deleted(store: Store, tmp_path: Path, clock: Clock) -> None:
    store.authorize(request())
    store.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        for statement in ("UPDATE entries SET amount = '0'", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    connection.close()
    again = Store(tmp_path / "ledger.db", clock)
    assert charges_and_held(again) == (1, Decimal("12.50"))
    again.close()


def test_a_rolled_back_transaction_leaves_nothing(store: Store) -> None:
    store.begin()
    store.authorize(request())
    store.roll_back()
    store.roll_back()
    assert store.find("a") is None


# Files that cannot be used as a ledger


def refusal(path: Path) -> str:
    """Return why the file is refused."""
    with pytest.raises(LedgerError) as caught:
        Store(path, Clock())
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text.partition("cannot be used: ")[2]


def ledger_with_payments(path: Path) -> None:
    """Create a ledger with 2,000 payments, so that its trees have several pages."""
    store = Store(path, Clock())
    store.begin()
    for number in range(2_000):
        store.authorize(request(f"key-{number:06}"))
    store.commit()
    store.close()


def test_a_second_process_cannot_open_the_ledger(store: Store, tmp_path: Path) -> None:
    assert refusal(tmp_path / "ledger.db") == "another process uses it"
    assert store.authorize(request()).status == "authorized"


def test_a_file_that_is_no_database_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"these are the notes of somebody" * 100)
    assert refusal(path) == "file is not a database"
    assert path.read_bytes() == b"these are the notes of somebody" * 100


def test_a_database_of_another_program_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (note TEXT)")
    connection.close()
    before = path.read_bytes()
    assert refusal(path) == "it is a database of another program"
    assert path.read_bytes() == before


def test_a_ledger_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger_with_payments(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    assert refusal(path) == f"it has format {FORMAT + 1}, and this version of OrderStream uses format {FORMAT}"


@pytest.mark.parametrize("offset", [5_000, 60_000, 150_000])
def test_a_corrupt_ledger_is_refused(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "ledger.db"
    ledger_with_payments(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + 4_096] = b"\xa5" * 4_096
    path.write_bytes(content)
    assert "malformed" in (text := refusal(path)) or text.startswith("it is corrupt: ")


def test_a_ledger_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger_with_payments(path)
    path.write_bytes(path.read_bytes()[:50_000])
    assert "malformed" in (text := refusal(path)) or text.startswith("it is corrupt: ")


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "File exists" in refusal(tmp_path / "file" / "ledger.db")
    assert refusal(tmp_path)


def test_the_folder_and_the_file_are_private(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "new" / "ledger.db"
    Store(path, clock).close()
    assert [entry.stat().st_mode & 0o777 for entry in (path.parent, path)] == [0o700, 0o600]
