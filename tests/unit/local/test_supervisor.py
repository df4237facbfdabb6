"""The supervisor restarts processes that die, ends the stack when one dies too often, and stops all in order."""

import dataclasses
import errno
import io
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from orderstream.local.processes import supervisor
from orderstream.local.processes.child import Child, Command, StoppingError
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.service import InstallContext
from orderstream.local.processes.signals import Stop
from orderstream.local.processes.start_order import KILL_FIRST
from orderstream.local.processes.state import StateDir
from orderstream.local.processes.supervisor import GaveUpError, Supervisor
from orderstream.process.pages import serve_pages
from tests.support.waiting import wait_until
from tests.unit.local.conftest import SLEEPER, python

LOOK_SECONDS = 0.2
"""The interval at which the supervisor checks its children."""
PRINTS_AT_STOP = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('stopped', flush=True), sys.exit()));"
    + SLEEPER
)


class RecordedPauses(threading.Event):
    """Records the waits that are longer than LOOK_SECONDS, and ends them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, or only record the wait."""
        if timeout is not None and timeout > LOOK_SECONDS:
            self.pauses.append(timeout)
            timeout = 0.0
        return super().wait(timeout)


class StopByTest(Stop):
    """A stop that the test requests, without signals."""

    requested: threading.Event

    def __init__(self) -> None:  # without the handlers
        self.requested = threading.Event()
        self.forced = threading.Event()


class PythonService:
    """A service that is a line of Python. It is ready when it has printed `ready`."""

    needs: tuple[str, ...] = ()

    def __init__(self, name: str, script: str = SLEEPER, stop_order: int = 1) -> None:
        self.name = name
        self._command = python(script, stop_order=stop_order)
        self.installed = 0

    def install(self, _context: InstallContext, /) -> None:
        """Count the calls."""
        self.installed += 1

    def command(self) -> Command:
        """Return the command that runs the line."""
        return self._command

    def ready(self, child: Child) -> bool:
        """Tell whether it has printed `ready` since its last start."""
        return "ready" in child.last_lines()


class SupervisorBench:
    """A supervisor, its registry, and its output."""

    def __init__(self, state: StateDir, registry: ProcessRegistry, restarts: int) -> None:
        self.said = io.StringIO()
        self.stop = StopByTest()
        self.registry = registry
        self.supervisor = Supervisor(state, registry, Terminal(self.said), self.stop, restarts)
        self.outcome: list[Exception | None] = []

    def up(self, *services: PythonService) -> None:
        for service in services:
            self.supervisor.bring_up(service, lambda _: None)

    def pid(self, name: str) -> int | None:
        return next((child.pid for child in self.registry.children if child.name == name), None)

    def watch(self) -> threading.Thread:
        def work() -> None:
            try:
                self.supervisor.watch()
                self.outcome.append(None)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


WithoutPauses = tuple[SupervisorBench, RecordedPauses]


@pytest.fixture
def bench(state: StateDir, registry: ProcessRegistry) -> Iterator[SupervisorBench]:
    """A bench on which a service may be restarted twice within a minute."""
    made = SupervisorBench(state, registry, restarts=2)
    yield made
    made.stop.requested.set()
    made.supervisor.stop_all()


def test_a_dead_process_is_restarted_and_its_last_lines_are_shown(bench: SupervisorBench) -> None:
    bench.up(PythonService("worker"))
    watching = bench.watch()
    first = bench.pid("worker")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "worker is back" in bench.said.getvalue(), 10, "the worker is restarted")
    assert bench.pid("worker") not in {first, None}
    assert "worker was ended by SIGKILL\n  | ready\nRestarting worker (1 of 2 a minute)" in bench.said.getvalue()
    bench.stop.requested.set()
    watching.join(10)
    assert bench.outcome == [None]


def test_a_process_that_dies_too_often_ends_the_watch(bench: SupervisorBench) -> None:
    bench.up(PythonService("worker", "print('ready', flush=True); import time; time.sleep(0.2); raise SystemExit(7)"))
    bench.watch().join(30)
    assert isinstance(bench.outcome[0], GaveUpError)
    assert "worker died 3 times within a minute" in str(bench.outcome[0])


def test_a_process_that_never_starts_ends_the_start(bench: SupervisorBench) -> None:
    with pytest.raises(GaveUpError, match=r"(?s)worker exited with 3\n  \| no such table.*died 3 times"):
        bench.up(PythonService("worker", "print('no such table'); raise SystemExit(3)"))


def test_a_process_that_dies_before_it_is_ready_is_installed_again(bench: SupervisorBench) -> None:
    worker = PythonService("worker", "raise SystemExit(3)")
    with pytest.raises(GaveUpError):
        bench.up(worker)
    assert worker.installed == 3


@pytest.fixture
def without_pauses(state: StateDir, registry: ProcessRegistry) -> Iterator[WithoutPauses]:
    """A bench without pauses, and the recorded pauses. A service may be restarted eight times within a minute."""
    made, waits = SupervisorBench(state, registry, restarts=8), RecordedPauses()
    made.stop.requested = waits
    yield made, waits
    waits.set()
    made.supervisor.stop_all()


def test_the_pause_before_a_restart_doubles_with_each_death_within_a_minute(
    without_pauses: WithoutPauses,
) -> None:
    bench, waits = without_pauses
    with pytest.raises(GaveUpError, match="died 9 times"):
        bench.up(PythonService("worker", "raise SystemExit(3)"))
    assert waits.pauses == [0.3, 0.6, 1.2, 2.4, 4.8, 5.0, 5.0, 5.0]


def test_only_the_first_restart_of_a_ready_process_is_without_a_pause(
    without_pauses: WithoutPauses,
) -> None:
    bench, waits = without_pauses
    bench.up(PythonService("worker", "print('ready', flush=True); import time; time.sleep(0.2); raise SystemExit(7)"))
    bench.watch().join(60)
    assert isinstance(bench.outcome[0], GaveUpError)
    assert waits.pauses == [0.6, 1.2, 2.4, 4.8, 5.0, 5.0, 5.0]


def dies_once(mark: Path) -> str:
    """Return the line of a service that dies at its first start only."""
    return f"import pathlib, sys; it = pathlib.Path({str(mark)!r}); it.exists() or sys.exit(it.touch() or 3); {SLEEPER}"


def test_deaths_of_other_processes_and_old_deaths_do_not_count(
    without_pauses: WithoutPauses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, waits = without_pauses
    with pytest.raises(GaveUpError):
        bench.up(PythonService("worker", "raise SystemExit(3)"))
    waits.pauses.clear()
    bench.up(PythonService("another", dies_once(tmp_path / "another")))
    monkeypatch.setattr(supervisor, "_RESTART_WINDOW_SECONDS", 0.0)
    bench.up(PythonService("worker", dies_once(tmp_path / "worker")))
    assert waits.pauses == [0.3, 0.3]


def test_nothing_is_restarted_while_stopping(bench: SupervisorBench) -> None:
    bench.stop.requested.set()
    with pytest.raises(StoppingError):
        bench.up(PythonService("worker", "raise SystemExit(3)"))


def test_a_process_that_dies_after_a_stop_request_is_not_restarted(bench: SupervisorBench) -> None:
    """Ctrl-C may end a child before the watch sees the stop request."""

    class Late(threading.Event):
        """A stop is requested just after the watch has looked."""

        def wait(self, timeout: float | None = None) -> bool:
            if timeout == LOOK_SECONDS and not self.is_set():
                self.set()
                return False
            return super().wait(timeout)

    bench.up(PythonService("worker"))
    (child,) = bench.registry.children
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not child.alive(), 10, "the child is dead")
    bench.stop.requested = Late()
    with pytest.raises(StoppingError):
        bench.supervisor.watch()
    assert "Restarting" not in bench.said.getvalue()


def test_a_stop_during_the_pause_before_a_restart_ends_the_restart(bench: SupervisorBench) -> None:
    class Stopped(threading.Event):
        """A stop is requested when the first pause begins."""

        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None and timeout > LOOK_SECONDS:
                self.set()
            return super().wait(timeout)

    bench.stop.requested = Stopped()
    worker = PythonService("worker", "raise SystemExit(3)")
    with pytest.raises(StoppingError):
        bench.up(worker)
    assert worker.installed == 1


def test_the_record_of_a_dead_process_is_removed(bench: SupervisorBench, state: StateDir, tmp_path: Path) -> None:
    bench.up(PythonService("worker", dies_once(tmp_path / "mark")))
    run = state.read().run
    assert run is not None
    assert [child.pid for child in run.children] == [bench.pid("worker")]


def test_nothing_starts_after_stop_all(bench: SupervisorBench) -> None:
    bench.supervisor.stop_all()
    with pytest.raises(StoppingError):
        bench.up(PythonService("late"))
    assert bench.registry.children == []


def test_a_process_with_kill_first_is_killed_before_the_others_are_stopped(
    bench: SupervisorBench, state: StateDir
) -> None:
    bench.up(PythonService("recorder", stop_order=KILL_FIRST))
    recorder = f"pathlib.Path('/proc/{bench.pid('recorder')}').exists()"
    looks = f"signal.signal(signal.SIGTERM, lambda *_: (print('recorder', {recorder}, flush=True), sys.exit()));"
    bench.up(PythonService("gateway", f"import pathlib, signal, sys; {looks} {SLEEPER}", 0))
    bench.supervisor.stop_all()
    assert "recorder False" in state.log("gateway").read_text()


def test_a_process_with_another_stop_order_is_killed_in_the_end(bench: SupervisorBench) -> None:
    bench.up(PythonService("other", stop_order=99))
    bench.supervisor.stop_all()
    assert bench.registry.children == []


def test_processes_are_stopped_in_their_stop_order(bench: SupervisorBench, state: StateDir) -> None:
    bench.up(
        PythonService("store", PRINTS_AT_STOP, 2), PythonService("gateway", PRINTS_AT_STOP, 0), PythonService("worker")
    )
    bench.supervisor.stop_all()
    lines = [line for line in bench.said.getvalue().splitlines() if line.startswith("Stopping")]
    assert [line.split(":")[0] for line in lines] == ["Stopping gateway", "Stopping worker", "Stopping store"]
    assert "stopped" in state.log("store").read_text()
    assert bench.registry.children == []


def test_a_forced_stop_kills_a_process_that_ignores_the_signal(bench: SupervisorBench) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
    bench.up(PythonService("worker", stubborn))
    bench.stop.forced.set()
    bench.supervisor.stop_all()
    assert "Killing worker" in bench.said.getvalue()
    assert bench.registry.children == []


def test_the_supervisor_goes_on_if_it_cannot_shorten_a_log_file(
    bench: SupervisorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def fail(_log: Path) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervisor, "_LOG_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "limit_size", fail)
    bench.up(PythonService("worker"))
    watching = bench.watch()
    assert tried.wait(10)
    bench.stop.requested.set()
    watching.join(10)
    assert bench.outcome == [None]


def test_a_process_stopped_by_a_signal_is_killed_and_restarted(
    bench: SupervisorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LIVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "LIVE_LIMIT_SECONDS", 0.2)
    bench.up(PythonService("store", stop_order=2), PythonService("worker"))
    bench.watch()
    first, other = bench.pid("store"), bench.pid("worker")
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    wait_until(lambda: "store is back" in bench.said.getvalue(), 10, "the stopped process is replaced")
    assert re.search(r"store is not alive \(stopped by a signal for \d+ s\): killing it", bench.said.getvalue())
    assert "Restarting store (1 of 2 a minute)" in bench.said.getvalue()
    assert bench.pid("store") not in {first, None}
    assert bench.pid("worker") == other


@pytest.mark.parametrize("answers", ["503", "nothing"])
def test_a_service_whose_livez_fails_is_killed_and_restarted(
    bench: SupervisorBench, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LIVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "LIVE_LIMIT_SECONDS", 0.2)
    with ExitStack() as stack:
        if answers == "503":
            pages = serve_pages("127.0.0.1", 0, lambda: "stuck", lambda: None)
            stack.callback(pages.server_close)
            stack.callback(pages.shutdown)
            port = pages.server_port
        else:
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        worker = PythonService("worker")
        worker._command = dataclasses.replace(worker.command(), health_url=f"http://127.0.0.1:{port}/readyz")
        bench.up(worker)
        bench.watch()
        wait_until(lambda: "Restarting worker" in bench.said.getvalue(), 20, "the service is replaced")
    said = bench.said.getvalue()
    assert f"worker is not alive (/livez: {'stuck' if answers == '503' else 'no answer'} for" in said


def test_the_silence_is_measured_again_after_a_sign_of_life_and_for_a_new_process() -> None:
    now = [0.0]
    silence = supervisor.Silence(lambda: now[0])
    assert silence.longer_than("a", 1, "no answer", 30) == 0
    now[0] = 29
    assert silence.longer_than("a", 1, "no answer", 30) == 0
    now[0] = 31
    assert silence.longer_than("a", 1, "no answer", 30) == 31
    assert silence.longer_than("a", 2, "no answer", 30) == 0
    assert silence.longer_than("a", 2, None, 30) == 0
    now[0] = 90
    assert silence.longer_than("a", 2, "no answer", 30) == 0


class CountedLooks(threading.Event):
    """Counts how often the watch has looked after its children."""

    looks = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as an event does."""
        self.looks += timeout == LOOK_SECONDS
        return super().wait(timeout)


def test_the_watch_does_not_restart_a_process_that_is_starting(bench: SupervisorBench) -> None:
    asked, answer = threading.Event(), threading.Event()

    class Held(PythonService):
        def ready(self, _child: Child) -> bool:
            asked.set()
            answer.wait(20)
            return False

    worker = Held("worker", "import time; time.sleep(0.3); raise SystemExit(3)")
    bench.stop.requested = counted = CountedLooks()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(bench.up, worker)
        try:
            wait_until(asked.is_set, 10, "the supervisor asks whether the worker is ready")
            (child,) = bench.registry.children
            wait_until(lambda: not child.alive(), 10, "the worker dies before it is ready")
            bench.watch()
            wait_until(lambda: counted.looks >= 4, 10, "the watch has looked several times")
            assert worker.installed == 1
        finally:
            answer.set()
        with pytest.raises(GaveUpError):
            starting.result(20)


def test_a_restart_that_fails_too_often_ends_the_watch(bench: SupervisorBench, tmp_path: Path) -> None:
    """The service was ready once. The thread that restarts it counts its later deaths."""
    mark = repr(str(tmp_path / "served"))
    bench.up(
        PythonService(
            "worker",
            f"import os, sys, time; again = os.path.exists({mark}); open({mark}, 'w').close(); again and sys.exit(3);"
            " print('ready', flush=True); time.sleep(0.2); sys.exit(7)",
        )
    )
    bench.watch().join(30)
    assert [type(error) for error in bench.outcome] == [GaveUpError]


def test_a_process_that_does_not_stop_in_time_is_killed(bench: SupervisorBench) -> None:
    stubborn_worker = PythonService("worker", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER)
    stubborn_worker._command = dataclasses.replace(stubborn_worker._command, stop_seconds=0.3)
    bench.up(stubborn_worker)
    bench.stop.requested.set()
    bench.supervisor.stop_all()
    assert "worker did not stop in time: killing it" in bench.said.getvalue()
    assert bench.registry.children == []


def test_an_optional_process_that_never_starts_ends_nothing_and_is_started_again_later(
    bench: SupervisorBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LATER_SECONDS", 0.01)
    fixed = tmp_path / "fixed"
    script = f"import os, sys; os.path.exists({str(fixed)!r}) or sys.exit('broken'); {SLEEPER}"
    bench.supervisor.bring_up_optional(PythonService("console", script), lambda _: None)
    bench.up(PythonService("worker"))
    watching = bench.watch()
    wait_until(lambda: bench.said.getvalue().count("Orders go on without console.") > 1, 20, "it is started again")
    fixed.touch()
    wait_until(lambda: "console is back" in bench.said.getvalue(), 20, "it is back")
    os.kill(bench.pid("console") or 0, signal.SIGKILL)
    wait_until(lambda: bench.said.getvalue().count("console is back") > 1, 20, "it is restarted as the others are")
    assert watching.is_alive()
    bench.stop.requested.set()
    watching.join(10)
    assert bench.outcome == [None]


def test_an_optional_process_that_dies_too_often_ends_nothing(
    bench: SupervisorBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor, "LATER_SECONDS", 600.0)
    once = tmp_path / "once"
    script = f"import os, sys; os.path.exists({str(once)!r}) and sys.exit('broken'); {SLEEPER}"
    bench.supervisor.bring_up_optional(PythonService("console", script), lambda _: None)
    watching = bench.watch()
    once.touch()
    os.kill(bench.pid("console") or 0, signal.SIGKILL)
    wait_until(lambda: "Orders go on without console." in bench.said.getvalue(), 20, "it is given up for now")
    assert watching.is_alive()
    bench.stop.requested.set()
    watching.join(10)
    assert bench.outcome == [None]


def test_an_optional_process_that_is_slow_does_not_delay_the_start(
    bench: SupervisorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "OPTIONAL_SECONDS", 0.01)
    silent = PythonService("console", SLEEPER.replace("ready", "not yet"))
    bench.supervisor.bring_up_optional(silent, lambda _: None)
    assert "console is not ready after 0 s. Orders do not need it." in bench.said.getvalue()
    bench.stop.requested.set()
    with pytest.raises(StoppingError):
        bench.supervisor.bring_up_optional(PythonService("another"), lambda _: None)
