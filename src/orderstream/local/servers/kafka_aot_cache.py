"""Makes later starts faster: once in the life of a checkout, behind a running stack and at the lowest priority, Kafka
is run from start to stop, so that Java can keep its classes loaded and linked. A stop kills it at once; the next `up`
tries again.
"""

import shutil
from pathlib import Path

from orderstream.local.processes import ports
from orderstream.local.processes.service import InstallContext
from orderstream.local.servers.kafka import Kafka
from orderstream.local.servers.passwords import Passwords
from orderstream.local.servers.server_home import ServerHome

_FOLDER = "kafka-learning"


class Learning:
    """The throwaway broker, with a directory and ports of its own."""

    def __init__(self, home: ServerHome, cache: Path) -> None:
        self._home = home
        self._cache = cache
        # Of its own: what it listens on is gone before anyone could need them.
        self._passwords = Passwords()

    @property
    def starts_fast(self) -> bool:
        """Whether there is nothing left to learn."""
        return self._broker(1, 2).starts_fast

    def learn(self, context: InstallContext) -> None:
        """Take a while. Raises ChildError, StoppingError, OSError; nothing is lost then but speed."""
        chosen = ports.pick(("broker", "controller"), {})
        try:
            broker = self._broker(chosen["broker"], chosen["controller"])
            broker.install(context)
            broker.learn_to_start_fast(context)
        finally:
            shutil.rmtree(self._home.folder(_FOLDER), ignore_errors=True)

    def _broker(self, port: int, controller_port: int) -> Kafka:
        return Kafka(port, controller_port, self._home, self._cache, self._passwords, folder=_FOLDER)
