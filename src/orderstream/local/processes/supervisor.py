"""Restarts local processes that die, stops the local stack when one dies too often, and stops all of them in order."""

import collections
import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence

from orderstream.local.processes.child import Child, ChildError, StoppingError, how_it_ended
from orderstream.local.processes.logs import limit_size
from orderstream.local.processes.pids import is_stopped, signal_tree
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.service import InstallContext, Service, await_ready, problem_at
from orderstream.local.processes.signals import Stop
from orderstream.local.processes.start_order import KILL_FIRST, STOPPING
from orderstream.local.processes.state import StateDir

_WATCH_SECONDS = 0.2
LIVE_EVERY_SECONDS = 5.0
LIVE_LIMIT_SECONDS = 30.0
"""A process that is stopped, or whose /livez fails, for longer than this is killed and restarted."""
_LOG_CHECK_SECONDS = 10.0
_STILL_SECONDS = 3.0
_RESTART_WINDOW_SECONDS = 60.0
# The pause frees what a dead process held, such as a port or shared memory. It doubles with each death within a minute.
# Without it, a process that cannot start for some seconds would use up all its restarts within them.
_RESTART_PAUSE_FIRST_SECONDS = 0.3
_RESTART_PAUSE_MAX_SECONDS = 5.0

OPTIONAL_SECONDS = 10.0
"""The longest wait for an optional service when the local stack starts. It goes on starting after that."""
LATER_SECONDS = 60.0
"""The wait before an optional service that died too often is started again."""


def _problem_with_life(child: Child) -> str | None:
    """Return why a running process does no work, or None. A server has no /livez. It is checked for SIGSTOP only."""
    if is_stopped(child.pid):
        return "stopped by a signal"
    url = child.command.health_url
    problem = problem_at(url.replace("/readyz", "/livez")) if url else None
    return problem and f"/livez: {problem}"


class Silence:
    """Measures for how long each child has given no sign of life."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, tuple[int, float]] = {}

    def forget(self, name: str) -> None:
        """Start the measurement again: the child is starting, or has ended."""
        self._since.pop(name, None)

    def longer_than(self, name: str, pid: int, problem: str | None, limit_seconds: float) -> float:
        """Record a check. Return how long process `pid` has been silent if that exceeds the limit, otherwise 0."""
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
    """A child died more often than RESTARTS_PER_MINUTE allows."""


class Supervisor:
    """Starts, restarts and stops children. Several threads call `bring_up`; the main thread calls the rest."""

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
        self._optional: set[str] = set()
        self._silence = Silence(time.monotonic)
        self._failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def bring_up(self, service: Service, report: Callable[[str], None]) -> None:
        """Install and start a service and wait until it is ready. If it dies before that, install and start it again.

        Raises GaveUpError if it dies too often, ChildError if it runs and never becomes ready, StoppingError.
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
            self._pause(self._count_death(child))
        self._starting.discard(service.name)

    def bring_up_optional(self, service: Service, report: Callable[[str], None]) -> None:
        """Start a service that the others do not need. Return when it is ready, or after OPTIONAL_SECONDS.

        If it dies too often or never becomes ready, the terminal says so, and it is started again every
        LATER_SECONDS. The others go on. Raises StoppingError.
        """
        self._optional.add(service.name)
        over = threading.Event()

        def work() -> None:
            try:
                self.bring_up(service, report)
            except StoppingError:
                pass
            except Exception as error:  # noqa: BLE001 - the others go on without it
                over.set()
                self._try_later(service, error)
            over.set()

        threading.Thread(target=work, name=f"start {service.name}", daemon=True).start()
        if not over.wait(OPTIONAL_SECONDS):
            self._terminal.say(f"{service.name} is not ready after {OPTIONAL_SECONDS:.0f} s. Orders do not need it.")
        if self._stop.requested.is_set():
            raise StoppingError

    def _try_later(self, service: Service, error: Exception) -> None:
        """Say why an optional service is down, and start it again every LATER_SECONDS until it is ready."""
        while True:
            self._terminal.say(f"{error}\nOrders go on without {service.name}. Next start in {LATER_SECONDS:.0f} s.")
            for child in self._registry.children:
                if child.name == service.name:
                    child.kill()
            if self._stop.requested.wait(LATER_SECONDS):
                return
            try:
                self.bring_up(service, lambda _: None)
            except StoppingError:
                return
            except Exception as next_error:  # noqa: BLE001 - the others go on without it
                error = next_error
            else:
                self._terminal.say(f"{service.name} is back")
                return

    def in_background(self, name: str, work: Callable[[InstallContext], None]) -> None:
        """Run `work` in a thread. Its failure has no consequence."""
        context = InstallContext(self._state, self._registry, lambda _: None, self._stop.requested)

        def run() -> None:
            with contextlib.suppress(ChildError, StoppingError, OSError):
                work(context)

        threading.Thread(target=run, name=name, daemon=True).start()

    def watch(self) -> None:
        """Restart children that die, until a stop is requested. Raises GaveUpError, or what a restart raised."""
        logs_checked = life_checked = time.monotonic()
        life_check: threading.Thread | None = None
        while not self._stop.requested.wait(_WATCH_SECONDS):
            if not self._failures.empty():
                raise self._failures.get()
            for child in self._registry.children:
                watched = child.name in self._services and child.name not in self._starting
                if watched and not child.alive():
                    self._restart(child)
            # The check runs in a thread, one at a time: each process that hangs makes it a second longer.
            if time.monotonic() - life_checked > LIVE_EVERY_SECONDS and not (life_check and life_check.is_alive()):
                life_checked = time.monotonic()
                life_check = threading.Thread(target=self._check_life, name="liveness", daemon=True)
                life_check.start()
            if time.monotonic() - logs_checked > _LOG_CHECK_SECONDS:
                logs_checked = time.monotonic()
                for child in self._registry.children:
                    with contextlib.suppress(OSError):
                        limit_size(child.log)

    def _check_life(self) -> None:
        """Kill children that have been silent for too long. `watch` then sees that they ended and restarts them."""
        for child in self._registry.children:
            if child.name not in self._services or child.name in self._starting or not child.alive():
                self._silence.forget(child.name)
                continue
            problem = _problem_with_life(child)
            seconds = self._silence.longer_than(child.name, child.pid, problem, LIVE_LIMIT_SECONDS)
            if seconds and not self._stop.requested.is_set():
                self._terminal.say(f"{child.name} is not alive ({problem} for {seconds:.0f} s): killing it")
                signal_tree(child.pid, signal.SIGKILL)

    def stop_all(self) -> None:
        """Stop every child in its stop order and within its time limit. A second stop signal kills them at once."""
        self._registry.close()
        for child in self._registry.children:
            if child.command.stop_order == KILL_FIRST:
                child.kill()
        for stop_order, waiting_for in sorted(STOPPING.items()):
            group = [child for child in self._registry.children if child.command.stop_order == stop_order]
            self._stop_group(group, waiting_for)
        for child in self._registry.children:
            child.kill()

    def _restart(self, child: Child) -> None:
        """Restart a child in a thread: at once after its first death within a minute, otherwise after the pause."""
        service = self._services[child.name]
        try:
            deaths = self._count_death(child)
        except GaveUpError as error:
            if child.name not in self._optional:
                raise
            self._starting.add(child.name)
            threading.Thread(target=self._try_later, args=(service, error), daemon=True).start()
            return
        self._starting.add(child.name)

        def work() -> None:
            try:
                if deaths > 1:
                    self._pause(deaths)
                self.bring_up(service, lambda _: None)
                self._terminal.say(f"{service.name} is back")
            except StoppingError:
                return
            except Exception as error:  # noqa: BLE001 - the watching thread raises it
                if service.name in self._optional:
                    self._try_later(service, error)
                else:
                    self._failures.put(error)

        threading.Thread(target=work, name=f"restart {child.name}", daemon=True).start()

    def _pause(self, deaths: int) -> None:
        """Wait before a restart. The wait doubles with each recent death. Raises StoppingError."""
        pause = min(_RESTART_PAUSE_FIRST_SECONDS * 2 ** (deaths - 1), _RESTART_PAUSE_MAX_SECONDS)
        if self._stop.requested.wait(pause):
            raise StoppingError

    def _count_death(self, child: Child) -> int:
        """Report that a child died, with its last lines. Return the number of its deaths within the last minute.

        Raises GaveUpError if it has used up its restarts, StoppingError if a stop is requested.
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

    def _stop_group(self, children: Sequence[Child], waiting_for: str) -> None:
        if not children:
            return
        names = ", ".join(child.name for child in children)
        self._terminal.say(f"Stopping {names}: {waiting_for}")
        began = said = time.monotonic()
        for child in children:
            child.ask_to_stop()
        left = list(children)
        while left:
            if time.monotonic() - said > _STILL_SECONDS:
                said = time.monotonic()
                self._terminal.say(f"Still {waiting_for}: {', '.join(child.name for child in left)}")
            for child in list(left):
                overdue = time.monotonic() - began > child.command.stop_seconds
                if child.alive() and (overdue or self._stop.forced.is_set()):
                    self._terminal.say(
                        f"{child.name} did not stop in time: killing it" if overdue else f"Killing {child.name}"
                    )
                    child.kill()
                if not child.alive():
                    self._registry.forget(child)
                    left.remove(child)
            self._stop.forced.wait(_WATCH_SECONDS / 10)
