"""The laws of merge, fold and apply that make duplicates and reordering harmless (P7)."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from orderstream.domain.order import Facts, FactUpdate, OrderState, apply, derive, fold, merge, settled
from tests.support.scenarios import SCENARIOS, Scenario, Step, cuts, play
from tests.support.strategies import FACT_UPDATES, FACTS


@given(FACTS, FACTS)
def test_merge_is_commutative(left: Facts, right: Facts) -> None:
    assert merge(left, right) == merge(right, left)


@given(FACTS, FACTS, FACTS)
def test_merge_is_associative(first: Facts, second: Facts, third: Facts) -> None:
    assert merge(merge(first, second), third) == merge(first, merge(second, third))


@given(FACTS, FACTS)
def test_merge_is_idempotent_and_never_shrinks(first: Facts, second: Facts) -> None:
    assert merge(first, first) == first
    assert merge(merge(first, second), second) == merge(first, second)
    assert merge(first, Facts()) == first or None in (first.payment_at, first.stock_at)


@given(FACT_UPDATES, FACT_UPDATES)
def test_fold_is_commutative(left: FactUpdate, right: FactUpdate) -> None:
    assert fold(left, right) == fold(right, left)


@given(FACT_UPDATES, FACT_UPDATES, FACT_UPDATES)
def test_fold_is_associative(first: FactUpdate, second: FactUpdate, third: FactUpdate) -> None:
    assert fold(fold(first, second), third) == fold(first, fold(second, third))


@given(FACT_UPDATES)
def test_fold_is_idempotent(first: FactUpdate) -> None:
    assert fold(first, first) == first


@given(FACTS, st.lists(FACT_UPDATES, min_size=1, max_size=6), st.data())
def test_facts_do_not_depend_on_order_or_repeats_or_batches(
    known: Facts, updates: list[FactUpdate], data: st.DataObject
) -> None:
    order = OrderState(derive(known.payment, known.stock), known)
    one_by_one = order
    for update in updates:
        one_by_one = apply(one_by_one, update)
    again = data.draw(st.lists(st.sampled_from(updates), max_size=3))
    folded = reduce(fold, data.draw(st.permutations(updates + again)))
    assert apply(order, folded).facts == one_by_one.facts


@given(FACTS, st.lists(FACT_UPDATES, max_size=6))
def test_a_status_moves_forward_and_freezes_when_settled(known: Facts, updates: list[FactUpdate]) -> None:
    order = OrderState(derive(known.payment, known.stock), known)
    for update in updates:
        after = apply(order, update)
        assert after.version - order.version in (0, 1)
        if settled(order.status):
            assert (after.status, after.failure_reason) == (order.status, order.failure_reason)
        else:
            assert after.status == derive(after.facts.payment, after.facts.stock)
            assert (order.status, after.status) != ("PAID", "PROCESSING")
        if after.status == "CONFIRMED" != order.status:
            assert (after.facts.payment, after.facts.stock) == ("authorized", "reserved")
        order = after


@st.composite
def _courses(draw: st.DrawFn) -> tuple[Scenario, tuple[Step, ...], int]:
    scenario = draw(st.sampled_from(SCENARIOS))
    once = (scenario.close,) if scenario.close else ()
    before = draw(st.lists(st.sampled_from(scenario.events), max_size=8)) if scenario.events and once else []
    every = [*scenario.events, *scenario.answers]
    after = draw(st.permutations([*every, *draw(st.lists(st.sampled_from(every), max_size=12))]))
    sequence = (*before, *once, *after)
    return scenario, sequence, draw(st.integers(0, 2 ** len(sequence) - 1))


@given(_courses())
def test_a_scenario_ends_the_same_with_any_duplicates_in_any_order_and_batches(
    course: tuple[Scenario, tuple[Step, ...], int],
) -> None:
    scenario, sequence, where = course
    order = play(cuts(sequence, where))
    assert (order.status, order.facts, order.failure_reason) == (
        scenario.status,
        play([scenario.steps]).facts,
        scenario.reason,
    )
