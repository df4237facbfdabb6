"""Runs the audit in the background, one at a time in all consoles, and records it as an action.

The action's row is the lease: it is renewed while the audit runs, and it holds the progress and the result. So every
console shows the same, and any console can cancel the audit. The audit reads PostgreSQL in a thread of its own.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from orderstream.audit.check import Breach, Progress, StoppedError
from orderstream.audit.whole import audit_all
from orderstream.console.actions.log import Action, LeaseLostError, begin_exclusive, finish, renew
from orderstream.console.context import Console
from orderstream.telemetry import logs

KIND = "promises.audit"
GRACE_DEFAULT_SECONDS = 60.0
GRACE_MAX_SECONDS = 86_400.0
BREACHES_KEPT = 20
"""Breaches of one check that the result keeps. The result has the number of those that the audit found, 100 at most."""
RENEW_SECONDS = 1.0
_DETAIL_MAX_CHARACTERS = 500

log = logs.get()


class Audits:
    """The audit of this console. At most one runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stopping = threading.Event()
        self._threads: set[threading.Thread] = set()

    def start(self, actor: str, reason: str, grace_seconds: float) -> int:
        """Start an audit and return the id of its action. Raises AlreadyRunningError and psycopg.Error."""
        ledger_url = self.ledger_url
        parameters = {"graceSeconds": grace_seconds, "ledger": ledger_url}
        with self._console.stores.acting() as connection:
            action_id = begin_exclusive(connection, Action(KIND, "promises", actor, reason, parameters))
        thread = threading.Thread(
            target=self._run, args=(action_id, ledger_url, grace_seconds), name="audit", daemon=True
        )
        self._threads.add(thread)
        thread.start()
        return action_id

    @property
    def ledger_url(self) -> str | None:
        """The address of the payment simulator, if the local stack of this console runs it."""
        return None if self._console.local is None else self._console.local.url("PAYMENT_SIMULATOR_URL")

    def stop(self) -> None:
        """Ask the running audit to end, and wait for a moment. A statement that runs is not interrupted."""
        self._stopping.set()
        for thread in list(self._threads):
            thread.join(1)

    def _run(self, action_id: int, ledger_url: str | None, grace_seconds: float) -> None:
        settings = self._console.settings
        if settings.console_postgres_url is not None:
            settings = settings.model_copy(update={"postgres_url": settings.console_postgres_url})
        report = _Report(self._console, action_id, self._stopping)
        try:
            with report.renewing():
                state, result = _outcome(lambda: audit_all(settings, ledger_url, grace_seconds, report), report)
            with self._console.stores.acting() as connection:
                finish(connection, action_id, state, result)
        except Exception as error:  # noqa: BLE001 - the thread must not end without a line in the log
            log.error("audit_not_recorded", action=action_id, error=str(error)[:500])
        finally:
            self._threads.discard(threading.current_thread())


class _Report:
    """The progress of one audit. A thread renews the lease with it, and notes when the audit is to stop.

    One statement of the audit may take longer than the lease. So the audit itself does not renew it.
    """

    def __init__(self, console: Console, action_id: int, stopping: threading.Event) -> None:
        self._console = console
        self._action_id = action_id
        self._stopping = stopping
        self._ended = threading.Event()
        self._progress: Progress | None = None
        self.why_stopped: str | None = None

    def __call__(self, progress: Progress) -> None:
        """Note the progress. Raises StoppedError if the audit is to stop."""
        self._progress = progress
        if self._stopping.is_set():
            self.why_stopped = "the console was stopped"
        if self.why_stopped is not None:
            raise StoppedError

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew the lease until the block ends."""
        thread = threading.Thread(target=self._renew, name="audit lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def end(self) -> None:
        """Look a last time whether the audit was cancelled. Raises StoppedError if it was."""
        self._renew_once()
        if self.why_stopped is not None:
            raise StoppedError

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            self._renew_once()

    def _renew_once(self) -> None:
        try:
            with self._console.stores.acting() as connection:
                cancelled_by = renew(connection, self._action_id, self._shown())
        except LeaseLostError:
            self.why_stopped = "the console did not report in time"
            return
        except psycopg.Error as error:
            log.warning("audit_progress_not_recorded", action=self._action_id, error=str(error)[:500])
            return
        if cancelled_by is not None:
            self.why_stopped = f"cancelled by {cancelled_by}"

    def _shown(self) -> dict[str, Any] | None:
        progress = self._progress
        if progress is None:
            return None
        return {
            "checksDone": progress.checks_done,
            "checks": progress.checks,
            "check": progress.check,
            "piecesDone": progress.pieces_done,
            "pieces": progress.pieces,
            "text": progress.text,
        }


def _outcome(audit: Callable[[], Mapping[str, list[Breach]]], report: _Report) -> tuple[str, dict[str, Any]]:
    """Run the audit. Return the state of its action and its result."""
    # The client of the ledger is slow to load.
    from orderstream.audit.provider_ledger import LedgerError  # noqa: PLC0415

    began = time.monotonic()
    try:
        found = audit()
        report.end()
    except StoppedError:
        return "cancelled", {"error": report.why_stopped}
    except (psycopg.Error, LedgerError) as error:
        return "failed", {"error": " ".join(str(error).split())[:_DETAIL_MAX_CHARACTERS]}
    checks = {
        name: {
            "breaches": len(breaches),
            "first": [
                {"subject": breach.subject[:200], "detail": breach.detail[:_DETAIL_MAX_CHARACTERS]}
                for breach in breaches[:BREACHES_KEPT]
            ],
        }
        for name, breaches in found.items()
    }
    broken = sum(1 for breaches in found.values() if breaches)
    return "done", {"broken": broken, "seconds": round(time.monotonic() - began, 1), "checks": checks}


@asynccontextmanager
async def running(console: Console) -> AsyncIterator[None]:
    """Stop the audit of this console when the console ends."""
    try:
        yield
    finally:
        await asyncio.to_thread(console.part(Audits).stop)
