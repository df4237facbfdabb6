"""Measures what the system used: CPU of each process, memory of the services, WAL and transactions of Postgres."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import psycopg
from msgspec import Struct

from orderstream.local.processes.state import ChildRecord
from orderstream.settings import SERVICES

_USED = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
       (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())
"""


class Usage(Struct, frozen=True):
    """Totals since the start of the system. Subtract an earlier one with `since`.

    `cpu_seconds` has the CPU of each process of the system, `machine_seconds` the CPU of all processes of the machine.
    """

    cpu_seconds: Mapping[str, float]
    machine_seconds: float
    wal_bytes: int
    transactions: int

    def since(self, before: "Usage") -> "Usage":
        """Return the difference to the earlier totals `before`."""
        return Usage(
            {name: used - before.cpu_seconds.get(name, 0.0) for name, used in self.cpu_seconds.items()},
            self.machine_seconds - before.machine_seconds,
            self.wal_bytes - before.wal_bytes,
            self.transactions - before.transactions,
        )


def usage(children: Sequence[ChildRecord], connection: psycopg.Connection) -> Usage:
    """Return the totals until now."""
    row = connection.execute(_USED).fetchone()
    assert row is not None
    machine = psutil.cpu_times()
    busy = machine.user + machine.nice + machine.system
    return Usage({child.name: _cpu_seconds(child.pid) for child in children}, busy, row[0], row[1])


def _cpu_seconds(pid: int) -> float:
    """Return the CPU of a process and its descendants, including children that have ended."""
    total = 0.0
    process = psutil.Process(pid)
    for member in (process, *process.children(recursive=True)):
        try:
            total += sum(member.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def services_memory_mib(children: Sequence[ChildRecord]) -> float | None:
    """Return the memory (PSS) of all processes of the five services together. None: not available on this system."""
    total = 0
    for child in children:
        if not child.name.startswith(SERVICES):
            continue
        try:
            rollup = Path(f"/proc/{child.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return None
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1_024
