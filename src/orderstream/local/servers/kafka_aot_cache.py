"""Builds Java's ahead-of-time cache for Kafka, which makes later starts faster (decision 0014).

Once in the life of a checkout, beside the running stack, a second Kafka runs from start to stop at the lowest priority
and writes the cache. A stop of the stack kills it at once, and the next `up` tries again.
"""

import shutil
from pathlib import Path

from orderstream.local.processes import ports
from orderstream.local.processes.service import InstallContext
from orderstream.local.servers.kafka import Kafka
from orderstream.local.servers.passwords import Passwords
from orderstream.local.servers.server_home import ServerHome

_FOLDER = "kafka-aot-cache"


class KafkaAotCache:
    """The second Kafka, with its own directory and ports."""

    def __init__(self, home: ServerHome, cache: Path) -> None:
        self._home = home
        self._cache = cache
        # Its own passwords, never stored: this Kafka has ended before another program could need them.
        self._passwords = Passwords()

    @property
    def exists(self) -> bool:
        """Whether the cache is already there."""
        return self._kafka(1, 2).has_aot_cache

    def build(self, context: InstallContext) -> None:
        """Build the cache, which takes about half a minute. Raises ChildError, StoppingError, OSError.

        After an error, starts are as slow as before.
        """
        chosen = ports.pick(("broker", "controller"), {})
        try:
            kafka = self._kafka(chosen["broker"], chosen["controller"])
            kafka.install(context)
            kafka.record_aot_cache(context)
        finally:
            shutil.rmtree(self._home.folder(_FOLDER), ignore_errors=True)

    def _kafka(self, port: int, controller_port: int) -> Kafka:
        return Kafka(port, controller_port, self._home, self._cache, self._passwords, folder=_FOLDER)
