"""The order in which the local processes start and stop.

START_AFTER is the start order: each step begins as soon as the steps that it names are done, so that independent steps
run side by side. KILL_FIRST and the STOP_ numbers are the stop order.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orderstream.local.processes.child import StoppingError
from orderstream.local.processes.progress import Terminal

SCHEMA, TOPICS = "schema", "topics"
PAYMENT_SIMULATOR = "payment-simulator"
"""It runs only if PAYMENT_PROVIDER is simulator."""
CONSOLE = "console"
"""Orders do not need it: it may be down."""
START_AFTER: Mapping[str, tuple[str, ...]] = {
    "postgres": (),
    "valkey": (),
    "kafka": (),
    SCHEMA: ("postgres",),
    TOPICS: ("kafka",),
    # The gateway serves without Kafka and without Valkey. Without topics, the other services would fail and restart.
    "api-gateway": (SCHEMA,),
    "outbox-relay": (SCHEMA, TOPICS),
    PAYMENT_SIMULATOR: (),
    "payment-worker": (SCHEMA, TOPICS, PAYMENT_SIMULATOR),
    "inventory-worker": (SCHEMA, TOPICS),
    "order-service": (SCHEMA, TOPICS),
    CONSOLE: (SCHEMA,),
}
KILL_FIRST, STOP_GATEWAY, STOP_WORKERS, STOP_SERVERS = -1, 0, 1, 2
"""The stop order. A process with KILL_FIRST holds no data and is killed before the others are asked to stop."""
STOPPING = {
    STOP_GATEWAY: "waiting for open requests",
    STOP_WORKERS: "waiting for the work in hand",
    STOP_SERVERS: "waiting until all data is on disk",
}
"""What `up` waits for while it stops the processes of one stop order."""
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class StartStep:
    """One step of a start. `action` is called once, with a function that reports what the step is doing."""

    name: str
    needs: tuple[str, ...]
    action: Callable[[Callable[[str], None]], None]


Outcome = tuple[StartStep, Exception | None]


def run(steps: Sequence[StartStep], terminal: Terminal, cancelled: threading.Event) -> None:
    """Run each step as soon as the steps it needs are done, and return when all are done.

    A need that is not among `steps` counts as done: such a server has a given URL and is not started. Raises what the
    first failed step raised, and StoppingError as soon as `cancelled` is set. The threads are daemons: a step that is
    still running when this raises does not delay the end of the process.
    """
    names = {step.name for step in steps}
    waiting = list(steps)
    done: set[str] = set()
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def work(step: StartStep) -> None:
        try:
            step.action(lambda text: terminal.note(step.name, text))
            outcomes.put((step, None))
        except Exception as error:  # noqa: BLE001 - the waiting thread raises it
            outcomes.put((step, error))

    while len(done) < len(steps):
        ready = [step for step in waiting if done >= names.intersection(step.needs)]
        waiting = [step for step in waiting if step not in ready]
        if not ready and len(done) + len(waiting) == len(steps):
            raise RuntimeError(f"these steps need each other: {', '.join(step.name for step in waiting)}")
        for step in ready:
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
