"""The waits between two attempts, and the duration of a claim."""

import pytest

from orderstream.domain.payment import Transition
from tests.support.payments import CALL_TIMEOUT_SECONDS, SCHEDULE

PENDING = Transition("PENDING", backoff_attempts=1, is_pending=True)


@pytest.mark.parametrize(("attempts", "longest"), [(1, 0.2), (2, 0.4), (3, 0.8), (8, 25.6), (9, 30), (10_000, 30)])
def test_the_wait_doubles_up_to_its_maximum(attempts: int, longest: float) -> None:
    waits = [SCHEDULE.retry_delay(attempts) for _ in range(200)]
    assert longest / 2 <= min(waits) < max(waits) <= longest


@pytest.mark.parametrize(
    ("pending_seconds", "longest"), [(None, 2), (0, 2), (3.9, 2), (10, 5), (39, 19.5), (40, 20), (1_800, 20)]
)
def test_a_pending_payment_is_checked_after_half_of_the_time_that_it_has_been_pending(
    pending_seconds: float | None, longest: float
) -> None:
    waits = [SCHEDULE.delay(PENDING, pending_seconds=pending_seconds) or 0 for _ in range(200)]
    assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_refused_call_is_retried_after_the_time_that_the_provider_named() -> None:
    refused = Transition("VOIDING", backoff_attempts=1)
    waits = [SCHEDULE.delay(refused, retry_after=60) or 0 for _ in range(200)]
    assert min(waits) >= 60
    assert max(waits) <= 60.2


def test_a_payment_that_has_ended_is_not_attempted_again() -> None:
    assert SCHEDULE.delay(Transition("AUTHORIZED")) is None
    assert SCHEDULE.delay(Transition("VOIDING", backoff_attempts=0)) == 0


def test_a_claim_lasts_longer_than_a_call() -> None:
    assert SCHEDULE.claim > CALL_TIMEOUT_SECONDS + 10
