"""Runs the steps of a start side by side, each as soon as the steps it needs are done."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orderstream.local.processes.child import StoppingError
from orderstream.local.processes.terminal import Terminal

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Step:
    """Something to do once. `action` gets a function that says what it is doing now."""

    name: str
    needs: tuple[str, ...]
    action: Callable[[Callable[[str], None]], None]


Outcome = tuple[Step, Exception | None]


def run(steps: Sequence[Step], terminal: Terminal, cancelled: threading.Event) -> None:
    """Return when all are done. Raises what the first failing step raised; StoppingError as soon as `cancelled` is set.

    A need that no step has counts as done (its part was given, not started). The threads are daemons: what is still
    under way when this raises never holds up the end of the process.
    """
    names = {step.name for step in steps}
    waiting = list(steps)
    done: set[str] = set()
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def work(step: Step) -> None:
        try:
            step.action(lambda text: terminal.note(step.name, text))
            outcomes.put((step, None))
        except Exception as error:  # noqa: BLE001 - the waiting thread raises it
            outcomes.put((step, error))

    while len(done) < len(steps):
        able = [step for step in waiting if done >= names.intersection(step.needs)]
        waiting = [step for step in waiting if step not in able]
        if not able and len(done) + len(waiting) == len(steps):
            raise RuntimeError(f"these steps need each other: {', '.join(step.name for step in waiting)}")
        for step in able:
            terminal.begin(step.name)
            threading.Thread(target=work, args=(step,), name=step.name, daemon=True).start()
        step, error = _next(outcomes, cancelled)
        if error is not None:
            raise error
        terminal.finish(step.name)
        done.add(step.name)


def _next(outcomes: "queue.SimpleQueue[Outcome]", cancelled: threading.Event) -> Outcome:
    while not cancelled.is_set():
        try:
            return outcomes.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
    raise StoppingError
