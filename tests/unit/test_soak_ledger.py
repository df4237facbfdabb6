"""The ledger of a soak detects answers that break a promise."""

import pytest

from tests.load.soak.ledger import Ledger


@pytest.mark.parametrize(
    ("statuses", "cancel_tried", "wrong"),
    [
        (["PROCESSING", "PAID", "CONFIRMED"], False, 0),
        (["CONFIRMED", "CANCELLED", "CANCELLED"], True, 0),
        (["CONFIRMED", "CANCELLED"], False, 1),
        (["FAILED", "CANCELLED"], True, 1),
        (["FAILED", "CONFIRMED"], False, 1),
        (["CANCELLED", "CONFIRMED"], True, 1),
        (["CONFIRMED", "PAID"], False, 1),
    ],
)
def test_a_settled_status_may_only_change_by_a_cancel(statuses: list[str], cancel_tried: bool, wrong: int) -> None:
    ledger = Ledger()
    seen = ledger.accepted("order")
    seen.cancel_tried = cancel_tried
    for version, status in enumerate(statuses):
        ledger.record_status(seen, version, status)
    assert len(ledger.changed_after_settling()) == wrong


def test_the_ledger_reports_a_version_with_two_statuses() -> None:
    ledger = Ledger()
    seen = ledger.accepted("order")
    ledger.record_status(seen, 1, "PAID")
    ledger.record_status(seen, 1, "FAILED")
    assert ledger.problems == ["order: version 1 is PAID and FAILED"]


def test_a_read_may_not_be_older_than_the_version_known_when_it_began() -> None:
    ledger = Ledger()
    seen = ledger.accepted("order")
    ledger.state(seen, 3, "CONFIRMED", floor=0, began=1.0)
    ledger.state(seen, 2, "PAID", floor=2, began=1.0)
    assert ledger.older == []
    ledger.state(seen, 2, "PAID", floor=3, began=2.0)
    assert [older.what for older in ledger.older] == ["order: version 2 was read after version 3"]
