"""Measures the memory and the processor time of the local stack's processes, children included.

One pass over the processes of the machine finds all children. The share of a processor needs two looks, so the last
look at each process is kept.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import psutil
from msgspec import Struct

from orderstream.local.processes.pids import is_stopped, start_time
from orderstream.local.processes.start_order import CONSOLE, START_AFTER
from orderstream.local.processes.state import ChildRecord


class ProcessView(Struct, frozen=True, rename="camel"):
    """One process of the local stack.

    `memoryBytes` is its share of the memory (PSS, or RSS where the system does not tell), its children included. `cpu`
    is its use of processors since the last look, 1 for one whole processor; null at the first look.
    """

    name: str
    pid: int
    state: str
    since: datetime | None
    restarts: int
    memory_bytes: int | None
    cpu: float | None
    health_url: str | None
    can_be_signalled: bool


def is_supervised(name: str) -> bool:
    """Return whether `up` restarts this process, and the console may signal it: a server or a service, no console."""
    service, _, number = name.rpartition("-")
    base = service if number.isascii() and number.isdecimal() else name
    return base in START_AFTER and base != CONSOLE


class Usage:
    """The last look at each process. It forgets processes that have ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: dict[tuple[int, str], tuple[float, float]] = {}

    def of(self, records: Sequence[ChildRecord]) -> list[ProcessView]:
        """Return what these processes use now."""
        children = _children()
        now = self._clock()
        looks: dict[tuple[int, str], tuple[float, float]] = {}
        found = []
        for record in records:
            is_running = start_time(record.pid) == record.start_time
            memory, seconds, since = _measured(record.pid, children) if is_running else (None, None, None)
            key = record.pid, record.start_time
            cpu = None
            if seconds is not None:
                looks[key] = now, seconds
                before_at, before = self._looks.get(key, (now, seconds))
                cpu = max(0.0, seconds - before) / (now - before_at) if now > before_at else None
            state = "ended" if not is_running else "paused" if is_stopped(record.pid) else "running"
            found.append(
                ProcessView(
                    name=record.name,
                    pid=record.pid,
                    state=state,
                    since=since,
                    restarts=record.restarts,
                    memory_bytes=memory,
                    cpu=cpu,
                    health_url=record.health_url,
                    can_be_signalled=is_supervised(record.name),
                )
            )
        self._looks = looks
        return found


def _children() -> dict[int, list[int]]:
    """Return the pids of the children of each process of this machine."""
    found: dict[int, list[int]] = {}
    for process in psutil.process_iter(["ppid"]):
        found.setdefault(process.info["ppid"], []).append(process.pid)
    return found


def _tree(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, ()):
        yield from _tree(child, children)


def _measured(pid: int, children: dict[int, list[int]]) -> tuple[int | None, float | None, datetime | None]:
    """Return bytes of memory, seconds of processor time and the start of a process. None: it has ended meanwhile."""
    memory, seconds, since = 0, 0.0, None
    for number in _tree(pid, children):
        try:
            process = psutil.Process(number)
            with process.oneshot():
                times = process.cpu_times()
                seconds += times.user + times.system
                memory += _memory(process)
                if number == pid:
                    since = datetime.fromtimestamp(process.create_time(), UTC)
        except psutil.Error:
            if number == pid:
                return None, None, None
    return memory, seconds, since


def _memory(process: psutil.Process) -> int:
    """Return the bytes of memory of one process. Memory that processes share is divided among them, if possible."""
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.rss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
