"""The steps of a start run side by side, each after the steps it needs. A stop does not wait for them."""

import io
import threading
from collections.abc import Callable

import pytest

from orderstream.local.processes.child import StoppingError
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.start_order import START_AFTER, StartStep, run
from orderstream.settings import SERVICES

Report = Callable[[str], None]


def quiet() -> Terminal:
    """Return a terminal that prints to nowhere."""
    return Terminal(io.StringIO())


def test_a_step_waits_only_for_the_steps_it_needs() -> None:
    done: list[str] = []
    both = threading.Barrier(2, timeout=10)

    def meet(report: Report) -> None:
        both.wait()

    def note(name: str) -> Callable[[Report], None]:
        return lambda _: done.append(name)

    steps = [
        StartStep("last", ("first", "not a step"), note("last")),
        StartStep("first", (), note("first")),
        StartStep("left", (), meet),
        StartStep("right", (), meet),
    ]
    run(steps, quiet(), threading.Event())
    assert done == ["first", "last"]


def test_the_first_failure_is_raised_and_steps_that_need_it_do_not_run() -> None:
    ran = threading.Event()

    def fail(report: Report) -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        run([StartStep("a", (), fail), StartStep("b", ("a",), lambda _: ran.set())], quiet(), threading.Event())
    assert not ran.is_set()


def test_a_stop_does_not_wait_for_a_step_that_hangs() -> None:
    cancelled, never = threading.Event(), threading.Event()

    def hang(report: Report) -> None:
        cancelled.set()
        never.wait(60)

    with pytest.raises(StoppingError):
        run([StartStep("a", (), hang)], quiet(), cancelled)
    never.set()


def test_steps_that_need_each_other_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="need each other"):
        run([StartStep("a", ("b",), print), StartStep("b", ("a",), print)], quiet(), threading.Event())


def test_the_start_order_has_every_service_and_names_only_its_own_steps() -> None:
    assert set(SERVICES) <= set(START_AFTER)
    assert {need for needs in START_AFTER.values() for need in needs} <= set(START_AFTER)
