"""A failed wait names its condition, and the process or thread that ended."""

import sys

import pytest

from tests.support.processes import Process
from tests.support.waiting import StoppedError, wait_until, watched

LONG_SECONDS = 60


def test_a_wait_that_fails_names_its_condition_and_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.02 s: it comes \(last seen: \[\]\)"):
        wait_until(list, 0.02, "it comes")


def test_a_wait_fails_at_once_when_a_watched_thread_has_failed() -> None:
    death = ValueError("the cause")
    with (
        watched("the worker", lambda: death, lambda: "its last line"),
        pytest.raises(AssertionError, match=r"waiting for: an answer .* the worker has stopped: ValueError") as caught,
    ):
        wait_until(lambda: False, LONG_SECONDS, "an answer")
    assert isinstance(caught.value.__cause__, StoppedError)
    assert caught.value.__cause__.__cause__ is death
    # A server that other tests of this process share may be watched too, with a note of its own.
    assert "The end of the output of the worker:\nits last line" in caught.value.__notes__


def test_a_condition_may_become_true_after_the_end() -> None:
    with watched("the worker", lambda: "done"):
        assert wait_until(lambda: 1, LONG_SECONDS, "its effect") == 1


def test_a_process_that_dies_is_reported_with_its_exit_code() -> None:
    with Process([sys.executable, "-c", "raise SystemExit(3)"]) as child, child.watched("the service"):
        with pytest.raises(AssertionError, match="the service has stopped: exit code 3"):
            wait_until(lambda: False, LONG_SECONDS, "an answer")
        assert child.ends() == 3


def test_an_end_that_the_test_requests_does_not_fail_a_wait() -> None:
    with Process([sys.executable, "-c", "import time; time.sleep(600)"]) as child, child.watched("the service"):
        child.terminate()
        child.wait(LONG_SECONDS)
        with pytest.raises(AssertionError, match="not within"):
            wait_until(lambda: False, 0.02, "it never happens")
