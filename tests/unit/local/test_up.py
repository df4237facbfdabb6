"""`up` without servers: it ends the processes that it started, and reports problems before it starts any."""

import io
import shutil
from pathlib import Path

import pytest

from orderstream.local.processes import ports
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.state import StateDir, StateRecord
from orderstream.local.up import _problem_with_path, _stopped_afterwards, up
from orderstream.settings import Settings
from tests.unit.local.test_supervisor import PythonService, StopByTest, SupervisorBench


def test_processes_are_ended_although_the_state_directory_is_gone(state: StateDir, registry: ProcessRegistry) -> None:
    bench = SupervisorBench(state, registry, restarts=0)
    bench.up(PythonService("store", stop_order=2), PythonService("worker"))
    children = registry.children
    with _stopped_afterwards(bench.supervisor, registry, Terminal(bench.said)):
        shutil.rmtree(state.root)
    assert [child.alive() for child in children] == [False, False]
    assert registry.children == []
    assert "Stopped." in bench.said.getvalue()


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_a_path_that_kafka_would_split_is_refused(tmp_path: Path, name: str) -> None:
    state = StateDir(tmp_path / name)
    said = io.StringIO()
    settings = Settings.model_validate({"port": ports.pick(["api"], {})["api"]})
    assert up(settings, state, Terminal(said), StopByTest()) == 1
    assert f"Kafka cannot work in {state.root}: a comma or a colon ends a path in its configuration." in said.getvalue()
    assert not (state.root / "stack.json").exists()


def test_with_a_given_kafka_any_path_is_accepted(tmp_path: Path) -> None:
    settings = Settings.model_validate({"kafka_brokers": "broker.example:9092"})
    assert _problem_with_path(settings, StateDir(tmp_path / "a,b"), StateRecord()) is None
