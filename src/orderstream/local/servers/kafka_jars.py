"""Fetches the jars of Apache Kafka that the lock file names, and checks the sha256 of each.

A jar that is already there with the right sha256 is not fetched again, so that a later start needs no network. The
library jgo downloads the jars. This module adds two things: it checks the lock, and a jar appears in its folder
completely or not at all.
"""

import contextlib
import fcntl
import hashlib
import os
import queue
import shutil
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from orderstream.local.processes.child import StoppingError

_LOCK_FILE = "kafka.lock.toml"
_THREADS = 8
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 30
_POLL_SECONDS = 0.1
# The certificates of the system. `requests` would use only its own bundle.
_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class FetchError(Exception):
    """A jar could not be fetched, or its sha256 is not that of the lock."""


class Jar(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of the lock file."""

    group_id: str
    artifact_id: str
    version: str
    packaging: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.group_id}:{self.artifact_id}:{self.version}"

    @property
    def file_name(self) -> str:
        """Its name in the folder of the jars, which has no subfolders."""
        return f"{self.group_id}.{self.artifact_id}-{self.version}.{self.packaging}"


def locked() -> list[Jar]:
    """Return the entries of the lock file."""
    text = resources.files("orderstream.local.servers").joinpath(_LOCK_FILE).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["dependencies"], list[Jar])


def paths(folder: Path) -> list[Path]:
    """Return the paths that the jars of the lock have in `folder`."""
    return [folder / jar.file_name for jar in locked()]


def install(folder: Path, report: Callable[[str], None], cancelled: threading.Event) -> list[Path]:
    """Fetch the jars that are missing or damaged in `folder`, and return the paths of all jars.

    Raises FetchError. Raises StoppingError once `cancelled` is set, and keeps the jars that have arrived.
    """
    jars = locked()
    if not _missing(folder, jars):
        return paths(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder, report, cancelled):
        if missing := _missing(folder, jars):
            _fetch_all(folder, missing, len(jars), report, cancelled)
    return paths(folder)


def _missing(folder: Path, jars: Sequence[Jar]) -> list[Jar]:
    return [jar for jar in jars if _sha256(folder / jar.file_name) != jar.sha256]


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _only_one(folder: Path, report: Callable[[str], None], cancelled: threading.Event) -> Iterator[None]:
    """Let one process fetch at a time. The others wait, and then find all jars in the folder."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report("another process is fetching Kafka; waiting for it")
                if cancelled.wait(_POLL_SECONDS):
                    raise StoppingError from None
        for old in folder.glob(".staging-*"):
            shutil.rmtree(old, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _fetch_all(
    folder: Path, jars: Sequence[Jar], total: int, report: Callable[[str], None], cancelled: threading.Event
) -> None:
    """Fetch in parallel, in daemon threads, so that a stop does not wait for the network."""
    _trust_the_system()
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder))
    context = _context(staging)
    todo: queue.SimpleQueue[Jar] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    for jar in jars:
        todo.put(jar)

    def work() -> None:
        while not cancelled.is_set():
            try:
                _fetch(context, todo.get_nowait(), folder)
                outcomes.put(None)
            except queue.Empty:
                return
            except Exception as error:  # noqa: BLE001 - the waiting thread raises it
                outcomes.put(error)

    try:
        for _ in range(_THREADS):
            threading.Thread(target=work, name="fetch", daemon=True).start()
        done = total - len(jars)
        while done < total:
            report(f"fetching Kafka: {done} of {total} jars")
            if cancelled.is_set():
                raise StoppingError
            with contextlib.suppress(queue.Empty):
                if error := outcomes.get(timeout=_POLL_SECONDS):
                    raise error
                done += 1
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _context(staging: Path) -> Any:
    from jgo.maven import MavenContext  # noqa: PLC0415 - slow to load, and needed only once per checkout

    return MavenContext(repo_cache=staging, local_repos=[], timeout=_TIMEOUT_SECONDS)


def _fetch(context: Any, jar: Jar, folder: Path) -> None:
    artifact = context.project(jar.group_id, jar.artifact_id).at_version(jar.version).artifact("", jar.packaging)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            path = Path(artifact.resolve())
        except (OSError, RuntimeError) as error:
            if attempt == _ATTEMPTS:
                raise FetchError(f"cannot fetch {jar}: {error}") from error
            continue
        if _sha256(path) == jar.sha256:
            path.replace(folder / jar.file_name)
            return
        path.unlink()
    raise FetchError(f"the file fetched as {jar} does not have the sha256 of the lock; it was not used")


def _trust_the_system() -> None:
    """Use the certificates of the system, unless REQUESTS_CA_BUNDLE is set. A proxy may have its own certificate."""
    if not os.environ.get("REQUESTS_CA_BUNDLE"):
        for bundle in _CA_BUNDLES:
            if Path(bundle).is_file():
                os.environ["REQUESTS_CA_BUNDLE"] = bundle
                return
