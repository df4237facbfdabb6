"""The log files of the local processes: their last lines, and the limits on their number and size."""

import os
from pathlib import Path

from orderstream.local.processes.files import open_private

LOG_LIMIT_BYTES = 16 * 1024 * 1024
_TAIL_BYTES = 16 * 1024


def last_lines(log: Path, count: int, begin: int = 0) -> list[str]:
    """Return the last `count` lines of a log, from its last 16 KiB and not from before the offset `begin`.

    Without a log the list is empty.
    """
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL_BYTES, begin if begin <= end else 0))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def rotate(log: Path) -> None:
    """Rename the log of the last run to `.1`, over an older one."""
    if log.exists() and log.stat().st_size:
        log.replace(log.with_name(log.name + ".1"))


def limit_size(log: Path) -> None:
    """Copy a log that is over the limit to `.1`, and empty it. The process appends, so it continues at the start."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        with open_private(log.with_name(log.name + ".1"), "wb") as earlier:
            earlier.write(log.read_bytes())
        os.truncate(log, 0)
