"""A wait that fails names what stopped: a test that fails must not have to be read to be understood."""

import sys

import pytest

from tests.support.processes import Process
from tests.support.waiting import StoppedError, wait_until, watched

LONG_SECONDS = 60


def test_a_wait_in_vain_says_for_what_and_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"waited 0.02 s in vain: it never comes \(last seen: \[\]\)"):
        wait_until(list, 0.02, "it never comes")


def test_a_wait_fails_at_once_when_what_it_depends_on_has_failed() -> None:
    death = ValueError("the cause")
    with (
        watched("the worker", lambda: death, lambda: "its last line"),
        pytest.raises(AssertionError, match=r"waiting for: an answer .* the worker has stopped: ValueError") as caught,
    ):
        wait_until(lambda: False, LONG_SECONDS, "an answer")
    assert isinstance(caught.value.__cause__, StoppedError)
    assert caught.value.__cause__.__cause__ is death
    assert caught.value.__notes__ == ["The last of what the worker said:\nits last line"]


def test_a_condition_that_holds_after_the_end_is_met() -> None:
    with watched("the worker", lambda: "done"):
        assert wait_until(lambda: 1, LONG_SECONDS, "its effect") == 1


def test_a_process_that_dies_is_reported_with_its_exit_code() -> None:
    with Process([sys.executable, "-c", "raise SystemExit(3)"]) as child, child.watched("the service"):
        with pytest.raises(AssertionError, match="the service has stopped: exit code 3"):
            wait_until(lambda: False, LONG_SECONDS, "an answer")
        assert child.ends() == 3


def test_the_end_that_a_test_asks_for_is_no_surprise() -> None:
    with Process([sys.executable, "-c", "import time; time.sleep(600)"]) as child, child.watched("the service"):
        child.terminate()
        child.wait(LONG_SECONDS)
        with pytest.raises(AssertionError, match="in vain"):
            wait_until(lambda: False, 0.02, "what nobody does")
