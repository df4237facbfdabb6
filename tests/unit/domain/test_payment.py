"""Every cell of the table of payment-worker in docs/architecture.md, without a database (P2)."""

from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from orderstream.domain.order import PAYMENT_RANK
from orderstream.domain.payment import (
    STATES,
    Authorized,
    Declined,
    FirstOutcome,
    InFlight,
    NothingToVoid,
    Outcome,
    PaymentState,
    Pending,
    Refused,
    TooOld,
    Transition,
    Unanswered,
    Voided,
    VoidOutcome,
    fact_of,
    is_known,
    on_aborted,
    on_attempted,
    on_created,
)

VOID_NOW = Transition("VOIDING", backoff_attempts=0)
FINAL = ("AUTHORIZED", "FAILED", "VOIDED")
OUTCOMES: list[FirstOutcome] = [outcome() for outcome in get_args(FirstOutcome)]
ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"


@pytest.mark.parametrize(
    ("outcome", "first"),
    [
        (Authorized(), Transition("AUTHORIZED", None, 1, None)),
        (Declined(), Transition("FAILED", "PAYMENT_DECLINED", 1, None)),
        (Pending(), Transition("PENDING", None, 0, 1, is_pending=True)),
        (Unanswered(), Transition("PENDING", None, 1, 1)),
        (Refused(), Transition("PENDING", None, 0, 1)),
        (InFlight(), Transition("PENDING", None, 0, 1)),
        (TooOld(), Transition("VOIDING", "PROVIDER_UNAVAILABLE", 0, 0)),
    ],
)
def test_the_first_outcome_begins_a_payment(outcome: FirstOutcome, first: Transition) -> None:
    assert on_created(None, outcome) == first


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_order_with_a_payment_keeps_it_unless_an_ended_payment_is_authorized_late(
    state: PaymentState, outcome: FirstOutcome
) -> None:
    is_late = state in ("FAILED", "VOIDED") and outcome == Authorized()
    assert on_created(state, outcome) == (VOID_NOW if is_late else None)


@pytest.mark.parametrize("reason", [None, "OUT_OF_STOCK"])
def test_an_abort_voids_every_payment_that_has_not_ended(reason: str | None) -> None:
    voids = {state: on_aborted(state, reason) for state in (None, *STATES)}
    void = Transition("VOIDING", reason, 0, 0)
    assert voids == {None: void, "PENDING": void, "AUTHORIZED": void, "FAILED": None, "VOIDING": None, "VOIDED": None}


@pytest.mark.parametrize(
    ("outcome", "is_last", "next_transition"),
    [
        (Authorized(), False, Transition("AUTHORIZED", None, 3, None)),
        (Authorized(), True, Transition("AUTHORIZED", None, 3, None)),
        (Declined(), False, Transition("FAILED", "PAYMENT_DECLINED", 3, None)),
        (Declined(), True, Transition("FAILED", "PAYMENT_DECLINED", 3, None)),
        (Pending(), False, Transition("PENDING", None, 0, 1, is_pending=True)),
        (Pending(), True, Transition("PENDING", None, 0, 1, is_pending=True)),
        (Unanswered(), False, Transition("PENDING", None, 3, 3)),
        (Unanswered(), True, Transition("VOIDING", "PROVIDER_UNAVAILABLE", 0, 0)),
        (Refused(), False, Transition("PENDING", None, 2, 1)),
        (Refused(), True, Transition("PENDING", None, 2, 1)),
    ],
)
def test_a_timed_attempt_to_authorize_has_the_expected_result(
    outcome: Outcome, is_last: bool, next_transition: Transition
) -> None:
    assert on_attempted("PENDING", None, 2, outcome, is_last=is_last) == next_transition


def test_a_payment_that_waits_beyond_its_limit_is_voided_and_one_that_is_decided_then_is_not() -> None:
    void = Transition("VOIDING", "PROVIDER_UNAVAILABLE", 0, 0)
    assert on_attempted("PENDING", None, 2, Pending(), is_last=False, is_overdue=True) == void
    for outcome in (Authorized(), Declined(), Unanswered(), Refused()):
        within = on_attempted("PENDING", None, 2, outcome, is_last=False)
        assert on_attempted("PENDING", None, 2, outcome, is_last=False, is_overdue=True) == within


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(
    ("outcome", "reason", "next_transition"),
    [
        (Voided(), None, Transition("VOIDED", None, 3, None)),
        (Voided(), "TIMED_OUT", Transition("VOIDED", "TIMED_OUT", 3, None)),
        (Voided(), "PROVIDER_UNAVAILABLE", Transition("FAILED", "PROVIDER_UNAVAILABLE", 3, None)),
        (NothingToVoid(), None, Transition("VOIDED", None, 3, None)),
        (NothingToVoid(), "PROVIDER_UNAVAILABLE", Transition("FAILED", "PROVIDER_UNAVAILABLE", 3, None)),
        (Unanswered(), "TIMED_OUT", Transition("VOIDING", "TIMED_OUT", 3, 3)),
        (Refused(), "TIMED_OUT", Transition("VOIDING", "TIMED_OUT", 2, 1)),
    ],
)
def test_a_void_is_attempted_until_it_has_an_outcome(
    outcome: VoidOutcome, reason: str | None, next_transition: Transition, is_last: bool
) -> None:
    assert on_attempted("VOIDING", reason, 2, outcome, is_last=is_last) == next_transition


def _transitions() -> list[Transition]:
    """Return every transition that any input can cause."""
    attempts = product(("PENDING", "VOIDING"), (True, False))
    found: list[Transition | None] = [on_created(state, outcome) for state in (None, *STATES) for outcome in OUTCOMES]
    found += [on_aborted(state, None) for state in (None, *STATES)]
    for state, is_last in attempts:
        kinds = get_args(Outcome if state == "PENDING" else VoidOutcome)
        found += [on_attempted(state, None, 1, kind(), is_last=is_last) for kind in kinds]  # type: ignore[arg-type]
    return [transition for transition in found if transition]


def test_a_payment_is_attempted_again_exactly_while_it_is_not_final() -> None:
    """Postgres has the same rule as a CHECK on `payments`."""
    transitions = _transitions()
    assert {transition.state for transition in transitions} == set(STATES)
    for transition in transitions:
        assert (transition.backoff_attempts is None) == (transition.state in FINAL)


def test_an_order_learns_of_a_payment_once_it_is_final() -> None:
    assert {fact_of(state) for state in STATES} == set(PAYMENT_RANK)
    for state in STATES:
        assert fact_of(state) == (state.lower() if state in FINAL else "none")


def test_a_state_of_a_newer_version_is_not_known() -> None:
    assert all(is_known(state) for state in STATES)
    assert not is_known("CAPTURED")


def test_the_table_of_the_document_has_a_column_for_each_state() -> None:
    lines = ARCHITECTURE.read_text(encoding="utf-8").splitlines()
    (head,) = [line for line in lines if line.startswith("| input | no row | PENDING ")]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["input", "no row", *STATES]
