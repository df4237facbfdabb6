"""Stores of a test's own: a state directory, and the processes that the test starts in it end with it."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.child import Child, Roster, birth
from orderstream.local.processes.service import Service, Workshop, await_ready
from orderstream.local.processes.state import Record, Run, StateDir, shared_cache
from orderstream.local.servers import kafka_jars as jars
from orderstream.local.servers import place
from orderstream.local.servers.passwords import Passwords, read_or_make
from orderstream.local.servers.place import Place


class Stores:
    """What starts a store as `orderstream up` does."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.place: Place = place.choose(state, lambda _: None)
        self.passwords: Passwords = read_or_make(state)
        self.roster = Roster(state, Record(run=Run(os.getpid(), birth(os.getpid()) or "")))
        self.workshop = Workshop(state, self.roster, lambda _: None, threading.Event())

    def start(self, service: Service) -> Child:
        """Install it, start it and wait until it serves."""
        service.install(self.workshop)
        child = Child(service.name, self.state.log(service.name), self.roster)
        child.start(service.command())
        assert await_ready(service, child, self.workshop.cancelled), child.last_lines()
        return child


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """The stores of a fresh state directory."""
    jars.install(shared_cache() / "jars", lambda _: None, threading.Event())
    state = StateDir(tmp_path / "state")
    state.open()
    made = Stores(state)
    yield made
    for child in made.roster.children:
        child.kill()
    place.remove(state)
