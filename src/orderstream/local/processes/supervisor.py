"""Keeps the started children alive: one that dies is restarted, one that keeps dying ends the stack, and all are
stopped in the order in which they depend on each other."""

import collections
import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence

from orderstream.local.processes.child import (
    Child,
    ChildError,
    ProcessRegistry,
    StoppingError,
    bound,
    how_it_ended,
    signal_family,
    stopped,
)
from orderstream.local.processes.service import STOP_LEARNING, InstallContext, Service, await_ready, problem_at
from orderstream.local.processes.signals import Stop
from orderstream.local.processes.state import StateDir
from orderstream.local.processes.terminal import Terminal

_WATCH_SECONDS = 0.2
LIVE_EVERY_SECONDS = 5.0
LIVE_LIMIT_SECONDS = 30.0
"""A process that is stopped, or whose /livez fails, for longer than this is killed and started again."""
_LOG_CHECK_SECONDS = 10.0
_STILL_SECONDS = 3.0
_RESTART_WINDOW_SECONDS = 60.0
# A rest, so that what a dead process held (a port, shared memory) is free again. It doubles with each death of the last
# minute: a part that cannot start for some seconds must not use up all its restarts within them.
_RESTART_PAUSE_FIRST_SECONDS = 0.3
_RESTART_PAUSE_MAX_SECONDS = 5.0
_WAITS = {
    0: "waiting for requests under way",
    1: "waiting for the work in hand",
    2: "waiting until all is on disk",
}


def _problem_with_life(child: Child) -> str | None:
    """Say why this process does not live although it exists, or return None. A store has no /livez."""
    if stopped(child.pid):
        return "stopped by a signal"
    url = child.command.health_url
    problem = problem_at(url.replace("/readyz", "/livez")) if url else None
    return problem and f"/livez: {problem}"


class Silence:
    """Since when each child has given no sign of life."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, tuple[int, float]] = {}

    def forget(self, name: str) -> None:
        """Begin again: it is starting, or gone."""
        self._since.pop(name, None)

    def longer_than(self, name: str, pid: int, problem: str | None, limit_seconds: float) -> float:
        """Note what was seen now. Return how long process `pid` has been silent if that exceeds the limit, else 0."""
        if problem is None:
            self.forget(name)
            return 0.0
        known, since = self._since.get(name, (pid, self._clock()))
        if known != pid:
            since = self._clock()
        self._since[name] = (pid, since)
        seconds = self._clock() - since
        return seconds if seconds > limit_seconds else 0.0


class GaveUpError(Exception):
    """A child died more often than it may."""


class Supervisor:
    """Starts, restarts and stops children. `bring_up` is called from several threads, the rest from the main one."""

    def __init__(
        self, state: StateDir, registry: ProcessRegistry, terminal: Terminal, stop: Stop, restarts_per_minute: int
    ) -> None:
        self._state = state
        self._registry = registry
        self._terminal = terminal
        self._stop = stop
        self._restarts_per_minute = restarts_per_minute
        self._services: dict[str, Service] = {}
        self._deaths: dict[str, collections.deque[float]] = collections.defaultdict(collections.deque)
        self._starting: set[str] = set()
        self._silence = Silence(time.monotonic)
        self._failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def bring_up(self, service: Service, report: Callable[[str], None]) -> None:
        """Install, start and wait until it serves; what dies on the way, perhaps of lost files, begins anew.

        Raises GaveUpError when it dies too often, ChildError when it lives but never serves, StoppingError.
        """
        self._services[service.name] = service
        self._starting.add(service.name)
        context = InstallContext(self._state, self._registry, report, self._stop.requested)
        child = Child(service.name, self._state.log(service.name), self._registry)
        while True:
            service.install(context)
            report("starting")
            child.start(service.command())
            if await_ready(service, child, self._stop.requested):
                break
            self._rest(self._count_death(child))
        self._starting.discard(service.name)

    def in_background(self, name: str, work: Callable[[InstallContext], None]) -> None:
        """Do something that nobody waits for; when it fails, that is all."""
        context = InstallContext(self._state, self._registry, lambda _: None, self._stop.requested)

        def run() -> None:
            with contextlib.suppress(ChildError, StoppingError, OSError):
                work(context)

        threading.Thread(target=run, name=name, daemon=True).start()

    def watch(self) -> None:
        """Restart what dies until a stop is asked for. Raises GaveUpError, or what a restart raised."""
        checked = asked = time.monotonic()
        asking: threading.Thread | None = None
        while not self._stop.requested.wait(_WATCH_SECONDS):
            if not self._failures.empty():
                raise self._failures.get()
            for child in self._registry.children:
                watched = child.name in self._services and child.name not in self._starting
                if watched and not child.alive():
                    self._restart(child)
            # In a thread, one at a time: a process that hangs takes a second to be found so.
            if time.monotonic() - asked > LIVE_EVERY_SECONDS and not (asking and asking.is_alive()):
                asked = time.monotonic()
                asking = threading.Thread(target=self._check_life, name="liveness", daemon=True)
                asking.start()
            if time.monotonic() - checked > _LOG_CHECK_SECONDS:
                checked = time.monotonic()
                for child in self._registry.children:
                    with contextlib.suppress(OSError):
                        bound(child.log)

    def _check_life(self) -> None:
        """Kill what has not lived for a while; `watch` sees it ended, counts it and starts it again."""
        for child in self._registry.children:
            if child.name not in self._services or child.name in self._starting or not child.alive():
                self._silence.forget(child.name)
                continue
            problem = _problem_with_life(child)
            seconds = self._silence.longer_than(child.name, child.pid, problem, LIVE_LIMIT_SECONDS)
            if seconds and not self._stop.requested.is_set():
                self._terminal.say(f"{child.name} is not alive ({problem} for {seconds:.0f} s): killing it")
                signal_family(child.pid, signal.SIGKILL)

    def stop_all(self) -> None:
        """Stop every child in its stop order and within its time limit. A second stop signal kills them at once."""
        self._registry.close()
        for child in self._registry.children:
            if child.command.stop_order == STOP_LEARNING:
                child.kill()
        for stop_order, reason in sorted(_WAITS.items()):
            self._stop_group([one for one in self._registry.children if one.command.stop_order == stop_order], reason)
        for child in self._registry.children:
            child.kill()

    def _restart(self, child: Child) -> None:
        """Start it again in a thread: at once after the first death of a minute, else after the pause."""
        deaths = self._count_death(child)
        service = self._services[child.name]
        self._starting.add(child.name)

        def work() -> None:
            try:
                if deaths > 1:
                    self._rest(deaths)
                self.bring_up(service, lambda _: None)
                self._terminal.say(f"{service.name} is back")
            except StoppingError:
                return
            except Exception as error:  # noqa: BLE001 - the watching thread raises it
                self._failures.put(error)

        threading.Thread(target=work, name=f"restart {child.name}", daemon=True).start()

    def _rest(self, deaths: int) -> None:
        """Wait before a restart, the longer the more deaths there were of late. Raises StoppingError."""
        pause = min(_RESTART_PAUSE_FIRST_SECONDS * 2 ** (deaths - 1), _RESTART_PAUSE_MAX_SECONDS)
        if self._stop.requested.wait(pause):
            raise StoppingError

    def _count_death(self, child: Child) -> int:
        """Say that it died and what it said last, and return how often it did within the last minute.

        Raises GaveUpError when that was once too often.
        """
        if self._stop.requested.is_set():
            raise StoppingError
        self._registry.forget(child)
        deaths = self._deaths[child.name]
        now = time.monotonic()
        while deaths and now - deaths[0] > _RESTART_WINDOW_SECONDS:
            deaths.popleft()
        died = ChildError(f"{child.name} {how_it_ended(child.exit_code() or 0)}", child.last_lines())
        if len(deaths) >= self._restarts_per_minute:
            raise GaveUpError(f"{died}\n{child.name} died {len(deaths) + 1} times within a minute; giving up")
        deaths.append(now)
        self._terminal.say(f"{died}\nRestarting {child.name} ({len(deaths)} of {self._restarts_per_minute} a minute)")
        return len(deaths)

    def _stop_group(self, children: Sequence[Child], reason: str) -> None:
        if not children:
            return
        names = ", ".join(one.name for one in children)
        self._terminal.say(f"Stopping {names}: {reason}")
        began = time.monotonic()
        for one in children:
            one.ask_to_stop()
        said = began
        left = list(children)
        while left:
            if time.monotonic() - said > _STILL_SECONDS:
                said = time.monotonic()
                self._terminal.say(f"Still {reason}: {', '.join(one.name for one in left)}")
            for one in list(left):
                overdue = time.monotonic() - began > one.command.stop_seconds
                if one.alive() and (overdue or self._stop.forced.is_set()):
                    self._terminal.say(
                        f"{one.name} did not stop in time: killing it" if overdue else f"Killing {one.name}"
                    )
                    one.kill()
                if not one.alive():
                    self._registry.forget(one)
                    left.remove(one)
            self._stop.forced.wait(_WATCH_SECONDS / 10)
