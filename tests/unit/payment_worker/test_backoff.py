"""The waits between two attempts, and the duration of a claim."""

import pytest

from orderstream.payment_worker.attempts import CLAIM_SECONDS, Backoff
from orderstream.settings import Settings


@pytest.mark.parametrize(("attempts", "longest"), [(1, 0.2), (2, 0.4), (3, 0.8), (8, 25.6), (9, 30), (10_000, 30)])
def test_the_wait_doubles_up_to_its_maximum(attempts: int, longest: float) -> None:
    waits = [Backoff(8, 0.2, 30).delay_seconds(attempts) for _ in range(200)]
    assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_claim_lasts_longer_than_the_longest_budget_of_a_batch() -> None:
    budget = Settings.model_fields["payment_batch_budget_seconds"]
    (longest,) = (constraint.le for constraint in budget.metadata if hasattr(constraint, "le"))
    assert longest < CLAIM_SECONDS
