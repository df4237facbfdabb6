"""Counts the statements of one batch of work with 1 item and with 40 items. Both numbers must be the same.

A statement for each item is the most expensive defect that a change can bring, and no other test fails for it.
"""

from collections.abc import Callable
from contextlib import ExitStack

from msgspec import Struct

from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.support.postgres_counts import PostgresCounts

FEW, MANY = 1, 40
SKU = "SKU-1"


class Counting(Struct):
    """The database of a test. `tables` and `plain_url` prepare the work. It goes through `work` or `settings`."""

    tables: Connection
    work: Connection
    settings: Settings
    plain_url: str
    asked: PostgresCounts
    opened: ExitStack

    def statements(self, work: "Work", items: int) -> int:
        """Return how many statements the work needs. It must have handled all of its items."""
        before = self.asked.statements.total()
        assert work() == items, "the work did not handle its items"
        return self.asked.statements.total() - before


Work = Callable[[], int]
"""Does a batch of work, and returns how many items it has handled."""

Case = Callable[[Counting, int], Work]
"""Prepares a batch with that many items."""


def assert_set_based(counting: Counting, case: Case) -> None:
    """Check that the number of statements does not depend on the number of items."""
    few, many = (counting.statements(case(counting, items), items) for items in (FEW, MANY))
    assert few > 0, "no statement went through the proxy"
    assert many == few, f"{few} statements with {FEW} item, {many} with {MANY}"
