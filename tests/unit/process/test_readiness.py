"""Readiness reports which activity of a loop fails, since when, and why."""

from orderstream.process.readiness import NOT_READY_AFTER_SECONDS, Readiness

PUBLISH, TIMER = "published nothing", "not run its timer nudge"


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time of the test."""
        return self.now


def made() -> tuple[Readiness, Clock]:
    """Return a readiness with its clock."""
    clock = Clock()
    return Readiness(clock), clock


def test_after_a_short_failure_the_loop_is_still_ready() -> None:
    readiness, clock = made()
    readiness.failed(PUBLISH, RuntimeError("away"))
    clock.now = NOT_READY_AFTER_SECONDS - 1
    assert readiness.problem() is None


def test_a_lasting_failure_is_reported_with_its_age_and_its_last_reason() -> None:
    readiness, clock = made()
    for clock.now in range(43):
        readiness.begin(PUBLISH)
        readiness.failed(PUBLISH, RuntimeError(f"cannot\nexecute {clock.now}"))
    assert readiness.problem() == "has published nothing for 42 s: cannot execute 42"


def test_an_attempt_that_hangs_is_reported_without_a_reason() -> None:
    readiness, clock = made()
    readiness.begin(PUBLISH)
    clock.now = 60
    assert readiness.problem() == "has published nothing for 60 s"


def test_one_success_makes_the_loop_ready_again() -> None:
    readiness, clock = made()
    readiness.failed(PUBLISH, RuntimeError("away"))
    clock.now = 60
    readiness.succeeded(PUBLISH)
    assert readiness.problem() is None
    readiness.begin(PUBLISH)
    assert readiness.problem() is None


def test_the_longest_failure_is_reported_and_the_success_of_another_activity_does_not_end_it() -> None:
    readiness, clock = made()
    readiness.failed(TIMER, RuntimeError("read-only"))
    clock.now = 10
    readiness.failed(PUBLISH, RuntimeError("away"))
    clock.now = 50
    readiness.succeeded(PUBLISH)
    assert readiness.problem() == "has not run its timer nudge for 50 s: read-only"
