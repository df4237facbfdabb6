"""Measures what a system used: CPU and memory of each process, WAL, transactions and fsyncs of Postgres."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import psycopg
from msgspec import Struct

from orderstream.settings import SERVICES

_USED = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
       (SELECT sum(xact_commit)::bigint FROM pg_stat_database),
       (SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io)
"""


class Usage(Struct, frozen=True):
    """Totals since the start of the system. Subtract an earlier one with `since`.

    `cpu_seconds` has the CPU of each process of the system, `machine_seconds` the CPU of all processes of the machine.
    """

    cpu_seconds: Mapping[str, float]
    machine_seconds: float
    wal_bytes: int
    transactions: int
    fsyncs: int = 0

    def since(self, before: "Usage") -> "Usage":
        """Return the difference to the earlier totals `before`."""
        return Usage(
            {name: used - before.cpu_seconds.get(name, 0.0) for name, used in self.cpu_seconds.items()},
            self.machine_seconds - before.machine_seconds,
            self.wal_bytes - before.wal_bytes,
            self.transactions - before.transactions,
            self.fsyncs - before.fsyncs,
        )


def usage(pids: Mapping[str, int], connection: psycopg.Connection) -> Usage:
    """Return the totals until now of the processes `pids` and their descendants."""
    row = connection.execute(_USED).fetchone()
    assert row is not None
    return Usage(cpu_seconds(pids), machine_seconds(), *row)


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU of each process and its descendants, including children that have ended."""
    totals = {}
    for name, pid in pids.items():
        totals[name] = 0.0
        for member in _members(pid):
            try:
                totals[name] += sum(member.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
    return totals


def machine_seconds() -> float:
    """Return the CPU that all processes of the machine used until now."""
    machine = psutil.cpu_times()
    return machine.user + machine.nice + machine.system


def memory_mib(pids: Mapping[str, int]) -> dict[str, float] | None:
    """Return the memory (PSS) of each process and its descendants. None: not available on this system."""
    totals = dict.fromkeys(pids, 0.0)
    for name, pid in pids.items():
        for member in _living_members(pid):
            try:
                rollup = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="ascii")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            except OSError:
                return None
            totals[name] += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1_024
    return totals


def services_memory_mib(pids: Mapping[str, int]) -> float | None:
    """Return the memory (PSS) of all processes of the five services together. None: not available on this system."""
    found = memory_mib({name: pid for name, pid in pids.items() if name.startswith(SERVICES)})
    return None if found is None else sum(found.values())


def _living_members(pid: int) -> list[psutil.Process]:
    """Return the process and its descendants. Return none if it has ended, as after a fault."""
    try:
        return list(_members(pid))
    except psutil.NoSuchProcess:
        return []


def _members(pid: int) -> Iterator[psutil.Process]:
    process = psutil.Process(pid)
    yield process
    yield from process.children(recursive=True)
