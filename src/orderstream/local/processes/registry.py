"""The record of the running child processes, on disk, so that a later run can end what a killed run left behind.

A recorded process is identified by its pid and its start time. A later process that has the same pid is left alone.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from orderstream.local.processes.child import KILL_SECONDS, Child, StoppingError
from orderstream.local.processes.pids import signal_tree, start_time, wait_until
from orderstream.local.processes.state import RESTARTS_KEPT, ChildRecord, StateDir, StateRecord

_LEFTOVER_SECONDS = 5.0


class ProcessRegistry:
    """Every child of this process, and the only writer of the state record. Safe to use from several threads."""

    def __init__(self, state: StateDir, record: StateRecord) -> None:
        self._state = state
        self._record = record
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._starts: dict[str, tuple[int, tuple[float, ...]]] = {}
        self._closed = False
        state.write(record)

    @property
    def children(self) -> list[Child]:
        """The children that were started and not yet seen to end, in the order of their start."""
        with self._lock:
            return list(self._children.values())

    def update(self, change: Callable[[StateRecord], None]) -> None:
        """Change the record and write it. Ignores an OSError: children must be ended on a full disk too."""
        with self._lock:
            change(self._record)
            self._write_if_possible()

    def close(self) -> None:
        """Refuse all later starts. When this returns, a child that was starting is in the record."""
        with self._lock:
            self._closed = True

    def spawn(self, child: Child, start: Callable[[], ChildRecord]) -> None:
        """Start a child and write it to the record in one step.

        Raises StoppingError after `close`. Raises OSError if the record cannot be written. The child runs in that case
        and is among `children`.
        """
        with self._lock:
            if self._closed:
                raise StoppingError
            record = self._with_restarts(start())
            self._children[child.name] = child
            if self._record.run is not None:
                self._record.run.children.append(record)
            self._state.write(self._record)

    def _with_restarts(self, record: ChildRecord) -> ChildRecord:
        """Return the record with the number of earlier starts of this name, and the times of the last restarts."""
        starts, times = self._starts.get(record.name, (0, ()))
        times = (*times, time.time())[-RESTARTS_KEPT:] if starts else ()
        self._starts[record.name] = starts + 1, times
        return msgspec.structs.replace(record, restarts=starts, restarted_at=times)

    def forget(self, child: Child) -> None:
        """Remove a child that has ended."""
        with self._lock:
            if self._children.get(child.name) is child:
                del self._children[child.name]
            if self._record.run is not None:
                run = self._record.run
                run.children = [record for record in run.children if record.pid != child.pid]
            self._write_if_possible()

    def _write_if_possible(self) -> None:
        # At worst the file names children that have ended. Their start times distinguish them from other processes.
        with contextlib.suppress(OSError):
            self._state.write(self._record)


def end_leftovers(records: Sequence[ChildRecord]) -> list[str]:
    """End the processes that a killed run left behind, in their stop order, and return their names."""
    left = _still_running(records)
    for stop_order in sorted({record.stop_order for record in left}):
        _end_group([record for record in left if record.stop_order == stop_order])
    return [record.name for record in left]


def _end_group(records: Sequence[ChildRecord]) -> None:
    for record in records:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGCONT)
            os.kill(record.pid, record.stop_signal)
    if not wait_until(lambda: not _still_running(records), _LEFTOVER_SECONDS):
        for record in _still_running(records):
            signal_tree(record.pid, signal.SIGKILL)
        wait_until(lambda: not _still_running(records), KILL_SECONDS)


def _still_running(records: Sequence[ChildRecord]) -> list[ChildRecord]:
    return [record for record in records if start_time(record.pid) == record.start_time]
