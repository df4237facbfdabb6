"""Servers for one test: they run in its own state directory and end with the test."""

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


class LocalServers:
    """Starts servers as `orderstream up` does."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.home: ServerHome = server_home.choose(state, lambda _: None)
        self.passwords: Passwords = read_or_make(state)
        self.registry = ProcessRegistry(state, StateRecord(run=Run(os.getpid(), start_time(os.getpid()) or "")))
        self.context = InstallContext(state, self.registry, lambda _: None, threading.Event())

    def start(self, service: Service) -> Child:
        """Install and start a server, and wait until it is ready."""
        service.install(self.context)
        child = Child(service.name, self.state.log(service.name), self.registry)
        child.start(service.command())
        assert await_ready(service, child, self.context.cancelled), child.last_lines()
        return child


@pytest.fixture
def local_servers(tmp_path: Path) -> Iterator[LocalServers]:
    """The servers of a new state directory."""
    jars.install(shared_cache() / "jars", lambda _: None, threading.Event())
    state = StateDir(tmp_path / "state")
    state.open()
    local_servers = LocalServers(state)
    yield local_servers
    for child in local_servers.registry.children:
        child.kill()
    server_home.remove(state)
