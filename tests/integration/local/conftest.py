"""Stores of a test's own: a state directory, and the processes that the test starts in it end with it."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.child import Child
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.service import InstallContext, Service, await_ready
from orderstream.local.processes.state import Run, StateDir, StateRecord, shared_cache
from orderstream.local.servers import kafka_jars as jars
from orderstream.local.servers import server_home
from orderstream.local.servers.passwords import Passwords, read_or_make
from orderstream.local.servers.server_home import ServerHome


class Stores:
    """What starts a store as `orderstream up` does."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.home: ServerHome = server_home.choose(state, lambda _: None)
        self.passwords: Passwords = read_or_make(state)
        self.registry = ProcessRegistry(state, StateRecord(run=Run(os.getpid(), start_time(os.getpid()) or "")))
        self.context = InstallContext(state, self.registry, lambda _: None, threading.Event())

    def start(self, service: Service) -> Child:
        """Install it, start it and wait until it serves."""
        service.install(self.context)
        child = Child(service.name, self.state.log(service.name), self.registry)
        child.start(service.command())
        assert await_ready(service, child, self.context.cancelled), child.last_lines()
        return child


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """The stores of a fresh state directory."""
    jars.install(shared_cache() / "jars", lambda _: None, threading.Event())
    state = StateDir(tmp_path / "state")
    state.open()
    made = Stores(state)
    yield made
    for child in made.registry.children:
        child.kill()
    server_home.remove(state)
