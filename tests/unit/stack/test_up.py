"""`up` itself, without its parts: that it ends what it started, and what it says before it starts anything."""

import shutil

from orderstream.stack.process import Roster
from orderstream.stack.state import StateDir
from orderstream.stack.terminal import Terminal
from orderstream.stack.up import _stopped_afterwards
from tests.unit.stack.test_supervisor import Bench, Small


def test_children_end_when_the_state_directory_is_gone(state: StateDir, roster: Roster) -> None:
    bench = Bench(state, roster, restarts=0)
    bench.up(Small("store", wave=2), Small("worker"))
    children = roster.children
    with _stopped_afterwards(bench.supervisor, roster, Terminal(bench.said)):
        shutil.rmtree(state.root)
    assert [child.alive() for child in children] == [False, False]
    assert roster.children == []
    assert "Stopped." in bench.said.getvalue()
