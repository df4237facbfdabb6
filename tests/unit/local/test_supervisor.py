"""The supervisor: what dies is restarted, what keeps dying ends the stack, and stopping has an order."""

import dataclasses
import errno
import io
import os
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
"""The supervisor looks after its children so often."""
SAYS_WHEN_ASKED_TO_STOP = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit()));" + SLEEPER
)


class Hurried(threading.Event):
    """Notes how long it was waited for, and makes short work of whatever is longer than a look."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait a moment."""
        if timeout is not None and timeout > LOOK_SECONDS:
            self.pauses.append(timeout)
            timeout = 0.0
        return super().wait(timeout)


class Asked(Stop):
    """Asked by the test, not by signals."""

    requested: threading.Event

    def __init__(self) -> None:  # without the handlers
        self.requested = threading.Event()
        self.forced = threading.Event()


class Small:
    """A service that is a line of Python, ready as soon as it says so."""

    needs: tuple[str, ...] = ()

    def __init__(self, name: str, script: str = SLEEPER, stop_order: int = 1) -> None:
        self.name = name
        self._command = python(script, stop_order=stop_order)
        self.installed = 0

    def install(self, _workshop: InstallContext, /) -> None:
        """Nothing, but for the count."""
        self.installed += 1

    def command(self) -> Command:
        """The line."""
        return self._command

    def ready(self, child: Child) -> bool:
        """It has said so since its last start."""
        return "ready" in child.last_lines()


class Bench:
    """A supervisor with what it needs, and what it said."""

    def __init__(self, state: StateDir, registry: ProcessRegistry, restarts: int) -> None:
        self.said = io.StringIO()
        self.stop = Asked()
        self.registry = registry
        self.supervisor = Supervisor(state, registry, Terminal(self.said), self.stop, restarts)
        self.outcome: list[Exception | None] = []

    def up(self, *services: Small) -> None:
        for one in services:
            self.supervisor.bring_up(one, lambda _: None)

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


@pytest.fixture
def bench(state: StateDir, registry: ProcessRegistry) -> Iterator[Bench]:
    """A bench on which a service may be restarted twice a minute."""
    made = Bench(state, registry, restarts=2)
    yield made
    made.stop.requested.set()
    made.supervisor.stop_all()


def test_a_dead_child_is_restarted_and_its_last_lines_are_shown(bench: Bench) -> None:
    bench.up(Small("worker"))
    watching = bench.watch()
    first = bench.pid("worker")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "worker is back" in bench.said.getvalue(), 10, "it was not restarted")
    assert bench.pid("worker") not in {first, None}
    assert "worker was ended by SIGKILL\n  | ready\nRestarting worker (1 of 2 a minute)" in bench.said.getvalue()
    bench.stop.requested.set()
    watching.join(10)
    assert bench.outcome == [None]


def test_a_child_that_dies_once_too_often_ends_the_watch(bench: Bench) -> None:
    bench.up(Small("worker", "print('ready', flush=True); import time; time.sleep(0.2); raise SystemExit(7)"))
    bench.watch().join(30)
    assert isinstance(bench.outcome[0], GaveUpError)
    assert "worker died 3 times within a minute" in str(bench.outcome[0])


def test_a_child_that_never_starts_is_given_up(bench: Bench) -> None:
    with pytest.raises(GaveUpError, match=r"(?s)worker exited with 3\n  \| no such table.*died 3 times"):
        bench.up(Small("worker", "print('no such table'); raise SystemExit(3)"))


def test_a_child_that_dies_on_its_way_up_is_installed_again(bench: Bench) -> None:
    worker = Small("worker", "raise SystemExit(3)")
    with pytest.raises(GaveUpError):
        bench.up(worker)
    assert worker.installed == 3


@pytest.fixture
def hurried(state: StateDir, registry: ProcessRegistry) -> Iterator[tuple[Bench, Hurried]]:
    """A bench on which nobody waits long, with the waits; a service may be restarted eight times a minute."""
    made, waits = Bench(state, registry, restarts=8), Hurried()
    made.stop.requested = waits
    yield made, waits
    waits.set()
    made.supervisor.stop_all()


def test_the_pause_grows_with_the_deaths_of_a_minute(hurried: tuple[Bench, Hurried]) -> None:
    bench, waits = hurried
    with pytest.raises(GaveUpError, match="died 9 times"):
        bench.up(Small("worker", "raise SystemExit(3)"))
    assert waits.pauses == [0.3, 0.6, 1.2, 2.4, 4.8, 5.0, 5.0, 5.0]


def test_what_served_is_restarted_at_once_the_first_time_only(hurried: tuple[Bench, Hurried]) -> None:
    bench, waits = hurried
    bench.up(Small("worker", "print('ready', flush=True); import time; time.sleep(0.2); raise SystemExit(7)"))
    bench.watch().join(60)
    assert isinstance(bench.outcome[0], GaveUpError)
    assert waits.pauses == [0.6, 1.2, 2.4, 4.8, 5.0, 5.0, 5.0]


def dies_once(mark: Path) -> str:
    """The line of a service that dies on its way up, and the next time does not."""
    return f"import pathlib, sys; it = pathlib.Path({str(mark)!r}); it.exists() or sys.exit(it.touch() or 3); {SLEEPER}"


def test_deaths_of_others_and_of_long_ago_do_not_count(
    hurried: tuple[Bench, Hurried], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, waits = hurried
    with pytest.raises(GaveUpError):
        bench.up(Small("worker", "raise SystemExit(3)"))
    waits.pauses.clear()
    bench.up(Small("another", dies_once(tmp_path / "another")))
    monkeypatch.setattr(supervisor, "_RESTART_WINDOW_SECONDS", 0.0)
    bench.up(Small("worker", dies_once(tmp_path / "worker")))
    assert waits.pauses == [0.3, 0.3]


def test_nothing_is_restarted_while_stopping(bench: Bench) -> None:
    bench.stop.requested.set()
    with pytest.raises(StoppingError):
        bench.up(Small("worker", "raise SystemExit(3)"))


def test_a_death_after_a_stop_was_asked_for_is_no_restart(bench: Bench) -> None:
    """Ctrl-C may end a child before the watch hears of the stop."""

    class Late(threading.Event):
        """A stop is asked for just after the watch has looked."""

        def wait(self, timeout: float | None = None) -> bool:
            if timeout == LOOK_SECONDS and not self.is_set():
                self.set()
                return False
            return super().wait(timeout)

    bench.up(Small("worker"))
    (child,) = bench.registry.children
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not child.alive(), 10, "the child is dead")
    bench.stop.requested = Late()
    with pytest.raises(StoppingError):
        bench.supervisor.watch()
    assert "Restarting" not in bench.said.getvalue()


def test_a_stop_during_the_rest_before_a_restart_ends_the_restart(bench: Bench) -> None:
    class Stopped(threading.Event):
        """A stop is asked for when the first rest begins."""

        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None and timeout > LOOK_SECONDS:
                self.set()
            return super().wait(timeout)

    bench.stop.requested = Stopped()
    worker = Small("worker", "raise SystemExit(3)")
    with pytest.raises(StoppingError):
        bench.up(worker)
    assert worker.installed == 1


def test_the_record_of_a_dead_child_is_struck_out(bench: Bench, state: StateDir, tmp_path: Path) -> None:
    bench.up(Small("worker", dies_once(tmp_path / "mark")))
    run = state.read().run
    assert run is not None
    assert [child.pid for child in run.children] == [bench.pid("worker")]


def test_nothing_starts_after_all_was_stopped(bench: Bench) -> None:
    bench.supervisor.stop_all()
    with pytest.raises(StoppingError):
        bench.up(Small("late"))
    assert bench.registry.children == []


def test_a_learner_is_killed_before_anything_is_asked_to_stop(bench: Bench, state: StateDir) -> None:
    bench.up(Small("learner", stop_order=KILL_FIRST))
    learner = f"pathlib.Path('/proc/{bench.pid('learner')}').exists()"
    looks = f"signal.signal(signal.SIGTERM, lambda *_: (print('learner', {learner}, flush=True), sys.exit()));"
    bench.up(Small("gateway", f"import pathlib, signal, sys; {looks} {SLEEPER}", 0))
    bench.supervisor.stop_all()
    assert "learner False" in state.log("gateway").read_text()


def test_a_child_of_no_wave_is_killed_in_the_end(bench: Bench) -> None:
    bench.up(Small("other", stop_order=99))
    bench.supervisor.stop_all()
    assert bench.registry.children == []


def test_waves_are_stopped_one_after_the_other(bench: Bench, state: StateDir) -> None:
    bench.up(Small("store", SAYS_WHEN_ASKED_TO_STOP, 2), Small("gateway", SAYS_WHEN_ASKED_TO_STOP, 0), Small("worker"))
    bench.supervisor.stop_all()
    lines = [line for line in bench.said.getvalue().splitlines() if line.startswith("Stopping")]
    assert [line.split(":")[0] for line in lines] == ["Stopping gateway", "Stopping worker", "Stopping store"]
    assert "asked" in state.log("store").read_text()
    assert bench.registry.children == []


def test_a_forced_stop_kills_what_does_not_listen(bench: Bench) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
    bench.up(Small("worker", stubborn))
    bench.stop.forced.set()
    bench.supervisor.stop_all()
    assert "Killing worker" in bench.said.getvalue()
    assert bench.registry.children == []


def test_a_log_that_cannot_be_cut_ends_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def fail(_log: Path) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervisor, "_LOG_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "limit_size", fail)
    bench.up(Small("worker"))
    watching = bench.watch()
    assert tried.wait(10)
    bench.stop.requested.set()
    watching.join(10)
    assert bench.outcome == [None]


def test_a_stopped_process_is_killed_and_started_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LIVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "LIVE_LIMIT_SECONDS", 0.2)
    bench.up(Small("store", stop_order=2), Small("worker"))
    bench.watch()
    first, other = bench.pid("store"), bench.pid("worker")
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    wait_until(lambda: "store is back" in bench.said.getvalue(), 10, "the stopped process is replaced")
    assert "store is not alive (stopped by a signal for 0 s): killing it" in bench.said.getvalue()
    assert "Restarting store (1 of 2 a minute)" in bench.said.getvalue()
    assert bench.pid("store") not in {first, None}
    assert bench.pid("worker") == other


@pytest.mark.parametrize("answers", ["503", "nothing"])
def test_a_service_whose_livez_fails_is_killed_and_started_again(
    bench: Bench, answers: str, monkeypatch: pytest.MonkeyPatch
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
        worker = Small("worker")
        worker._command = dataclasses.replace(worker.command(), health_url=f"http://127.0.0.1:{port}/readyz")
        bench.up(worker)
        bench.watch()
        wait_until(lambda: "Restarting worker" in bench.said.getvalue(), 20, "the service is replaced")
    said = bench.said.getvalue()
    assert f"worker is not alive (/livez: {'stuck' if answers == '503' else 'no answer'} for" in said


def test_a_short_silence_and_another_process_of_the_name_begin_again() -> None:
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


class _CountedLooks(threading.Event):
    """Counts how often the watch has looked after its children."""

    looks = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as an event does."""
        self.looks += timeout == LOOK_SECONDS
        return super().wait(timeout)


def test_a_child_on_its_way_up_is_not_restarted_by_the_watch_too(bench: Bench) -> None:
    asked, answer = threading.Event(), threading.Event()

    class Held(Small):
        def ready(self, _child: Child) -> bool:
            asked.set()
            answer.wait(20)
            return False

    worker = Held("worker", "import time; time.sleep(0.3); raise SystemExit(3)")
    bench.stop.requested = counted = _CountedLooks()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(bench.up, worker)
        try:
            wait_until(asked.is_set, 10, "it is asked whether it is ready")
            (child,) = bench.registry.children
            wait_until(lambda: not child.alive(), 10, "it dies on its way up")
            bench.watch()
            wait_until(lambda: counted.looks >= 4, 10, "the watch has looked after it")
            assert worker.installed == 1
        finally:
            answer.set()
        with pytest.raises(GaveUpError):
            starting.result(20)


def test_a_restart_that_is_given_up_ends_the_watch(bench: Bench, tmp_path: Path) -> None:
    """It served once; what dies on its way up again is counted by the thread that restarts it."""
    mark = repr(str(tmp_path / "served"))
    bench.up(
        Small(
            "worker",
            f"import os, sys, time; again = os.path.exists({mark}); open({mark}, 'w').close(); again and sys.exit(3);"
            " print('ready', flush=True); time.sleep(0.2); sys.exit(7)",
        )
    )
    bench.watch().join(30)
    assert [type(error) for error in bench.outcome] == [GaveUpError]


def test_a_child_that_does_not_stop_within_its_time_is_killed(bench: Bench) -> None:
    deaf = Small("worker", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER)
    deaf._command = dataclasses.replace(deaf._command, stop_seconds=0.3)
    bench.up(deaf)
    bench.stop.requested.set()
    bench.supervisor.stop_all()
    assert "worker did not stop in time: killing it" in bench.said.getvalue()
    assert bench.registry.children == []
