"""A recorder in a process of its own, which kills itself with SIGKILL at the point that its second argument names.

The first argument is the group. The second one is `nowhere`, `before-publishing`, `before-offsets`, `slowly` or `hung`.
With `slowly` the process holds its first batch until an advisory lock is free. With `hung` it fails with an error that
no retry helps while a thread of a pool hangs.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from confluent_kafka import Consumer
from psycopg.errors import UndefinedTable

from orderstream.kafka import client
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.process.run import run_process
from orderstream.settings import load
from orderstream.worker import runner, subscription
from orderstream.worker.handler import nothing
from tests.integration.worker.recorder import Recorder

GATE = 4711
"""Advisory lock that `slowly` waits for."""


def die(*_arguments: object, **_named: object) -> NoReturn:
    """Kill this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class _DiesBeforeOffsets:
    """A consumer whose first commit kills the process."""

    commit = staticmethod(die)

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def _wait_at_gate(tx: Connection, _batch: Sequence[Received]) -> None:
    # The test holds the gate for as long as it needs.
    tx.execute("SET LOCAL lock_timeout = 0")
    tx.execute("SET LOCAL statement_timeout = 0")
    tx.execute("SELECT pg_advisory_xact_lock(%s)", (GATE,))


def _leave_a_thread(_tx: Connection, _batch: Sequence[Received]) -> None:
    ThreadPoolExecutor(1).submit(threading.Event().wait)
    raise UndefinedTable('relation "decisions" does not exist')


def main(group: str, point: str) -> int:
    """Run until the process is killed or gets a stop signal."""
    settings = load()
    handler = Recorder(group, after_commit=die if point == "before-publishing" else nothing)
    if point == "slowly":
        handler = Recorder(group, fault=_wait_at_gate)
    if point == "hung":
        handler = Recorder(group, fault=_leave_a_thread)
    if point == "before-offsets":
        subscription.__dict__["consumer"] = lambda *given: _DiesBeforeOffsets(client.consumer(*given))
    return run_process(group, settings, lambda tracer, stop: runner.Runner(handler, settings, tracer, stop))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
