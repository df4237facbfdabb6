"""The local stack that this console belongs to, if `orderstream up` has started it."""

import os
from collections.abc import Sequence

from orderstream.local.processes.state import ChildRecord, Run, StateDir, default_state_dir
from orderstream.settings import Settings


class LocalStack:
    """The running `orderstream up` of this machine: its processes, its logs, and its addresses."""

    def __init__(self, state: StateDir) -> None:
        self.state = state

    def run(self) -> Run | None:
        """Return the record of the running stack, as it is now. None while it stops."""
        return self.state.running()

    def children(self) -> Sequence[ChildRecord]:
        """Return the processes that run now, this console included."""
        run = self.run()
        return run.children if run else ()

    def url(self, name: str) -> str | None:
        """Return an address of the stack, for example that of PAYMENT_SIMULATOR_URL."""
        run = self.run()
        return run.urls.get(name) if run else None


def find(settings: Settings) -> LocalStack | None:
    """Return the stack that started this process, or None if this process was started otherwise."""
    state = default_state_dir(settings.orderstream_state)
    run = state.running()
    if run is None or os.getpid() not in {child.pid for child in run.children}:
        return None
    return LocalStack(state)
