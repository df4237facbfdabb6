"""Looks at processes and signals them by pid. Other modules hold the processes as `Child` objects or as records."""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.02


def start_time(pid: int) -> str | None:
    """Return when `pid` started, as text that no later process with this pid has. None: it ended, or is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else f"{_boot_id()}/{fields[18]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # noqa: PLC0415 - only systems without /proc need it here

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.Error:
        return None


def is_stopped(pid: int) -> bool:
    """Tell whether a signal (SIGSTOP) has stopped `pid`: the process exists and does nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return False
    import psutil  # noqa: PLC0415 - only systems without /proc need it here

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Signal `pid` and all its descendants. A process group is not enough: PostgreSQL's processes leave it."""
    import psutil  # noqa: PLC0415 - slow to load, and rarely needed

    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll `condition` until it is true, for `seconds` at most. Return whether it became true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
