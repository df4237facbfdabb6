"""How long a process gathers items for a larger batch."""

import pytest

from orderstream.api_gateway.orders.writer import GATHERING
from orderstream.order_service.handler import OrderHandler
from orderstream.outbox_relay.relay import BATCH_ROWS
from orderstream.process.gathering import NO_GATHERING, OF_RECORDS, Gathering

LARGEST_BATCH = max(OF_RECORDS.records_max, OrderHandler.gathering.records_max, BATCH_ROWS)
EVERY = pytest.mark.parametrize("gathering", [OF_RECORDS, OrderHandler.gathering, GATHERING])


@EVERY
def test_few_items_never_wait(gathering: Gathering) -> None:
    assert gathering.from_items >= 2
    assert {gathering.seconds(items) for items in range(gathering.from_items)} == {0}


@EVERY
def test_the_wait_grows_with_the_last_batch_up_to_a_limit(gathering: Gathering) -> None:
    waits = [gathering.seconds(items) for items in range(gathering.from_items, LARGEST_BATCH)]
    assert waits == sorted(waits)
    assert 0 < waits[0] <= 0.005
    assert waits[-1] == gathering.longest_seconds


@EVERY
def test_waits_stay_short_at_a_moderate_rate(gathering: Gathering) -> None:
    """If the items of a wait took longer to arrive than the wait, waits would grow to the longest one at any rate."""
    rate = 1_000
    for items in range(gathering.from_items, LARGEST_BATCH):
        assert gathering.seconds(items) < items / rate or gathering.seconds(items) == gathering.shortest_seconds


def test_a_single_item_never_waits_and_the_two_results_of_one_order_neither() -> None:
    assert OF_RECORDS.seconds(1) == 0
    assert OrderHandler.gathering.seconds(2) == 0


def test_a_batch_of_order_service_has_room_for_both_results_of_each_order() -> None:
    assert OrderHandler.gathering.records_max >= 2 * OF_RECORDS.records_max


def test_a_batcher_without_gathering_never_waits() -> None:
    assert NO_GATHERING.seconds(LARGEST_BATCH) == 0
