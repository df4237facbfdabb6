"""Asks one server or one group of processes again and again, in a thread of its own with one outstanding call."""

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from orderstream.local.processes.masking import masked

WATCHED_SECONDS = 2.0
UNWATCHED_SECONDS = 10.0
"""Time from the begin of one call to the begin of the next, while someone looks at the figures and otherwise."""
LOOK_SECONDS = 30.0
"""After a page or an API call has read the figures, someone counts as looking for this long."""
SILENT_SECONDS = 1.5
"""A call that takes longer counts as unanswered. The call itself may take longer to end."""
ERROR_MAX_CHARACTERS = 200

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Reading(Struct, Generic[T], frozen=True):
    """What a source knows: its last answer, and since when it has no answer. Times are those of `time.monotonic`."""

    value: T | None = None
    answered_at: float | None = None
    """When the last answer arrived."""
    asked_at: float | None = None
    """When the outstanding call began. None between two calls."""
    silent_since: float | None = None
    """The time of the last answer, or of the first call, if the last call failed. None after an answer."""
    error: str | None = None
    recovered_at: float | None = None
    """When the source answered again after a silence."""
    silence_seconds: float = 0.0
    """The length of the last silence."""

    def silent_from(self, now: float) -> float | None:
        """Return since when the source does not answer. None: it answers, or its call has just begun."""
        if self.silent_since is not None:
            is_starting = self.answered_at is None and now - self.silent_since < SILENT_SECONDS
            return None if is_starting else self.silent_since
        if self.asked_at is not None and now - self.asked_at > SILENT_SECONDS:
            return self.answered_at if self.answered_at is not None else self.asked_at
        return None

    def age(self, now: float) -> float | None:
        """Return the age of the last answer in seconds."""
        return None if self.answered_at is None else max(0.0, now - self.answered_at)


class Audience:
    """Knows whether someone looks at the figures."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = -LOOK_SECONDS - clock()
        self._sources: list[threading.Event] = []

    def wakes(self, event: threading.Event) -> None:
        """Set `event` when someone begins to look."""
        self._sources.append(event)

    def look(self) -> None:
        """Note that someone has just read the figures."""
        began = not self.is_watching
        self._looked_at = self._clock()
        if began:
            for event in self._sources:
                event.set()

    @property
    def is_watching(self) -> bool:
        """Whether someone has read the figures in the last LOOK_SECONDS."""
        return self._clock() - self._looked_at < LOOK_SECONDS


class Reader(Protocol[T_co]):
    """Asks once. `ask` may raise any error, and takes a few seconds at most. `close` is called by the same thread."""

    def ask(self) -> T_co:
        """Return an answer."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class Source(Generic[T]):
    """Calls a reader every 2 s while someone looks, every 10 s otherwise, and after a failure every 2 s.

    A call that hangs delays only this source. `reading` is replaced as a whole, so any thread may read it.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Reader[T]],
        audience: Audience,
        *,
        received: Callable[[T, float], None] = lambda _value, _at: None,
        clock: Callable[[], float] = time.monotonic,
        watched_seconds: float = WATCHED_SECONDS,
    ) -> None:
        self.name = name
        self.reading: Reading[T] = Reading()
        self._connect = connect
        self._audience = audience
        self._received = received
        self._clock = clock
        self._watched_seconds = watched_seconds
        self._stop = threading.Event()
        self._wake = threading.Event()
        audience.wakes(self._wake)
        self._thread = threading.Thread(target=self._run, name=f"flow {name}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. A call that hangs ends with the process, because the thread is a daemon."""
        self._stop.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, at most `seconds`."""
        self._thread.join(seconds)

    def _run(self) -> None:
        reader: Reader[T] | None = None
        while not self._stop.is_set():
            began = self._clock()
            self._wake.clear()
            self.reading = replace(self.reading, asked_at=began)
            try:
                if reader is None:
                    reader = self._connect()
                self._succeeded(reader.ask())
            except Exception as error:  # noqa: BLE001 - the overview shows it
                self._failed(error, began)
            self._wait(began)
        if reader is not None:
            reader.close()

    def _wait(self, began: float) -> None:
        """Wait for the next call. A watcher who comes meanwhile shortens the wait."""
        while not self._stop.is_set():
            quick = self._audience.is_watching or self.reading.silent_since is not None
            left = began + (self._watched_seconds if quick else UNWATCHED_SECONDS) - self._clock()
            if left <= 0:
                return
            self._wake.wait(left)
            self._wake.clear()

    def _succeeded(self, value: T) -> None:
        now, before = self._clock(), self.reading
        answered = replace(before, value=value, answered_at=now, asked_at=None, silent_since=None, error=None)
        # A call that hung and then succeeded also ends a silence that pages have shown.
        silent_from = before.silent_from(now)
        if silent_from is not None and before.answered_at is not None:
            answered = replace(answered, recovered_at=now, silence_seconds=now - silent_from)
        self.reading = answered
        self._received(value, now)

    def _failed(self, error: Exception, began: float) -> None:
        before = self.reading
        since = before.silent_since
        if since is None:
            since = before.answered_at if before.answered_at is not None else began
        text = masked(" ".join(str(error).split()) or type(error).__name__)[:ERROR_MAX_CHARACTERS]
        self.reading = replace(before, asked_at=None, silent_since=since, error=text)
