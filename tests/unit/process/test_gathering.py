"""How long a process gathers items for a larger batch."""

import pytest

from orderstream.api_gateway.orders.writer import GATHERING
from orderstream.order_service.handler import OrderHandler
from orderstream.process.gathering import NO_GATHERING, OF_RECORDS, Gathering

LARGEST_BATCH = 2_000
EVERY = pytest.mark.parametrize("gathering", [OF_RECORDS, OrderHandler.gathering, GATHERING])


@EVERY
def test_few_items_never_wait(gathering: Gathering) -> None:
    assert gathering.from_items >= 5
    assert {gathering.seconds(items) for items in range(gathering.from_items)} == {0}


@EVERY
def test_the_wait_grows_with_the_last_batch_up_to_a_limit(gathering: Gathering) -> None:
    waits = [gathering.seconds(items) for items in range(gathering.from_items, LARGEST_BATCH)]
    assert waits == sorted(waits)
    assert 0 < waits[0] < 0.005
    assert waits[-1] == gathering.longest_seconds


@EVERY
def test_waits_stay_short_at_a_moderate_rate(gathering: Gathering) -> None:
    """If the items of a wait took longer to arrive than the wait, waits would grow to the longest one at any rate."""
    rate = 1_000
    assert all(gathering.seconds(items) < items / rate for items in range(gathering.from_items, LARGEST_BATCH))


def test_a_batcher_without_gathering_never_waits() -> None:
    assert NO_GATHERING.seconds(LARGEST_BATCH) == 0
