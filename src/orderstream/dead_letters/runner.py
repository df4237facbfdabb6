"""Runs jobs: redrives or discards the queued letters at the rate of their job, and survives its own death (P9).

Each letter is marked "sending" before it is given to Kafka, and "sent" after the acknowledgement. If the runner dies in
between, the next runner sends the letter again, and the history counts both. So no letter is lost, and none is redriven
twice unnoticed.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from uuid import uuid4

import psycopg
from confluent_kafka import KafkaException
from msgspec import Struct

from orderstream.dead_letters.bytes_reader import LetterBytes, Wanted
from orderstream.dead_letters.jobs import SQL
from orderstream.dead_letters.redrive import redriven
from orderstream.kafka.errors import KafkaRefusedError, PublishError
from orderstream.kafka.publisher import Publisher
from orderstream.postgres.session import Session
from orderstream.settings import Settings
from orderstream.telemetry import logs

BATCH_LETTERS = 500
BATCH_BYTES = 4 << 20
"""Bytes of a batch. One letter may have more."""
LEASE_SECONDS = 15.0
RENEW_SECONDS = 3.0
LOOK_SECONDS = 3.0
"""Between two looks for a job that another process has created or has left."""
PAUSE_SECONDS = 2.0
"""Before a paused job tries again."""
REASON_MAX_CHARACTERS = 500

log = logs.get()

_WAITING_LATER = (KafkaException, KafkaRefusedError, PublishError)


class _LostError(Exception):
    """Another runner has the job, because this one did not renew its lease in time."""


class _Claimed(Struct):
    """A job that this runner works on. `after` is the id of the last action that it has finished."""

    id: int
    kind: str
    rate: int
    after: int = 0
    next_at: float = 0.0


class JobRunner:
    """Works on unfinished jobs, one at a time, in one thread. `wake` and `stop` may be called by any thread."""

    def __init__(self, settings: Settings, postgres_url: str, only_job: int | None = None) -> None:
        """`only_job` limits the runner to one job."""
        self._settings = settings
        self._url = postgres_url
        self._only_job = only_job
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._session = Session(postgres_url, "dead-letter-jobs")
        self._bytes = LetterBytes(settings)
        self._publisher: Publisher | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()

    def wake(self) -> None:
        """Look for a job at once, for example because one was created."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` after the letters that are being sent. The job stays, and another runner goes on with it."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Work on jobs until `stop`. After an error of PostgreSQL, go on after PAUSE_SECONDS."""
        try:
            while not self._stop.is_set():
                try:
                    self.run_one()
                except psycopg.Error as error:
                    log.warning("dead_letter_jobs_failed", error=f"{type(error).__name__}: {error}"[:500])
                    self._stop.wait(PAUSE_SECONDS)
        finally:
            self.close()

    def run_one(self) -> bool:
        """Work on one job until it is finished, and return True. Without a job, wait for one and return False.

        Raises psycopg.Error.
        """
        with self._session.use() as connection:
            values = {"runner": self._name, "lease_seconds": LEASE_SECONDS, "job_id": self._only_job}
            row = connection.execute(SQL["claim_job"], values).fetchone()
        if row is None:
            self._wake.wait(LOOK_SECONDS if self._only_job is None else 0.5)
            self._wake.clear()
            return False
        claimed = _Claimed(*row)
        log.info("dead_letter_job_claimed", job=claimed.id, kind=claimed.kind)
        with _Heartbeat(self._url, self._name, claimed.id):
            try:
                while not self._stop.is_set() and self._step(claimed):
                    pass
            except _LostError:
                log.warning("dead_letter_job_lost", job=claimed.id)
        with self._session.use() as connection:
            connection.execute(SQL["release_job"], {"job_id": claimed.id, "runner": self._name})
        self._bytes.close()
        self._publisher = None
        return True

    def close(self) -> None:
        """Close the connections to Kafka and PostgreSQL."""
        self._bytes.close()
        self._publisher = None
        self._session.close()

    def _step(self, job: _Claimed) -> bool:
        """Work on the next batch, and return whether the job goes on. Pauses the job while Kafka does not answer."""
        wanted, cancelled = self._next_letters(job)
        if not wanted:
            self._finish(job, cancelled=cancelled)
            return False
        try:
            if job.kind == "redrive":
                self._redrive(job, wanted)
            else:
                self._settle(job, [(letter.action_id, "discarded", None) for letter in wanted])
        except _WAITING_LATER as error:
            self._pause(job, error)
            return True
        self._keep_rate(job, len(wanted))
        return True

    def _next_letters(self, job: _Claimed) -> tuple[list[Wanted], bool]:
        """Return the next batch, and whether the job was cancelled. Letters in doubt come first, also after a cancel.

        Raises _LostError if another runner has the job.
        """
        limit = max(1, min(BATCH_LETTERS, job.rate // 2))
        with self._session.use() as connection, connection.transaction():
            held = connection.execute(SQL["hold_job"], self._mine(job)).fetchone()
            if held is None:
                raise _LostError
            values = {"job_id": job.id, "limit": limit, "after": job.after}
            rows = connection.execute(SQL["letters_in_doubt"], values).fetchall()
            if not rows and not held[0]:
                rows = connection.execute(SQL["letters_queued"], values).fetchall()
        return _up_to_bytes([Wanted(*row) for row in rows]), bool(held[0])

    def _redrive(self, job: _Claimed, wanted: Sequence[Wanted]) -> None:
        """Publish letters into their source topics. Raises KafkaException and PublishError if Kafka does not answer."""
        results: list[tuple[int, str, str | None]] = []
        records, sent = [], []
        for letter, found in self._bytes.read(wanted):
            if found is None:
                results.append((letter.action_id, "gone", "Kafka no longer has this letter"))
                continue
            try:
                records.append(redriven(found, job.id))
                sent.append(letter.action_id)
            except ValueError as error:
                results.append((letter.action_id, "refused", str(error)))
        # Stored before the others are in doubt: if this runner dies, the next one goes on behind the letters in doubt.
        self._settle(job, results)
        results = []
        self._begin_sending(job, sent)
        try:
            if self._publisher is None:
                self._publisher = Publisher(self._settings, "dead-letter-jobs")
            self._publisher.publish(records)
        except PublishError as error:
            unknown = range(len(sent)) if error.unacknowledged is None else error.unacknowledged
            refused = {index: reason for index, reason in error.refused.items() if index not in unknown}
            results += [(sent[index], "refused", reason) for index, reason in refused.items()]
            left = {*unknown, *refused}
            results += [(action_id, "sent", None) for index, action_id in enumerate(sent) if index not in left]
            self._settle(job, results)
            if unknown:
                raise
            return
        self._settle(job, results + [(action_id, "sent", None) for action_id in sent])

    def _begin_sending(self, job: _Claimed, action_ids: Sequence[int]) -> None:
        with self._session.use() as connection, connection.transaction():
            if connection.execute(SQL["hold_job"], self._mine(job)).fetchone() is None:
                raise _LostError
            connection.execute(SQL["begin_sending"], {"ids": list(action_ids)})

    def _settle(self, job: _Claimed, results: Sequence[tuple[int, str, str | None]]) -> None:
        """Store results. Also a runner that has lost its job stores what Kafka has acknowledged to it."""
        if not results:
            return
        values = {
            "job_id": job.id,
            "ids": [action_id for action_id, _, _ in results],
            "states": [state for _, state, _ in results],
            "details": [detail and detail[:REASON_MAX_CHARACTERS] for _, _, detail in results],
        }
        with self._session.use() as connection, connection.transaction():
            connection.execute(SQL["lock_job"], values)
            connection.execute(SQL["finish_letters"], values)
        job.after = max(job.after, *(action_id for action_id, _, _ in results))

    def _pause(self, job: _Claimed, error: Exception) -> None:
        self._bytes.close()
        problem = f"Kafka does not answer: {str(error).strip()[:REASON_MAX_CHARACTERS]}"
        log.warning("dead_letter_job_paused", job=job.id, problem=problem)
        with self._session.use() as connection:
            connection.execute(SQL["pause_job"], self._mine(job) | {"problem": problem})
        self._stop.wait(PAUSE_SECONDS)

    def _finish(self, job: _Claimed, *, cancelled: bool) -> None:
        """End a job. The letters that a cancelled job has not begun stay as they are."""
        state = "done"
        with self._session.use() as connection:
            while cancelled and connection.execute(SQL["cancel_queued"], {"job_id": job.id}).rowcount:
                state = "cancelled"
            connection.execute(SQL["finish_job"], self._mine(job) | {"state": state})
        log.info("dead_letter_job_finished", job=job.id, state=state)

    def _keep_rate(self, job: _Claimed, letters: int) -> None:
        """Wait until the next batch may begin."""
        now = time.monotonic()
        job.next_at = max(job.next_at or now, now - 1.0) + letters / job.rate
        self._stop.wait(max(0.0, job.next_at - now))

    def _mine(self, job: _Claimed) -> dict[str, object]:
        return {"job_id": job.id, "runner": self._name}


class _Heartbeat:
    """Renews the lease of a job in a thread, so that a long wait for Kafka does not lose the job."""

    def __init__(self, postgres_url: str, runner: str, job_id: int) -> None:
        self._session = Session(postgres_url, "dead-letter-lease")
        self._values = {"job_id": job_id, "runner": runner, "lease_seconds": LEASE_SECONDS}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease of job {job_id}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            try:
                with self._session.use() as connection:
                    connection.execute(SQL["renew_lease"], self._values)
            except psycopg.Error as error:
                log.warning("dead_letter_lease_not_renewed", error=f"{type(error).__name__}: {error}"[:500])
        self._session.close()


def _up_to_bytes(letters: Sequence[Wanted]) -> list[Wanted]:
    """Return the first letters whose bytes fit into a batch, at least one."""
    total = 0
    fitting: list[Wanted] = []
    for letter in letters:
        total += letter.size or 0
        if fitting and total > BATCH_BYTES:
            break
        fitting.append(letter)
    return fitting
