"""Kafka on this machine's Java, from wherever the checkout lies."""

import os
import threading
from pathlib import Path

import pytest

from orderstream.stack import jars
from orderstream.stack.kafka import Kafka
from orderstream.stack.place import choose, remove
from orderstream.stack.process import Roster, birth
from orderstream.stack.services import Workshop
from orderstream.stack.state import Record, Run, StateDir, shared_cache


@pytest.mark.parametrize("name", ["josé", "a \\u0041 b", "日本 😀"])
def test_a_path_may_have_any_characters(name: str, tmp_path: Path) -> None:
    never = threading.Event()
    jars.install(shared_cache() / "jars", lambda _: None, never)
    home = tmp_path / name
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "jars").symlink_to(shared_cache() / "jars")
    state = StateDir(home / "state")
    state.open()
    roster = Roster(state, Record(run=Run(os.getpid(), birth(os.getpid()) or "")))
    where = choose(state, lambda _: None)
    kafka = Kafka(9_092, 9_093, where, home / "cache")
    kafka.install(Workshop(state, roster, lambda _: None, never))
    assert (where.folder("kafka") / "data" / "meta.properties").exists()
    assert sorted(path.name for path in home.iterdir()) == ["cache", "state"]
    remove(state)
