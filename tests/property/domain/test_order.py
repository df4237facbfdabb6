"""The laws that make duplicates and reordering harmless: of merge, of fold, of apply (P7)."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from orderstream.domain.order import Facts, News, OrderState, apply, derive, fold, merge, settled
from tests.support.scenarios import SCENARIOS, Scenario, Step, cuts, play
from tests.support.strategies import FACTS, NEWS


@given(FACTS, FACTS)
def test_merge_is_commutative(left: Facts, right: Facts) -> None:
    assert merge(left, right) == merge(right, left)


@given(FACTS, FACTS, FACTS)
def test_merge_is_associative(one: Facts, two: Facts, three: Facts) -> None:
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(FACTS, FACTS)
def test_merge_is_idempotent_and_never_shrinks(one: Facts, two: Facts) -> None:
    assert merge(one, one) == one
    assert merge(merge(one, two), two) == merge(one, two)
    assert merge(one, Facts()) == one or None in (one.payment_at, one.stock_at)


@given(NEWS, NEWS)
def test_fold_is_commutative(left: News, right: News) -> None:
    assert fold(left, right) == fold(right, left)


@given(NEWS, NEWS, NEWS)
def test_fold_is_associative(one: News, two: News, three: News) -> None:
    assert fold(fold(one, two), three) == fold(one, fold(two, three))


@given(NEWS)
def test_fold_is_idempotent(one: News) -> None:
    assert fold(one, one) == one


@given(FACTS, st.lists(NEWS, min_size=1, max_size=6), st.data())
def test_facts_do_not_depend_on_order_repeats_or_batches(known: Facts, told: list[News], data: st.DataObject) -> None:
    order = OrderState(derive(known.payment, known.stock), known)
    one_by_one = order
    for news in told:
        one_by_one = apply(one_by_one, news)
    again = data.draw(st.lists(st.sampled_from(told), max_size=3))
    folded = reduce(fold, data.draw(st.permutations(told + again)))
    assert apply(order, folded).facts == one_by_one.facts


@given(FACTS, st.lists(NEWS, max_size=6))
def test_a_status_moves_forward_and_freezes_when_settled(known: Facts, told: list[News]) -> None:
    order = OrderState(derive(known.payment, known.stock), known)
    for news in told:
        after = apply(order, news)
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
