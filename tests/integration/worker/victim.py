"""A recorder in a process of its own, which kills itself (SIGKILL) at the point that its arguments name.

Arguments: group, and one of `nowhere`, `before-publishing`, `before-offsets`, or `slowly`, which holds its first batch
until an advisory lock is free.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from confluent_kafka import Consumer

from orderstream.kafka import client
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.settings import load
from orderstream.worker import runner
from orderstream.worker.handler import nothing
from orderstream.worker.process import run_process
from tests.integration.worker.recorder import Recorder

GATE = 4711
"""Advisory lock that `slowly` waits for."""


def die(*_arguments: object, **_named: object) -> NoReturn:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class _DiesBeforeOffsets:
    """A consumer whose first commit is the end."""

    commit = staticmethod(die)

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def _wait_at_gate(tx: Connection, _batch: Sequence[Received]) -> None:
    tx.execute("SELECT pg_advisory_xact_lock(%s)", (GATE,))


def main(group: str, point: str) -> int:
    """Run until killed or told to stop."""
    settings = load()
    handler = Recorder(group, after_commit=die if point == "before-publishing" else nothing)
    if point == "slowly":
        handler = Recorder(group, fault=_wait_at_gate)
    if point == "before-offsets":
        runner.__dict__["consumer"] = lambda settings, group: _DiesBeforeOffsets(client.consumer(settings, group))
    return run_process(group, settings, lambda tracer, stop: runner.Runner(handler, settings, tracer, stop))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
