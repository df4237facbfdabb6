"""A stack of a test's own, run through the real executable: its directory, its port, its output, and its end."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orderstream.local.processes.pids import start_time
from orderstream.local.processes.state import ChildRecord, StateDir
from orderstream.settings import Settings
from tests.support.processes import Process
from tests.support.waiting import wait_until

EXECUTABLE = Path(sys.executable).with_name("orderstream")
# Generous: the machine may be busy with other things.
START_SECONDS = 150.0
STOP_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Up:
    """A running `orderstream up` and what it has said so far."""

    def __init__(self, argv: list[str], environment: Mapping[str, str]) -> None:
        self.process = Process(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.put(line)

    @property
    def said(self) -> str:
        """All of its output until now."""
        while not self._lines.empty():
            self._said += self._lines.get()
        return self._said

    @property
    def serving(self) -> bool:
        """Whether it has printed its banner, has not been asked to stop, and lives."""
        return "# Read it back" in self.said and "\nStopping" not in self.said and self.process.poll() is None

    def says(self, text: str, limit_seconds: float = START_SECONDS) -> str:
        """Wait until it has said `text` and return all that it has said."""
        wait_until(lambda: text in self.said or self.process.poll() is not None, limit_seconds, f"no {text!r}")
        self._reader_done()
        assert text in self.said, f"it ended with {self.process.poll()} and had said:\n{self.said}"
        return self.said

    def serves(self) -> "Up":
        """Wait for the banner."""
        self.says("# Read it back")
        return self

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def ends(self, limit_seconds: float = STOP_SECONDS) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.ends(limit_seconds)
        self._reader_done()
        return code

    def _reader_done(self) -> None:
        if self.process.poll() is not None:
            self._reader.join(10)


class Stack:
    """One state directory and port, and the commands on it."""

    def __init__(self, root: Path, executable: list[str] | None = None) -> None:
        self.state = StateDir(root / "state")
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._executable = executable or [str(EXECUTABLE)]
        self._ups: list[Up] = []

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """The environment of this process without any setting of OrderStream, but for `settings` and the place."""
        names = {field.upper() for field in Settings.model_fields}
        rest = {name: value for name, value in os.environ.items() if name not in names}
        return {**rest, "ORDERSTREAM_STATE": str(self.state.root), "PORT": str(self.port), **settings}

    def up(self, **settings: str) -> Up:
        """Start `orderstream up`."""
        started = Up([*self._executable, "up"], self.environment(settings))
        self._ups.append(started)
        return started

    def run(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run another command to its end."""
        return subprocess.run(
            [*self._executable, *arguments],
            env=self.environment(settings),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )

    @property
    def running(self) -> Up | None:
        """The `up` of this stack that serves now."""
        return next((up for up in self._ups if up.serving), None)

    @property
    def children(self) -> dict[str, ChildRecord]:
        """The processes in the record, by name."""
        run = self.state.read().run
        return {child.name: child for child in run.children} if run else {}

    def end(self) -> None:
        """End everything, however the test has ended, and remove the data."""
        for one in self._ups:
            if one.process.poll() is None:
                one.interrupt()
                try:
                    one.ends()
                except subprocess.TimeoutExpired:
                    one.process.kill()
            one.ends()
        self.run("down")
        self.run("reset")


def alive(children: dict[str, ChildRecord]) -> list[str]:
    """The names of those that still live."""
    return [name for name, child in children.items() if start_time(child.pid) == child.start_time]


@contextmanager
def stack(root: Path, executable: list[str] | None = None) -> Iterator[Stack]:
    """A stack under `root` that is ended and removed afterwards."""
    made = Stack(root, executable)
    try:
        yield made
    finally:
        made.end()


def order_of(answer: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The order that the last line of the pasted commands printed."""
    found: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return found
