"""What a loop tries in vain, since when and why."""

from orderstream.process.standstill import STANDSTILL_SECONDS, Standstill

PUBLISH, TIMER = "published nothing", "not run its timer nudge"


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def made() -> tuple[Standstill, Clock]:
    """A standstill and its clock."""
    clock = Clock()
    return Standstill(clock), clock


def test_a_short_failure_is_no_standstill() -> None:
    standstill, clock = made()
    standstill.failed(PUBLISH, RuntimeError("away"))
    clock.now = STANDSTILL_SECONDS - 1
    assert standstill.problem() is None


def test_a_lasting_failure_is_told_with_its_age_and_its_last_reason() -> None:
    standstill, clock = made()
    for clock.now in range(43):
        standstill.begin(PUBLISH)
        standstill.failed(PUBLISH, RuntimeError(f"cannot\nexecute {clock.now}"))
    assert standstill.problem() == "has published nothing for 42 s: cannot execute 42"


def test_a_hung_attempt_is_told_without_a_reason() -> None:
    standstill, clock = made()
    standstill.begin(PUBLISH)
    clock.now = 60
    assert standstill.problem() == "has published nothing for 60 s"


def test_one_success_ends_it() -> None:
    standstill, clock = made()
    standstill.failed(PUBLISH, RuntimeError("away"))
    clock.now = 60
    standstill.succeeded(PUBLISH)
    assert standstill.problem() is None
    standstill.begin(PUBLISH)
    assert standstill.problem() is None


def test_the_longest_is_told_and_the_success_of_another_activity_does_not_end_it() -> None:
    standstill, clock = made()
    standstill.failed(TIMER, RuntimeError("read-only"))
    clock.now = 10
    standstill.failed(PUBLISH, RuntimeError("away"))
    clock.now = 50
    standstill.succeeded(PUBLISH)
    assert standstill.problem() == "has not run its timer nudge for 50 s: read-only"
