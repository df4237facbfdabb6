"""Every course of an order has one end, for any order, repeats and batches of its events (P6, P7)."""

from collections.abc import Iterator, Sequence

import pytest

from orderstream.domain.order import may_hold_money_or_stock, settled
from tests.support.scenarios import SCENARIOS, Scenario, Step, cuts, orderings, play

ANY_SCENARIO = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def _ends(scenario: Scenario, batches: Sequence[Sequence[Step]]) -> None:
    order = play(batches)
    ended = (order.status, order.facts.payment, order.facts.stock, order.failure_reason)
    assert ended == (scenario.status, scenario.payment, scenario.stock, scenario.reason), batches
    assert order.facts == play([scenario.steps]).facts, "the times of the facts differ"


def _possible(scenario: Scenario, steps: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
    return (sequence for sequence in orderings(steps) if scenario.possible(sequence))


@ANY_SCENARIO
def test_events_in_every_order_and_batch_end_in_the_same_state(scenario: Scenario) -> None:
    for sequence in _possible(scenario, scenario.steps):
        for where in range(2 ** (len(sequence) - 1)):
            _ends(scenario, list(cuts(sequence, where)))


@ANY_SCENARIO
def test_every_order_with_each_event_twice(scenario: Scenario) -> None:
    twice = (*scenario.steps, *(step for step in scenario.steps if step != scenario.close))
    one_by_one, pairs, all_at_once = -1, 0b0101_0101_0101, 0
    for sequence in _possible(scenario, twice):
        for where in (one_by_one, pairs, all_at_once):
            _ends(scenario, list(cuts(sequence, where)))


@ANY_SCENARIO
def test_every_scenario_settles_and_is_compensated_unless_confirmed(scenario: Scenario) -> None:
    order = play([scenario.steps])
    assert settled(order.status)
    assert order.status == "CONFIRMED" or not may_hold_money_or_stock(order.facts)


@ANY_SCENARIO
def test_only_a_cancel_changes_a_settled_status(scenario: Scenario) -> None:
    for sequence in _possible(scenario, scenario.steps):
        for end in range(1, len(sequence)):
            before, after = play([sequence[:end]]), play([[step] for step in sequence[: end + 1]])
            if settled(before.status) and before.status != after.status:
                assert (before.status, after.status, sequence[end]) == ("CONFIRMED", "CANCELLED", "cancel")
